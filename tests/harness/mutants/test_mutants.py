"""Every mutant is found out by its law's own assertion, its sound twin passes the same law in the same run, and no law
breaks on what is right."""

import os
from functools import cache
from pathlib import Path

import pytest

from harness.mutants.catalogue import MUTANTS
from harness.mutants.mutant import Mutant
from harness.mutants.onepass import LAW, ONEPASS, OnePassMutant
from harness.mutants.variants import VARIANTS
from pressgauge.conformance.subjects import Subject
from support.laws import LAWS, Law, outcome, words

TREND = LAWS["test_nll_does_not_fall_as_less_is_kept"]
"""A law only for those that declare it, which no variant does."""


@cache
def of_twin(law: Law, twin: Subject) -> str:
    """What comes out for a sound compressor, which many mutants share."""
    return outcome(law, twin)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_kills_the_mutant_and_spares_its_twin(mutant: Mutant) -> None:
    """By an assertion: a crash would prove nothing."""
    assert outcome(mutant.law, mutant.subject) == "broken"
    assert of_twin(mutant.law, mutant.twin) == "held"


@pytest.mark.parametrize("mutant", ONEPASS, ids=lambda mutant: mutant.id)
def test_the_law_of_one_pass_kills_its_mutants(mutant: OnePassMutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same press, measured by what is broken and by what is not."""
    LAW(mutant.subject)
    mutant.breaks(monkeypatch)
    with pytest.raises(AssertionError):
        LAW(mutant.subject)


CASES = [
    pytest.param(variant, law, id=f"{variant}-{words(law)}")
    for row, variant in enumerate(VARIANTS)
    for column, law in enumerate(law for law in LAWS.values() if law is not TREND)
    if (row + column) % 3 == 0 or os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
]
"""On every third diagonal: each law meets a third of the variants, and each variant a third of the laws. All meet all
by ``nox -s kills`` and in the nightly run."""


@pytest.mark.parametrize(("variant", "law"), CASES)
def test_no_law_breaks_on_what_is_right(variant: Subject, law: Law) -> None:
    """A law that fails on a sound compressor is worse than none."""
    assert outcome(law, variant) in ("held", "not applicable")


def test_every_law_has_a_mutant() -> None:
    """A law that kills nothing might as well not be there."""
    assert {mutant.law.__name__ for mutant in MUTANTS} == set(LAWS)


def test_the_page_was_written_for_these_mutants_and_laws() -> None:
    """``nox -s kills`` writes it; a mutant or a law that was added since would be missing."""
    page = " ".join((Path(__file__).parents[3] / "docs" / "kill-matrix.md").read_text(encoding="utf-8").split())
    assert f"Each of {len(MUTANTS)} mutants," in page
    assert f"each of the {len(LAWS)} laws" in page
    assert f"{len(VARIANTS)} compressors that are right" in page
    assert all(f"| {mutant.id} | {mutant.what} | {mutant.seen_in} |" in page for mutant in MUTANTS)


def test_every_mutant_has_a_name_of_its_own() -> None:
    """So that a failure says which it was."""
    names = [mutant.id for mutant in MUTANTS] + [mutant.id for mutant in ONEPASS]
    assert len(set(names)) == len(names) >= 50
