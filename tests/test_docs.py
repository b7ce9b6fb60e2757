"""The documentation: its examples run, and the commands, sessions, options and files that it names exist."""

import ast
import itertools
import re
import shlex
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from quantity_table import TABLE, table
from typer.main import get_group
from typer.testing import CliRunner

import pressgauge
from pressgauge.bench.row import Row
from pressgauge.cli import app
from pressgauge.presses import PRESSES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
COLUMNS = ["keep ratio", "perplexity", "change", "accuracy", "affected", "held"]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language: the number of the line above the first, and the text."""
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: fence.start(1)].count("\n"), fence.group(1)) for fence in fences]


def commands(page: Path) -> list[str]:
    """The lines of the console blocks that are typed, without the prompt."""
    lines = [line for _, block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def measure_options(command: str) -> list[str] | None:
    """What a command gives to ``pressgauge measure``, directly or through nox; None if it is about something else."""
    words = shlex.split(command)
    if words[:2] == ["pressgauge", "measure"]:
        return words[2:]
    if any(pair == ("-s", "measure") for pair in itertools.pairwise(words)):
        return words[words.index("--") + 1 :] if "--" in words else []
    return None


def parsed(options: list[str]) -> dict[str, Any]:
    """The options as the command understands them; an error for one that it does not know."""
    with get_group(app).commands["measure"].make_context("measure", list(options)) as context:
        return dict(context.params)


def sessions() -> set[str]:
    """The sessions of ``noxfile.py``, read and not run: nox itself is not among the tests' requirements."""
    names = set()
    for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any(
            re.match(r"nox\.session\b", ast.unparse(d)) for d in node.decorator_list
        ):
            names.add(node.name)
            for decorator in node.decorator_list:
                ids = [word.value for word in getattr(decorator, "keywords", []) if word.arg == "ids"]
                names |= {f"{node.name}({name})" for value in ids for name in ast.literal_eval(value)}
    return names


