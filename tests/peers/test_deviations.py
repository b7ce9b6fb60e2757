"""Reading files of deviations, and comparing them with outcomes."""

from pathlib import Path

import pytest

from peers.deviations import FOLDER, Deviation, about, compare, read
from support.laws import LAWS, words

FILE = """# A peer
# of two lines.

broken: the best entries are retained
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
    Deviation(
        "the best entries are retained", "broken", "layer * evicted token *", "it keeps others, on purpose", "no"
    ),
    Deviation("something is evicted", "crashed", "KeyError: 'layers[0]'", "it looks for what is not there", "yes"),
]
FOUND = {
    "the best entries are retained": ("broken", "layer 0, row 0 evicted token 3"),
    "something is evicted": ("crashed", "KeyError: 'layers[0]'"),
    "padding has no effect": ("not applicable", "it has none"),
    "a copied cache is independent": ("held", ""),
}


def test_a_file_is_read(tmp_path: Path) -> None:
    """Indented lines continue the previous one, and lines with # are the description."""
    (tmp_path / "peer.txt").write_text(FILE, encoding="utf-8")
    assert read(tmp_path / "peer.txt") == KNOWN
    assert about(tmp_path / "peer.txt") == "A peer of two lines."


@pytest.mark.parametrize(
    "text", ["held: a law\nfinds: x\nwhy: x\nmatters: x\n", "broken: a law\nwhy: x\n", "broken a law\n"]
)
def test_other_formats_are_refused(tmp_path: Path, text: str) -> None:
    """A deviation in another format raises an error that names the file."""
    (tmp_path / "peer.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"peer\.txt: a deviation has broken or crashed, finds, why and matters, got"):
        read(tmp_path / "peer.txt")


def test_listed_deviations_match() -> None:
    """Outcomes that match the file give no differences; brackets in findings are literal."""
    assert compare(KNOWN, FOUND) == []


@pytest.mark.parametrize(
    ("law", "found", "sentence"),
    [
        (
            "the best entries are retained",
            ("held", ""),
            "listed as broken, and held: the best entries are retained ()",
        ),
        (
            "the best entries are retained",
            ("broken", "no entry is held"),
            "listed with another finding: the best entries are retained: no entry is held",
        ),
        (
            "a copied cache is independent",
            ("broken", "the logits of token 3"),
            "broken, and not listed: a copied cache is independent: the logits of token 3",
        ),
    ],
    ids=["stale", "another finding", "not listed"],
)
def test_differences_are_reported(law: str, found: tuple[str, str], sentence: str) -> None:
    """Stale deviations, other findings and unlisted findings are each reported."""
    assert compare(KNOWN, {**FOUND, law: found}) == [sentence]


def test_unknown_and_repeated_laws_are_reported() -> None:
    """Deviations for unknown laws and repeated laws are reported."""
    assert compare([*KNOWN, KNOWN[0]], {}) == [
        "the best entries are retained is listed twice",
        "listed, and no law: the best entries are retained",
        "listed, and no law: something is evicted",
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_files_name_existing_laws(path: Path) -> None:
    """Every file can be read, and its laws exist."""
    assert {one.law for one in read(path)} <= {words(law) for law in LAWS.values()}


def test_the_page_agrees_with_the_files() -> None:
    """docs/peers/kvpress.md has the description and the deviations of every file."""
    page = (FOLDER.parents[2] / "docs" / "peers" / "kvpress.md").read_text(encoding="utf-8").replace("\\", "")
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    assert set(sections) == {path.stem for path in FOLDER.glob("*.txt")}
    for path in FOLDER.glob("*.txt"):
        known = read(path)
        assert about(path) in sections[path.stem]
        assert all(f"| {one.why} | {one.matters} |" in sections[path.stem] for one in known)
        rows = [line for line in sections[path.stem].splitlines() if line.startswith("| ")]
        assert len(rows) == len(known) + 2 * bool(known)
