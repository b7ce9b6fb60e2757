"""Every broken memory function is found by its law, which names the mistake, and no right one is."""

import functools
from collections.abc import Callable

import pytest
from measuring import test_memory

from harness.mutants.memory import MUTANTS, RIGHT, MemoryMutant
from pressgauge.conformance.session import Departure
from pressgauge.measuring.footprints import Footprint

LAWS = {name: law for name, law in vars(test_memory).items() if name.startswith("test_")}


@functools.cache
def holds(law: Callable[[Footprint], None], function: Footprint) -> None:
    """The law holds, and applies."""
    law(function)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_names_the_mistake_and_spares_the_twin(mutant: MemoryMutant) -> None:
    """A mutant is killed by a finding that says what its figure is; the law applies to its twin, and holds."""
    with pytest.raises(Departure) as found:
        mutant.law(mutant.function)
    print(f"{mutant.id}: {found.value}")
    assert mutant.says in str(found.value)
    holds(mutant.law, mutant.twin)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("function", RIGHT, ids=str)
def test_no_law_is_broken_by_a_right_function(function: Footprint, law: str) -> None:
    """Whatever its style, a right function holds every law that applies."""
    LAWS[law](function)


def test_every_law_of_memory_kills_a_mutant() -> None:
    """A law that no mutant breaks has not shown that it can fail."""
    assert {mutant.law.__name__ for mutant in MUTANTS} == set(LAWS)
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
