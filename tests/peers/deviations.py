"""Known deviations of third-party compressors: one text file each, compared with the outcomes of the laws.

A file starts with a description in lines that begin with ``#``. Deviations follow, separated by empty lines, each of
four lines in this order::

    broken: the law in words
    finds: the finding, with * as a wildcard
    why: the cause
    matters: the relevance

``crashed`` may replace ``broken``. Long lines continue in the next line, indented.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

FOLDER = Path(__file__).parent / "deviations"
FIELDS = ("finds", "why", "matters")


@dataclass(frozen=True)
class Deviation:
    """One law that a compressor breaks."""

    law: str
    outcome: str
    """``broken`` or ``crashed``."""
    finds: str
    why: str
    matters: str


def read(path: Path) -> list[Deviation]:
    """Deviations in a file.

    Raises:
        ValueError: if the file does not follow the format.
    """
    text = path.read_text(encoding="utf-8").replace("\n    ", " ")
    blocks = [block.splitlines() for block in text.split("\n\n") if block.strip()]
    found = []
    for lines in blocks:
        said = [tuple(line.split(": ", 1)) for line in lines if not line.startswith("#")]
        if not said:
            continue
        names = [pair[0] for pair in said]
        if names[1:] != list(FIELDS) or names[0] not in ("broken", "crashed") or any(len(pair) != 2 for pair in said):
            raise ValueError(f"{path.name}: a deviation has broken or crashed, finds, why and matters, got {lines}")
        found.append(Deviation(said[0][1], said[0][0], *(pair[1].strip() for pair in said[1:])))
    return found


def about(path: Path) -> str:
    """Description of the compressor in a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def compare(known: list[Deviation], outcomes: dict[str, tuple[str, str]]) -> list[str]:
    """Differences between known deviations and outcomes, a sentence each.

    Args:
        known: deviations of the file.
        outcomes: outcome and finding or reason, by law in words.
    """
    said = {one.law: one for one in known}
    wrong = [f"{law} is listed twice" for law in said if sum(one.law == law for one in known) > 1]
    for law, (outcome, finding) in outcomes.items():
        one = said.pop(law, None)
        if one is None:
            if outcome in ("broken", "crashed"):
                wrong.append(f"{outcome}, and not listed: {law}: {finding}")
        elif outcome != one.outcome:
            wrong.append(f"listed as {one.outcome}, and {outcome}: {law} ({finding})")
        elif not fnmatchcase(finding, one.finds.replace("[", "[[]").replace("?", "[?]")):
            wrong.append(f"listed with another finding: {law}: {finding}")
    return wrong + [f"listed, and no law: {law}" for law in said]
