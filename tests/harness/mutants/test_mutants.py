"""Every mutant is killed by an assertion of its law, the law holds for its correct twin in the same run, and no law
breaks on correct code."""

import inspect
import re
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from harness.mutants.models import LAW as PROOF
from harness.mutants.mutant import Mutant
from harness.mutants.onepass import LAW as ONEPASS
from harness.mutants.registry import MUTANTS
from harness.mutants.right import RIGHT
from harness.mutants.softmax import LAW as SOFTMAX
from harness.mutants.variants import VARIANTS
from harness.mutants.windows import LAW as WINDOWS
from pressgauge.conformance.smoke import concerns
from pressgauge.conformance.subjects import Subject
from pressgauge.measuring.subjects import Measurement
from properties import test_measuring
from regression.recorded import rows_are_as_recorded
from support.laws import LAWS, MEASURING, Law, failure, file_of, judged, outcome, words
from tools.kill_matrix import SUITES

TREND = LAWS["test_nll_does_not_fall_as_fewer_entries_are_retained"]
"""Applies only to subjects that declare it, which no variant does."""

EVERY_LAW = {
    *LAWS.values(),
    *MEASURING.values(),
    *(law for name, law in vars(test_measuring).items() if name.startswith("test_")),
    ONEPASS,
    PROOF,
    SOFTMAX,
    WINDOWS,
    rows_are_as_recorded,
}
"""Laws that must each have a mutant."""

ROOT = Path(__file__).parents[3]
CHECKS = [
    *(ROOT / "src" / "pressgauge" / name for name in ("conformance", "measuring")),
    *(ROOT / "tests" / name for name in ("conformance", "measuring", "properties")),
]
"""Folders with assertions of laws."""


@cache
def of_twin(law: Law, twin: Any) -> BaseException | None:
    """Outcome of a correct twin, which many mutants share."""
    return failure(law, twin)


def is_its_own(law: Law, finding: AssertionError) -> bool:
    """Whether an assertion belongs to the law or to its checks, and not to a library."""
    places = [Path(frame.path) for frame in pytest.ExceptionInfo.from_exception(finding).traceback]
    # Laws call torch's comparison of tensors.
    place = next(path for path in reversed(places) if path.parts[-3:-1] != ("torch", "testing"))
    return place == Path(inspect.getfile(law)) or any(folder in place.parents for folder in CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_kills_the_mutant_and_spares_its_twin(mutant: Mutant) -> None:
    """A law fails for its mutant by its own assertion, with the expected finding, and holds for the twin."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.breaks(patch)
        finding = failure(mutant.law, mutant.subject)
    if mutant.law is rows_are_as_recorded and isinstance(finding, pytest.skip.Exception):
        # No baseline for these releases or this device.
        raise finding
    assert isinstance(finding, AssertionError), finding
    assert is_its_own(mutant.law, finding), finding
    assert [pattern for pattern in mutant.says if not re.search(pattern, str(finding))] == [], finding
    assert of_twin(mutant.law, mutant.twin) is None


CASES = [
    pytest.param(variant, law, id=f"{variant}-{words(law)}")
    for row, variant in enumerate(VARIANTS)
    for column, law in enumerate(law for law in LAWS.values() if law is not TREND)
    if concerns(file_of(law), variant) and (row + column) % 20 == 0
]
"""A twentieth of all pairs: each law with a twentieth of the variants, each variant with a twentieth of the laws.
``nox -s kills`` covers all."""


@pytest.mark.parametrize(("variant", "law"), CASES)
def test_no_law_breaks_on_what_is_right(variant: Subject, law: Law) -> None:
    """No law fails on a correct compressor."""
    assert outcome(law, variant) in ("held", "not applicable")


@pytest.mark.parametrize("measurement", RIGHT, ids=lambda measurement: measurement.name)
def test_no_law_breaks_on_right_measuring_code(measurement: Measurement) -> None:
    """No law fails on correct measuring code, and at least six apply to it."""
    laws = {name: law for name, law in MEASURING.items() if measurement.kind in signature(law).parameters}
    found = {name: judged(law, measurement) for name, law in laws.items()}
    assert {name: what for name, what in found.items() if what[0] in ("broken", "crashed")} == {}
    assert sum(what == "held" for what, _ in found.values()) >= 6


def test_every_law_has_a_mutant() -> None:
    """Every law kills at least one mutant."""
    assert {mutant.law for mutant in MUTANTS} == EVERY_LAW


def test_every_mutant_has_a_name_of_its_own() -> None:
    """Ids of mutants are unique."""
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)


def test_the_page_was_written_for_these_mutants_and_laws() -> None:
    """The kill matrix lists the current mutants, laws and variants."""
    page = " ".join((ROOT / "docs" / "kill-matrix.md").read_text(encoding="utf-8").split())
    for suite in SUITES:
        number = f"{len(suite.mutants)} mutants, {len(suite.laws)} laws in `tests/{suite.folder}/`, and"
        assert f"{number} {len(suite.right)} {suite.what} that are right." in page
        assert all(f"| {mutant.id} | {mutant.what} | {mutant.seen_in} |" in page for mutant in suite.mutants)
