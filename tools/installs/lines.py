"""The install lines of README and docs, each in the folder that it is typed in."""

import shlex
from itertools import groupby
from pathlib import Path

from support.pages import PAGES, ROOT, blocks, name_of

CLONE = "path/to/pressgauge"
"""What the pages write for the clone, where a command is not typed in it."""


def installs() -> dict[str, list[str]]:
    """By where it is, the install lines of each console block; what follows ``&&`` is left away."""
    found = {}
    for page in PAGES:
        for line, block in blocks(page, "console"):
            typed = [each.removeprefix("$ ").split(" && ")[0] for each in block.splitlines()]
            if lines := [each for each in typed if is_install(each)]:
                found[f"{name_of(page)}:{line}"] = lines
    return found


def is_install(command: str) -> bool:
    """Whether pip is to install something."""
    return shlex.split(command)[:4] == ["python", "-m", "pip", "install"]


def distinct() -> dict[str, list[str]]:
    """The same, without blocks that repeat another."""
    by_lines = groupby(sorted(installs().items(), key=lambda item: item[1]), key=lambda item: item[1])
    return {" ".join(where for where, _ in same): lines for lines, same in by_lines}


def folder(lines: list[str], elsewhere: Path) -> Path:
    """The clone; or, for lines that give its path, a folder in which it has this path."""
    if not any(CLONE in line for line in lines):
        return ROOT
    link = elsewhere / CLONE
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(ROOT, target_is_directory=True)
    return elsewhere
