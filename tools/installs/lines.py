"""The install lines of README and docs, and the folders they are run in."""

import shlex
from itertools import groupby
from pathlib import Path

from support.pages import PAGES, ROOT, blocks, name_of

CLONE = "path/to/pressgauge"
"""Path of the clone in commands that are not run in it."""


def installs() -> dict[str, list[str]]:
    """Install lines of each console block, by page and line, without what follows ``&&``."""
    found = {}
    for page in PAGES:
        for line, block in blocks(page, "console"):
            typed = [each.removeprefix("$ ").split(" && ")[0] for each in block.splitlines()]
            if lines := [each for each in typed if is_install(each)]:
                found[f"{name_of(page)}:{line}"] = lines
    return found


def is_install(command: str) -> bool:
    """Whether a command is ``pip install``."""
    return shlex.split(command)[:4] == ["python", "-m", "pip", "install"]


def distinct() -> dict[str, list[str]]:
    """Install lines without repeated blocks."""
    by_lines = groupby(sorted(installs().items(), key=lambda item: item[1]), key=lambda item: item[1])
    return {" ".join(where for where, _ in same): lines for lines, same in by_lines}


def folder(lines: list[str], elsewhere: Path) -> Path:
    """The clone, or a folder in which the clone has the path given in the lines."""
    if not any(CLONE in line for line in lines):
        return ROOT
    link = elsewhere / CLONE
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(ROOT, target_is_directory=True)
    return elsewhere
