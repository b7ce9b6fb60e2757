"""Known findings on third-party packages: ``tests/peers/known/MODULE-FACTORY.toml``."""

from pathlib import Path

from pressgauge.conformance.known import Known, read

FOLDER = Path(__file__).parent / "known"


def known(subject: str) -> list[Known]:
    """Known findings on a subject ``module:factory``."""
    path = FOLDER / f"{subject.replace(':', '-')}.toml"
    return read(path) if path.exists() else []
