"""What was measured of a package, stored in ``tests/peers/outcomes/``, so that pages are written from it."""

import json
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parents[2] / "tests" / "peers"
OUTCOMES = PEERS / "outcomes"

PACKAGES: dict[str, dict[str, Any]] = tomllib.loads((PEERS / "packages.toml").read_text(encoding="utf-8"))
"""Title, way in, requirements and subjects of each package."""


@dataclass(frozen=True)
class Law:
    """Outcome of a law, over the models, dtypes and options it ran for."""

    result: str
    """``broken``, ``held`` or ``not applicable``."""
    findings: list[str] = field(default_factory=list)
    """Findings of a broken law, or the reasons why it is not applicable."""


@dataclass(frozen=True)
class Verified:
    """A finding that a script in ``tests/peers/verify/`` verifies."""

    finding: str
    """What is wrong, from the script's docstring."""
    measured: str
    """Numbers, or the exception."""
    right: str
    """What is right."""


@dataclass(frozen=True)
class Measured:
    """What was measured of a package."""

    releases: dict[str, str]
    """Of the package, torch and transformers."""
    subjects: dict[str, dict[str, Law]]
    """Laws in words, by subject."""
    verified: list[Verified]

    def count(self, subject: str, result: str) -> int:
        """Number of laws with a result."""
        return sum(law.result == result for law in self.subjects[subject].values())


def read(package: str) -> Measured:
    """What is stored for a package."""
    given = json.loads((OUTCOMES / f"{package}.json").read_text(encoding="utf-8"))
    subjects = {name: {law: Law(**one) for law, one in laws.items()} for name, laws in given["subjects"].items()}
    return Measured(given["releases"], subjects, [Verified(**one) for one in given["verified"]])


def write(package: str, measured: Measured) -> None:
    """Store what was measured."""
    OUTCOMES.mkdir(exist_ok=True)
    text = json.dumps(asdict(measured), indent=1, ensure_ascii=False)
    (OUTCOMES / f"{package}.json").write_text(text + "\n", encoding="utf-8")
