"""Files of deviations are read, and what is not as they say is said."""

from pathlib import Path

import pytest

from peers.deviations import FOLDER, Deviation, about, compare, read
from support.laws import LAWS, words

FILE = """# A peer
# of two lines.

broken: the best entries stay
finds: layer * evicted token *
why: it keeps others,
    on purpose
matters: no

crashed: something is evicted
finds: KeyError: 'layers[0]'
why: it looks for what is not there
matters: yes
"""
KNOWN = [
    Deviation("the best entries stay", "broken", "layer * evicted token *", "it keeps others, on purpose", "no"),
    Deviation("something is evicted", "crashed", "KeyError: 'layers[0]'", "it looks for what is not there", "yes"),
]
FOUND = {
    "the best entries stay": ("broken", "layer 0, row 0 evicted token 3"),
    "something is evicted": ("crashed", "KeyError: 'layers[0]'"),
    "padding counts for nothing": ("not applicable", "it has none"),
    "a copy goes its own way": ("held", ""),
}


def test_a_file_is_read(tmp_path: Path) -> None:
    """Lines that are indented go on; what stands behind # is for people."""
    (tmp_path / "peer.txt").write_text(FILE, encoding="utf-8")
    assert read(tmp_path / "peer.txt") == KNOWN
    assert about(tmp_path / "peer.txt") == "A peer of two lines."


@pytest.mark.parametrize(
    "text", ["held: a law\nfinds: x\nwhy: x\nmatters: x\n", "broken: a law\nwhy: x\n", "broken a law\n"]
)
def test_what_is_written_otherwise_is_refused(tmp_path: Path, text: str) -> None:
    """In one sentence that names the file."""
    (tmp_path / "peer.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"peer\.txt: a deviation has broken or crashed, finds, why and matters, got"):
        read(tmp_path / "peer.txt")


def test_what_is_as_the_file_says_is_right() -> None:
    """Brackets stand for themselves."""
    assert compare(KNOWN, FOUND) == []


@pytest.mark.parametrize(
    ("law", "found", "sentence"),
    [
        (
            "the best entries stay",
            ("held", ""),
            "listed as broken, and held: the best entries stay ()",
        ),
        (
            "the best entries stay",
            ("broken", "no entry is held"),
            "listed with another finding: the best entries stay: no entry is held",
        ),
        (
            "a copy goes its own way",
            ("broken", "the logits of token 3"),
            "broken, and not listed: a copy goes its own way: the logits of token 3",
        ),
    ],
    ids=["stale", "another finding", "not listed"],
)
def test_what_is_not_as_the_file_says_is_said(law: str, found: tuple[str, str], sentence: str) -> None:
    """A line that no longer matches, and a finding that has no line."""
    assert compare(KNOWN, {**FOUND, law: found}) == [sentence]


def test_a_law_that_there_is_not_is_said() -> None:
    """A law that was given another name leaves a stale line behind."""
    assert compare([*KNOWN, KNOWN[0]], {}) == [
        "the best entries stay is listed twice",
        "listed, and no law: the best entries stay",
        "listed, and no law: something is evicted",
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_files_can_be_read(path: Path) -> None:
    """All of them, and they name laws that there are."""
    assert {one.law for one in read(path)} <= {words(law) for law in LAWS.values()}


def test_the_page_says_what_the_files_say() -> None:
    """Peer by peer, so that a line that was changed is not left standing on the page."""
    page = (FOLDER.parents[2] / "docs" / "peers.md").read_text(encoding="utf-8").replace("\\", "")
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    assert set(sections) == {path.stem for path in FOLDER.glob("*.txt")}
    for path in FOLDER.glob("*.txt"):
        known = read(path)
        assert about(path) in sections[path.stem]
        assert all(f"| {one.why} | {one.matters} |" in sections[path.stem] for one in known)
        rows = [line for line in sections[path.stem].splitlines() if line.startswith("| ")]
        assert len(rows) == len(known) + 2 * bool(known)
