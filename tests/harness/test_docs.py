"""The documentation: examples run, and the commands, sessions, options and files that it names exist."""

import itertools
import re
import shlex
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_group
from typer.testing import CliRunner

import pressgauge
from pressgauge import presses
from pressgauge.bench.row import Row
from pressgauge.bench.task_row import TaskRow
from pressgauge.cli import app
from pressgauge.presses import PRESSES
from support.pages import DOCS, PAGES, README, ROOT, blocks, commands, name_of, sessions
from tools.false_results import SHOWING
from tools.quantity_table import PAGES as QUANTITY_PAGES
from tools.quantity_table import TABLE, table

COLUMNS = ["keep ratio", "perplexity", "change", "accuracy", "affected", "held"]


def measure_options(command: str) -> list[str] | None:
    """Options that a command passes to ``pressgauge measure``, directly, by a launcher or through nox; else None."""
    words = shlex.split(command)
    for place, pair in enumerate(itertools.pairwise(words)):
        if pair == ("pressgauge", "measure"):
            return words[place + 2 :]
    if any(pair == ("-s", "measure") for pair in itertools.pairwise(words)):
        return words[words.index("--") + 1 :] if "--" in words else []
    return None


def parsed(options: list[str]) -> dict[str, Any]:
    """Options as parsed by the command; unknown options raise an error."""
    with get_group(app).commands["measure"].make_context("measure", list(options)) as context:
        return dict(context.params)


def result_rows() -> tuple[list[str], list[dict[str, str]]]:
    """Heading and rows of README's table of results."""
    text = README.read_text(encoding="utf-8")
    lines = text.split("<!-- result -->\n")[1].split("<!-- /result -->")[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return cells[0], [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


# Pages with outputs of their code are run by test_false_results.py.
RUN_HERE = [page for page in PAGES if blocks(page, "python") and page not in SHOWING]


@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_python_examples_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks of a page run in order."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, block in blocks(page, "python"):
        # Empty lines first, so that a traceback has the line of the page.
        exec(compile("\n" * line + block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_console_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pressgauge`` commands succeed; commands that need something missing here have valid options."""
    monkeypatch.chdir(tmp_path)
    # Blocks that begin with the name of a file are files.
    for _, block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    for command in commands(page):
        options = measure_options(command)
        if command.startswith(("pressgauge compare ", "pressgauge report ")):
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            assert result.exit_code == 0, f"{command}: {result.output}"
        elif command.startswith("pressgauge audit "):
            # For a user's compressor: tests/harness/test_wheel.py runs it on the example of the page.
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
def test_named_sessions_exist(page: Path) -> None:
    """Every ``nox -s NAME`` is a session of ``noxfile.py``."""
    named = re.findall(r"""nox -s ["']?([a-z_-]+(?:\([a-z-]+\))?)""", page.read_text(encoding="utf-8"))
    assert set(named) <= sessions()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page: Path) -> None:
    """Relative links and paths in code marks exist."""
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:src|tests|tools|docs)/[\w./-]*)`", text)]
    assert [name_of(path) for path in links + paths if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_example_is_found(page: Path) -> None:
    """Fences are not indented and of a known language, so that the tests above find every example."""
    fences = re.findall(r"^\s*(?:`{3,}|~{3,}).*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    # The only YAML is the workflow, read by test_ci.py; the only text is a finding, compared by test_wheel.py; the only
    # TOML is a known finding, matched by test_known.py.
    others = {"ci.md": ["yaml"], "conformance.md": ["text", "toml"], "index.md": ["text"], "README.md": ["text"]}
    languages = ("python", "console", *others.get(page.name, []))
    found = sum(len(blocks(page, language)) for language in languages)
    assert len(fences) == 2 * found


def test_every_public_name_is_in_the_api_page() -> None:
    """``docs/api.md`` contains every public name of ``pressgauge``, those of presses with their package."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: pressgauge\.(\w+)$", page, flags=re.MULTILINE)
    shown.remove("presses")
    assert sorted([*shown, *presses.__all__]) == sorted([*pressgauge.__all__, "PRESSES"])


@pytest.mark.parametrize(("page", "row"), [("measuring.md", Row), ("tasks.md", TaskRow)])
def test_the_table_of_quantities_is_that_of_the_declarations(page: str, row: type[Row | TaskRow]) -> None:
    """The table of quantities agrees with their declarations; ``python -m tools.quantity_table`` writes it."""
    (shown,) = TABLE.findall((DOCS / page).read_text(encoding="utf-8"))
    assert shown == table(QUANTITY_PAGES[DOCS / page])
    assert all(f"`{field.name}`" in (DOCS / page).read_text(encoding="utf-8") for field in fields(row))


def test_the_two_commands_of_a_fresh_clone_are_in_the_readme() -> None:
    """README has the commands for a fresh clone, one that measures and one that validates."""
    for session in ("measure", "cpu"):
        assert f"python -m pip install nox && python -m nox -s {session}" in commands(README)


def test_the_table_of_results_is_consistent() -> None:
    """The table of results starts uncompressed, and its perplexity does not fall with the keep ratio."""
    heading, rows = result_rows()
    assert heading == COLUMNS
    ratios = [Fraction(row["keep ratio"]) for row in rows]
    perplexities = [float(row["perplexity"]) for row in rows]
    assert ratios[0] == 1
    assert ratios == sorted(set(ratios), reverse=True)
    assert len(ratios) > 1
    assert perplexities == sorted(perplexities)


def test_the_changes_of_the_result_are_those_of_its_perplexities() -> None:
    """Changes in the table of results are relative to the uncompressed row, to the digits shown."""
    _, rows = result_rows()
    uncompressed = float(rows[0]["perplexity"])
    assert rows[0]["change"] == ""
    for row in rows[1:]:
        change = 100 * (float(row["perplexity"]) / uncompressed - 1)
        shown, low, high = (part for part in re.findall(r"[-+][\d.]+", row["change"]))
        # Perplexities are shown to .0005 and the change to half of its last digit.
        slack = 0.5 * 10.0 ** -len(shown.partition(".")[2]) + 0.0005 * 100 / uncompressed * (2 + change / 100)
        assert float(shown) == pytest.approx(change, abs=slack)
        assert float(low) < float(shown) < float(high)


def test_the_counts_of_the_result_are_those_of_its_command() -> None:
    """Affected and held tokens in the table of results follow from the options of its command."""
    command = next(iter(re.findall(r"^`(pressgauge measure[^`]*)`", README.read_text(encoding="utf-8"), re.MULTILINE)))
    options = parsed(shlex.split(command)[2:])
    tokens, prune_after = options["tokens"], options["prune_after"]
    # The formula below holds for single tokens, the default schedule and a skipped first layer.
    assert (options["schedule"], options["skip_layers"], options["prompt"]) == (None, "0", None)
    _, rows = result_rows()
    for row in rows:
        ratio = Fraction(row["keep ratio"])
        kept = [min(seen, max(prune_after, -int(-ratio * seen // 1))) for seen in range(tokens + 1)]
        first = next((seen for seen in range(tokens + 1) if kept[seen] < seen), tokens)
        affected = max(0, tokens - 1 - first)
        assert row["affected"] == f"{options['samples'] * affected}/{options['samples'] * (tokens - 1)}"
        assert row["held"] == (f"{kept[-1]}-{tokens}" if kept[-1] < tokens else f"{tokens}")