def result_rows() -> tuple[list[str], list[dict[str, str]]]:
    """The heading and the rows of README's table of a result."""
    text = README.read_text(encoding="utf-8")
    lines = text.split("<!-- result -->\n")[1].split("<!-- /result -->")[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return cells[0], [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def name_of(page: Path) -> str:
    """A page's name in the project, the same on every system."""
    return page.relative_to(ROOT).as_posix()


# What false-results.md prints is held to as well, so it is run in a test of its own.
RUN_HERE = [page for page in PAGES if blocks(page, "python") and page.name != "false-results.md"]


@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_python_examples_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of a page runs as it stands, after those above it."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, block in blocks(page, "python"):
        # Empty lines in front, so that a traceback names the page's own line.
        exec(compile("\n" * line + block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_console_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``pressgauge`` command succeeds; where it, or nox, needs what is not here, its options are known."""
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        options = measure_options(command)
        if command.startswith("pressgauge audit "):
            # Of somebody's compressor: tests/meta/test_wheel.py runs it on the one of the page.
            result = CliRunner().invoke(app, [*shlex.split(command)[1:3], "--help"])
            assert result.exit_code == 0, f"{command}: {result.output}"
        elif options is None:
            assert not command.startswith("pressgauge"), f"no test knows what to make of {command!r}"
        elif command.startswith("pressgauge") and not {"--model", "--text"} & set(options):
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            assert result.exit_code == 0, f"{command}: {result.output}"
        elif "--help" not in options:
            assert set(parsed(options)["press"].split(",")) <= set(PRESSES), command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sessions_that_are_named_exist(page: Path) -> None:
    """Every ``nox -s NAME`` is a session of ``noxfile.py``."""
    named = re.findall(r"""nox -s ["']?([a-z_-]+(?:\([a-z-]+\))?)""", page.read_text(encoding="utf-8"))
    assert set(named) <= sessions()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """Every relative link, and every path below ``src/``, ``tests/`` or ``docs/`` in code marks, is there."""
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:src|tests|docs)/[\w./-]*)`", text)]
    assert [name_of(path) for path in links + paths if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_example_escapes(page: Path) -> None:
    """Every fence is one that the tests above find: not indented, of a language that they know."""
    fences = re.findall(r"^\s*(?:`{3,}|~{3,}).*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    # The only YAML is the workflow, which test_ci.py reads.
    languages = ("python", "console", "yaml") if page.name == "ci.md" else ("python", "console")
    found = sum(len(blocks(page, language)) for language in languages)
    assert len(fences) == 2 * found


def test_every_public_name_has_its_place_in_the_api() -> None:
    """``docs/api.md`` shows all that ``import pressgauge`` offers."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: pressgauge\.(?:presses\.)?(\w+)$", page, flags=re.MULTILINE)
    assert sorted(shown) == sorted(pressgauge.__all__)


def test_the_table_of_quantities_is_that_of_the_declarations() -> None:
    """Each with its name, unit, direction and meaning; ``python tests/quantity_table.py`` writes it."""
    (shown,) = TABLE.findall((DOCS / "measuring.md").read_text(encoding="utf-8"))
    assert shown == table()
    assert all(f"`{field.name}`" in (DOCS / "measuring.md").read_text(encoding="utf-8") for field in fields(Row))


def test_the_two_commands_of_a_fresh_clone_are_in_the_readme() -> None:
    """One command measures and one validates."""
    for session in ("measure", "cpu"):
        assert f"python -m pip install nox && python -m nox -s {session}" in commands(README)


def test_the_result_reads_as_it_should() -> None:
    """The table has its heading, starts uncompressed, and perplexity does not fall as the keep ratio falls."""
    heading, rows = result_rows()
    assert heading == COLUMNS
    ratios = [Fraction(row["keep ratio"]) for row in rows]
    perplexities = [float(row["perplexity"]) for row in rows]
    assert ratios[0] == 1
    assert ratios == sorted(set(ratios), reverse=True)
    assert len(ratios) > 1
    assert perplexities == sorted(perplexities)


def test_the_changes_of_the_result_are_those_of_its_perplexities() -> None:
    """Change is relative to the uncompressed row, to the digits shown."""
    _, rows = result_rows()
    uncompressed = float(rows[0]["perplexity"])
    assert rows[0]["change"] == ""
    for row in rows[1:]:
        change = 100 * (float(row["perplexity"]) / uncompressed - 1)
        # Perplexities are shown to .0005 and the change to .05 %.
        slack = 0.05 + 0.0005 * 100 / uncompressed * (2 + change / 100)
        assert float(row["change"].removesuffix("%")) == pytest.approx(change, abs=slack)


def test_the_counts_of_the_result_are_those_of_its_command() -> None:
    """Affected and held follow from the options that the README says the table was made with."""
    command = next(iter(re.findall(r"^`(pressgauge measure[^`]*)`", README.read_text(encoding="utf-8"), re.MULTILINE)))
    options = parsed(shlex.split(command)[2:])
    tokens, prune_after = options["tokens"], options["prune_after"]
    # What is written out below holds for single tokens, the default schedule and a first layer that is skipped.
    assert (options["schedule"], options["skip_layers"], options["prompt"]) == (None, "0", None)
    _, rows = result_rows()
    for row in rows:
        ratio = Fraction(row["keep ratio"])
        kept = [min(seen, max(prune_after, -int(-ratio * seen // 1))) for seen in range(tokens + 1)]
        first = next((seen for seen in range(tokens + 1) if kept[seen] < seen), tokens)
        affected = max(0, tokens - 1 - first)
        assert row["affected"] == f"{options['samples'] * affected}/{options['samples'] * (tokens - 1)}"
        assert row["held"] == (f"{kept[-1]}-{tokens}" if kept[-1] < tokens else f"{tokens}")
