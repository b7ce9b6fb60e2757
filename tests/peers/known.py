"""Known findings on third-party packages: ``tests/peers/known/MODULE-FACTORY.toml``, with the format of
``--pressgauge-known``."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "known"


@dataclass(frozen=True)
class Known:
    """A law that a subject breaks."""

    law: str
    """In words."""
    pattern: str
    """The finding, with ``*`` as a wildcard."""
    reason: str
    """The cause, and what it matters."""


def path_of(subject: str) -> Path:
    """File of a subject ``module:factory``."""
    return FOLDER / f"{subject.replace(':', '-')}.toml"


def known(subject: str) -> list[Known]:
    """Known findings on a subject ``module:factory``."""
    path = path_of(subject)
    if not path.exists():
        return []
    return [Known(**one) for one in tomllib.loads(path.read_text(encoding="utf-8")).get("known", [])]
