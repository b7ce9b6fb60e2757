"""Quantities are declared once, and a new one takes two edits."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from pressgauge.bench.row import QUANTITIES, Row, Source
from support.processes import run_together

ROOT = Path(__file__).parents[3]
DECLARATION = """
    bits: Annotated[
        float,
        Quantity(
            "bits per token",
            "what a token takes on average",
            "bits",
            "less",
            page=Column("bits", lambda row: number(row.bits)),
            terminal=Column("bits", lambda row: f"{row.bits:.2f}"),
            drawn=True,
        ),
    ]
    accuracy: Annotated["""
PROPERTY = """
    @property
    def bits(self) -> float:
        return 2.5

    @property
    def accuracy(self)"""


def edit(path: Path, before: str, after: str) -> None:
    """Replace a text that occurs once in a file."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path.name} has {before!r} {text.count(before)} times"
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_a_new_quantity_is_its_declaration_and_the_code_that_computes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two edits in a copy of the project, a new quantity is in the JSON, both tables, a panel with its unit and
    direction, the notes of the page, and the docs."""
    for name in ("src", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tools").mkdir()
    for name in ("__init__.py", "quantity_table.py"):
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools")
    edit(tmp_path / "src" / "pressgauge" / "bench" / "row.py", "\n    accuracy: Annotated[", DECLARATION)
    edit(tmp_path / "src" / "pressgauge" / "uncompressed.py", "\n    @property\n    def accuracy(self)", PROPERTY)

    options = "--samples 1 --tokens 40 --prune-after 16 --keep-ratios 0.5 --device cpu --no-random"
    options += " --json rows.json --report out"
    monkeypatch.setenv("COLUMNS", "80")
    commands = [["pressgauge", "measure", *options.split()], ["tools.quantity_table"]]
    measured, written = run_together(*((tmp_path, command) for command in commands), source=tmp_path / "src")
    assert (measured.returncode, written.returncode) == (0, 0), measured.stderr + written.stderr
    lines = [line.split() for line in measured.stdout.splitlines()]
    heading = next(line for line in lines if line[:1] == ["ratio"])
    assert heading[:5] == ["ratio", "ppl", "change", "bits", "accuracy"]
    assert [line.count("2.50") for line in lines if line[:1] in (["1"], ["0.5"])] == [1] * 2
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert [row["bits"] for row in rows] == [2.5] * 2
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<td>2.50</td>") == 2
    for text in (">bits per token<", ">bits<", ">less is better<", "What a token takes on average. Less is better."):
        assert text in page
    docs = (tmp_path / "docs" / "measuring.md").read_text(encoding="utf-8")
    assert "| `bits` | bits per token | bits | less | what a token takes on average |" in docs


def test_every_measured_field_is_declared() -> None:
    """Every field of a row is a declared quantity, except settings, inputs and remarks."""
    settings = "press schedule keep_ratio prune_after skip_layers method convention package".split()
    others = [*settings, *"left warnings bands metrics".split()]
    inputs = [field.name for field in fields(Source)]
    assert sorted([*QUANTITIES, *others, *inputs]) == sorted(field.name for field in fields(Row))


def test_fields_that_a_quantity_names_exist() -> None:
    """Fields named by a quantity exist, and a ratio to uncompressed has an interval."""
    for name, quantity in QUANTITIES.items():
        assert {quantity.ratio, quantity.interval} <= {"", *QUANTITIES}, name
        assert not quantity.ratio or QUANTITIES[quantity.ratio].interval


def test_no_two_quantities_have_one_name_or_heading() -> None:
    """Names and headings of quantities are unique."""
    for kind in ("name", "page", "terminal"):
        given = [getattr(quantity, kind) for quantity in QUANTITIES.values()]
        names = [one if isinstance(one, str) else one.heading for one in given if one]
        assert len(names) == len(set(names))
