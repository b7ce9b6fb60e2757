"""The quick tier: its tests exist and kill nine tenths of the mutants, and a cover is small."""

import importlib
import re

import pytest

from conformance.ours import ours_by_default
from harness.mutants.registry import MUTANTS
from measuring.ours import SUBJECTS as MEASURING
from properties import test_softmax_and_latents, test_windows
from tools.quick import LIST, SHARE, Candidate, cover, killed, kills, law_of

TESTS = LIST.read_text(encoding="utf-8").splitlines()
PARAMETERS = {
    *(mutant.id for mutant in MUTANTS),
    *(subject.name for subject in ours_by_default()),
    *(measurement.name for measurements in MEASURING.values() for measurement in measurements),
    *(f"{case.model}-{case.press}" for case in test_softmax_and_latents.CASES),
    *(f"{case.model}-{case.press}" for case in test_windows.CASES),
}
"""Names in the brackets of a test's id, before that of an architecture or a dtype."""


@pytest.mark.parametrize("test", TESTS)
def test_a_test_of_the_list_exists(test: str) -> None:
    """The file, the function and its parameters exist."""
    found = re.fullmatch(r"(tests/[\w/]+\.py)::(test_\w+)(?:\[(.+?)(?:-llama|-torch\.\w+)?\])?", test)
    assert found is not None
    path, name, parameter = found.groups()
    module = importlib.import_module(path.removeprefix("tests/").removesuffix(".py").replace("/", "."))
    assert callable(vars(module)[name])
    assert parameter is None or parameter in PARAMETERS


def test_the_list_has_each_test_once() -> None:
    """The list is sorted and repeats nothing."""
    assert sorted(set(TESTS)) == TESTS


def test_the_list_kills_nine_tenths_of_the_mutants() -> None:
    """By the kill matrix, the laws of the list kill at least nine tenths of the mutants."""
    dead = killed(map(law_of, TESTS), kills())
    assert dead <= {mutant.id for mutant in MUTANTS}
    assert len(dead) >= SHARE * len(MUTANTS)


def test_a_cover_takes_what_kills_most_per_second() -> None:
    """Of three laws, the one whose kills are all those of a cheaper one is not taken."""
    killing = {"a": {"1", "2", "3"}, "b": {"3", "4"}, "c": {"4"}}
    tests = {"a": Candidate("a", "x", 1.0), "b": Candidate("b", "x", 1.0), "c": Candidate("c", "x", 0.1)}
    assert cover(tests, killing, 10) == ["c", "a"]
    assert cover(tests, killing, 0.5) == ["c"]
    assert cover({"b": tests["b"]}, killing, 10) == ["b"]
