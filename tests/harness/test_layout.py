"""Tests have an address: a unit test is named after its module, and no helper is in a test file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SOURCE = ROOT / "src" / "pressgauge"
KINDS = {"unit", "conformance", "measuring", "properties", "harness", "regression", "peers", "support"}
FILES = [path for folder in (TESTS, ROOT / "tools") for path in sorted(folder.rglob("*.py"))]


def modules(package: Path) -> set[str]:
    """Names that a test file of a package may have: its modules, and the package itself."""
    return {path.stem.strip("_") for path in package.glob("*.py")} - {"init"} | {package.name}


def is_placed(path: str) -> bool:
    """Whether a unit test, given its path below ``tests/unit``, matches a module."""
    package, stem = SOURCE / Path(path).parent, Path(path).stem.removeprefix("test_")
    parts = stem.split("_")
    return any("_".join(parts[:length]) in modules(package) for length in range(1, len(parts) + 1))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rules/test_budget.py", True),
        ("rules/test_rules.py", True),
        ("test_main.py", True),
        ("test_onepass_details.py", True),
        ("test_budget.py", False),
        ("rules/test_budgets.py", False),
        ("nowhere/test_budget.py", False),
    ],
)
def test_a_misplaced_unit_test_is_found(path: str, expected: bool) -> None:
    assert is_placed(path) is expected


@pytest.mark.parametrize("path", sorted((TESTS / "unit").rglob("*.py")), ids=lambda path: path.name)
def test_a_unit_test_has_the_address_of_its_module(path: Path) -> None:
    """A unit test is in the folder of its package, and named after a module with an optional topic."""
    assert path.name.startswith("test_")
    assert is_placed(path.relative_to(TESTS / "unit").as_posix())


def test_every_test_is_in_a_folder_of_its_kind() -> None:
    """``tests`` has only the shared fixtures next to its folders, and helpers and tools contain no tests."""
    assert [path.name for path in TESTS.glob("*.py")] == ["conftest.py"]
    assert {path.name for path in TESTS.iterdir() if any(path.rglob("*.py"))} <= KINDS
    assert [path for folder in (TESTS / "support", ROOT / "tools") for path in folder.rglob("test_*.py")] == []


def imported(text: str) -> Iterator[str]:
    """Full names of all modules and names that a module imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def from_tests(text: str) -> list[str]:
    """Imports from test files."""
    return [name for name in imported(text) if any(part.startswith("test_") for part in name.split("."))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from properties.test_refusals import SMALL", ["properties.test_refusals.SMALL"]),
        ("import test_measuring as laws", ["test_measuring"]),
        ("def late():\n    from conformance import test_rows", ["conformance.test_rows"]),
        ("from support.drive import run\nimport pytest", []),
    ],
)
def test_an_import_of_a_test_file_is_found(text: str, found: list[str]) -> None:
    assert from_tests(text) == found


LAWS = re.compile(r"(conformance|measuring|properties)\.test_\w+")
"""Modules of laws."""


def test_only_the_harness_imports_test_files_and_only_laws() -> None:
    """Only the harness imports from test files, and only laws."""
    for path in FILES:
        for name in from_tests(path.read_text(encoding="utf-8")):
            assert TESTS / "harness" in path.parents, f"{path} imports {name}"
            assert LAWS.fullmatch(name), f"{path} imports {name}"


def test_the_paths_of_the_sessions_exist() -> None:
    """Paths of tests in the noxfile exist, also those of the mutation session."""
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    named = re.findall(rf'"(?:tests/)?((?:{"|".join(sorted(KINDS))})/[\w/.-]+)"', text)
    inside = re.search(r"inside = \[(.*)\]", text)
    assert inside is not None
    named += [f"unit/{name}" for name in re.findall(r'"([^"]+)"', inside[1])]
    assert len(named) > 20
    assert [path for path in named if not (TESTS / path).exists()] == []
