"""Every mutant of measuring is found out by its law's own assertion, and every law of measuring kills one."""

from collections.abc import Callable
from functools import cache

import pytest

from harness.mutants.measuring import MEASURING, MeasuringMutant
from properties import test_measuring


@cache
def of_sound_code(law: Callable[[], None]) -> None:
    """A law, which several mutants share, holds."""
    law()


@pytest.mark.parametrize("mutant", MEASURING, ids=lambda mutant: mutant.id)
def test_the_law_kills_the_mutant_and_spares_the_sound_code(mutant: MeasuringMutant) -> None:
    """By an assertion that stands in the laws: a crash would prove nothing, nor would an assertion of the library."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.breaks(patch)
        with pytest.raises(AssertionError) as found:
            mutant.law()
    assert str(found.traceback[-1].path) == test_measuring.__file__
    of_sound_code(mutant.law)


def test_every_law_of_measuring_kills_a_mutant() -> None:
    """A law that no mutant breaks has not shown that it can fail."""
    laws = {name for name in vars(test_measuring) if name.startswith("test_")}
    assert {mutant.law.__name__ for mutant in MEASURING} == laws


def test_every_mutant_of_measuring_has_a_name_of_its_own() -> None:
    """So that a failure says which it was."""
    assert len({mutant.id for mutant in MEASURING}) == len(MEASURING)
