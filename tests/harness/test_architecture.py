"""Imports within the package follow docs/architecture.md: downwards, without cycles."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
ENGINE = ("rules", "models", "presses", "history", "cache", "proof", "attach", "onepass", "decoder", "likelihood")


@dataclass(frozen=True)
class Import:
    """An import of a module of the package or of a name in it; ``late`` unless executed at the top of a module."""

    importer: str
    module: str
    name: str
    late: bool


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Modules of the package, by full name."""
    found = {}
    for path in (source / "pressgauge").rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, text: str) -> Iterator[Import]:
    """Imports in a module's source."""
    tree = ast.parse(text)
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pressgauge":
            for alias in node.names:
                yield Import(module, node.module or "", alias.name, node not in top)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pressgauge":
                    yield Import(module, alias.name, "", node not in top)


def resolved(one: Import, known: dict[str, Path]) -> str:
    """The module that an import needs: ``from package import module`` needs the module."""
    return f"{one.module}.{one.name}" if f"{one.module}.{one.name}" in known else one.module


def _table(heading: str) -> list[list[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split(heading, 1)[1]
    rows = re.findall(r"^\| (.*) \|$", section.split("\n## ")[0], flags=re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows if "---" not in row][1:]


@cache
def floors() -> dict[str, int]:
    return {module.strip("`"): int(floor) for floor, module, _ in _table("# Architecture")}


def floor_of(module: str) -> tuple[str, int]:
    """Row of the table for a module, and its floor."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        # The package itself matches only the row of its own file.
        if name in floors() and (length > 1 or len(parts) == 1):
            return name, floors()[name]
    raise AssertionError(f"docs/architecture.md has no floor for {module}")


def upward(one: Import, known: dict[str, Path]) -> str | None:
    """The violation of an import, or None."""
    needed = resolved(one, known)
    (own, floor), (other, below) = floor_of(one.importer), floor_of(needed)
    if own != other and below >= floor:
        return f"{one.importer} (floor {floor}) imports {needed} (floor {below})"
    if own != other and one.name.startswith("_"):
        return f"{one.importer} imports the private {needed}.{one.name}"
    return None


KNOWN = modules()
IMPORTS = [one for module, path in KNOWN.items() for one in imports(module, path.read_text(encoding="utf-8"))]


def test_every_module_has_a_floor_and_every_floor_a_module() -> None:
    assert {floor_of(module)[0] for module in KNOWN} == set(floors())


def test_imports_go_down() -> None:
    assert [found for one in IMPORTS if not one.late if (found := upward(one, KNOWN))] == []


@pytest.mark.parametrize(
    ("importer", "line", "finding"),
    [
        ("pressgauge.rules.budget", "from pressgauge.cache import PressedCache", "imports pressgauge.cache (floor 4)"),
        ("pressgauge.attach", "from pressgauge import decoder", "(floor 6) imports pressgauge.decoder (floor 6)"),
        ("pressgauge.timing", "import pressgauge.report.page", "imports pressgauge.report.page (floor 9)"),
        ("pressgauge.history.fixed", "from pressgauge.presses.ranking import _places", "the private"),
    ],
)
def test_an_import_that_goes_up_is_found(importer: str, line: str, finding: str) -> None:
    (one,) = imports(importer, line)
    assert finding in (upward(one, KNOWN) or "")


def test_there_is_no_cycle() -> None:
    """There is no import cycle, neither between packages nor within one."""
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        # A package's file of public names is imported before its modules, and does not constrain their order.
        if not one.late and KNOWN[one.importer].name != "__init__.py":
            graph.setdefault(one.importer, set()).add(resolved(one, KNOWN))
    list(TopologicalSorter(graph).static_order())
    with pytest.raises(CycleError):
        list(TopologicalSorter({**graph, "pressgauge.rules.numbers": {"pressgauge.rules.budget"}}).static_order())


def test_late_imports_are_the_listed_exceptions() -> None:
    late = {one.importer for one in IMPORTS if one.late}
    assert late == {row[0].strip("`") for row in _table("## Exceptions")}


def test_files_and_classes_of_the_engine_are_short() -> None:
    """Files of the engine have about 300 lines at most, and classes about 200."""
    long = {}
    for module, path in KNOWN.items():
        if module.split(".")[1:2] and module.split(".")[1] in ENGINE:
            text = path.read_text(encoding="utf-8")
            long[module] = len(text.splitlines()) - 300
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    long[f"{module}.{node.name}"] = (node.end_lineno or 0) - node.lineno + 1 - 200
    assert {name: excess for name, excess in long.items() if excess > 20} == {}
