"""Install lines are valid: they name the clone by its path, and existing extras. ``nox -s installs`` runs them."""

import re
import shlex
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

from support.pages import PAGES, ROOT, commands, name_of
from tools.installs.lines import installs, is_install

LINES = sorted({line for lines in installs().values() for line in lines})
TOOLS = ("nox", "pip>=25.1")
OPTIONS = {"--editable": "path", "--constraint": "file", "--group": "group", "--upgrade": ""}


@pytest.mark.parametrize("line", LINES)
def test_install_lines_name_existing_things(line: str) -> None:
    """An install line names the clone by its path, with existing extras and groups, or a tool on the index."""
    words = iter(shlex.split(line)[4:])
    for word in words:
        kind = OPTIONS.get(word, "path" if not word.startswith("-") else "no option that a test knows")
        if kind == "":
            continue
        value = word if word not in OPTIONS else next(words)
        if kind == "file":
            assert (ROOT / value).is_file()
        elif kind == "group":
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
            assert value in project["dependency-groups"]
        elif value not in TOOLS:
            where = re.fullmatch(r"(\.|path/to/pressgauge)(?:\[([\w,-]+)\])?", value)
            assert kind == "path"
            assert where, f"{value!r} would be looked for on the index"
            assert {*(where[2] or "").split(",")} - {""} <= {*(metadata("pressgauge").get_all("Provides-Extra") or [])}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_install_lines_are_in_console_blocks(page: Path) -> None:
    """Install lines are in console blocks, where they are run; test_ci.py reads those of the workflow."""
    text = re.sub(r"^```yaml\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert text.count("pip install") == sum(is_install(line) for line in commands(page))


def test_lines_are_found() -> None:
    """Install lines are found on the pages that have some."""
    pages = {where.split(":")[0] for where in installs()}
    assert pages >= {"README.md", "docs/index.md", "docs/testing.md", "docs/conformance.md"}
