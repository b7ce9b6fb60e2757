"""Pages of third-party packages agree with what was measured, and known findings with both."""

import tomllib
from pathlib import Path

import pytest

from peers.known import FOLDER, known
from tools.peers import pages
from tools.peers.measured import OUTCOMES, PACKAGES, PEERS, read

MEASURED = sorted(path.stem for path in OUTCOMES.glob("*.json"))


def test_every_package_is_measured_and_verified() -> None:
    """Every package of the table has outcomes, a page and a script."""
    assert sorted(PACKAGES) == MEASURED
    for package in PACKAGES:
        assert (pages.DOCS / "peers" / f"{package}.md").exists()
        assert (PEERS / "verify" / f"test_{package.replace('-', '_')}.py").exists()


def test_every_requirement_is_pinned() -> None:
    """Requirements name one release, of the package first."""
    for about in PACKAGES.values():
        assert all(requirement.count("==") == 1 for requirement in about["requires"])


@pytest.mark.parametrize("package", MEASURED)
def test_the_page_is_written_from_what_was_measured(package: str) -> None:
    """A page has what its stored outcomes say."""
    page = (pages.DOCS / "peers" / f"{package}.md").read_text(encoding="utf-8")
    assert page == "\n".join(pages.page(package, read(package))) + "\n"


def test_the_table_is_written_from_what_was_measured() -> None:
    """The table has a line for every subject of every package."""
    text = (pages.DOCS / "peers.md").read_text(encoding="utf-8")
    assert text == "\n".join(pages.table()) + "\n"


@pytest.mark.parametrize("package", MEASURED)
def test_broken_laws_are_known(package: str) -> None:
    """Every finding is listed with a reason, and every listed one occurred."""
    assert pages.differences(read(package)) == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_known_findings_have_reasons(path: Path) -> None:
    """A known finding has a law, a pattern and a reason, and belongs to a subject."""
    subject = ":".join(path.stem.rsplit("-", 1))
    assert any(subject in about["subjects"] for about in PACKAGES.values())
    assert all(one.law and one.pattern and one.reason for one in known(subject))
    assert set(tomllib.loads(path.read_text(encoding="utf-8"))) == {"known"}
