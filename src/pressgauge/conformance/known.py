"""Known findings, which do not fail an audit: read from a TOML file, and matched with those of the laws.

Each entry names a law in words, a pattern of its finding, and a reason::

    [[known]]
    law = "rows are independent"
    pattern = "row * with 0 columns of padding has other logits in a batch than alone*"
    reason = "One scale for the whole batch; reported as issue 12."

In a pattern, ``*`` stands for any text, also none; every other character stands for itself. It must match the whole
finding.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Known:
    """A known finding.

    Attributes:
        law: the law in words.
        pattern: the finding, with ``*`` as a wildcard.
        reason: its cause, or where it is reported.
    """

    law: str
    pattern: str
    reason: str

    def matches(self, law: str, finding: str) -> bool:
        """Whether it is a finding of a law, given in words."""
        pattern = ".*".join(map(re.escape, self.pattern.split("*")))
        return law == self.law and re.fullmatch(pattern, finding, flags=re.DOTALL) is not None

    def __str__(self) -> str:
        return f"{self.law}: {self.pattern}"


def read(path: Path) -> list[Known]:
    """Known findings of a file.

    Raises:
        ValueError: if the file does not exist, is no TOML, or does not follow the format.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"known findings {path} cannot be read: {error}") from error
    names = [field.name for field in fields(Known)]
    entries = given.pop("known", [])
    if given or not isinstance(entries, list):
        raise ValueError(
            f"known findings {path} must consist of [[known]] entries, got {', '.join(given) or entries!r}"
        )
    for number, entry in enumerate(entries, 1):
        if sorted(entry) != sorted(names) or not all(isinstance(text, str) and text.strip() for text in entry.values()):
            raise ValueError(f"entry {number} of {path} must have the texts {', '.join(names)}, got {entry}")
    known = [Known(**entry) for entry in entries]
    if twice := next((one for one in known if known.count(one) > 1), None):
        raise ValueError(f"{path} lists an entry twice: {twice}")
    return known


def known_finding(known: Iterable[Known], law: str, finding: str) -> Known | None:
    """The first entry that matches a finding of a law, given in words; None if none does."""
    return next((one for one in known if one.matches(law, finding)), None)


def unmatched(known: Iterable[Known], findings: Iterable[tuple[str, str]]) -> list[Known]:
    """Entries that match none of the findings, each given with its law in words."""
    pairs = list(findings)
    return [one for one in known if not any(one.matches(law, finding) for law, finding in pairs)]
