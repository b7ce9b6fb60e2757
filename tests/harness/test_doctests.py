"""Examples in docstrings: collecting them by pytest would read every module for the few that have any."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMPT = ">" * 3 + " "
FOLDERS = {"src": ROOT / "src", "tests": ROOT / "tests", "tools": ROOT}
"""Folders of modules, and where their names begin."""
NAMES = [
    ".".join(path.relative_to(begin).with_suffix("").parts)
    for folder, begin in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
    if PROMPT in path.read_text(encoding="utf-8")
]


def test_there_are_examples() -> None:
    assert {"pressgauge.rules.numbers", "regression.decoding"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_a_false_example_is_found() -> None:
    module = type(doctest)("false_examples", f"{PROMPT}1 + 1\n3\n")
    assert doctest.testmod(module).failed == 1
