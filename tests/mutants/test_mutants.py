"""Every mutant is found out by its law's own assertion, and its sound twin passes the same law in the same run."""

import pytest

from mutants.catalogue import MUTANTS, SOUND, STEP, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_kills_the_mutant(mutant: Mutant) -> None:
    """By an assertion: a crash would prove nothing."""
    with pytest.raises(AssertionError):
        mutant.law(mutant.subject)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_spares_the_sound_twin(mutant: Mutant) -> None:
    """The same law, on the press that is not broken."""
    mutant.law(STEP if mutant.subject.name == STEP.name else SOUND)


def test_every_mutant_has_a_name_of_its_own() -> None:
    """So that a failure says which it was."""
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
