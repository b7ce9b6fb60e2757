"""Every mutant is found out by its law's own assertion, and its sound twin passes the same law in the same run."""

import pytest

from mutants.catalogue import BY_NAME, MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_kills_the_mutant(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an assertion: a crash would prove nothing."""
    mutant.breaks(monkeypatch)
    with pytest.raises(AssertionError):
        mutant.law(mutant.subject)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_spares_the_sound_twin(mutant: Mutant) -> None:
    """The same law, on the press that is not broken."""
    mutant.law(BY_NAME[mutant.subject.name])


def test_every_mutant_has_a_name_of_its_own() -> None:
    """So that a failure says which it was."""
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
