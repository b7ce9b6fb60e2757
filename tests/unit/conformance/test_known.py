"""Known findings are read from TOML, and matched with findings."""

import re
from pathlib import Path

import pytest

from pressgauge.conformance.known import Known, known_finding, read, unmatched

ENTRY = """
[[known]]
law = "rows are independent"
pattern = "row * (1 of 2) has other logits?*"
reason = "one scale for all rows"
"""
ROWS = Known("rows are independent", "row * (1 of 2) has other logits?*", "one scale for all rows")


def test_entries_are_read(tmp_path: Path) -> None:
    """A file gives its entries; an empty file gives none."""
    path = tmp_path / "known.toml"
    path.write_text(ENTRY, encoding="utf-8")
    assert read(path) == [ROWS]
    path.write_text("", encoding="utf-8")
    assert read(path) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[known]", "cannot be read: "),
        ("known = 3", "must consist of [[known]] entries, got 3"),
        (ENTRY + "[other]", "must consist of [[known]] entries, got 'other'"),
        (ENTRY.replace("reason", "why"), "entry 1 of "),
        (ENTRY.replace('"one scale for all rows"', '""'), "must have the texts law, pattern, reason, got"),
        (ENTRY.replace('"one scale for all rows"', "3"), "must have the texts law, pattern, reason, got"),
        (ENTRY + ENTRY, "lists an entry twice: rows are independent: row *"),
    ],
    ids=["no TOML", "no list", "other table", "other key", "empty text", "number", "twice"],
)
def test_other_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """A file of another format is refused with its name and the rule."""
    path = tmp_path / "known.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that does not exist is refused with its name."""
    with pytest.raises(ValueError, match=r"nowhere\.toml cannot be read: "):
        read(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("law", "finding", "expected"),
    [
        ("rows are independent", "row 1 (1 of 2) has other logits?", True),
        ("rows are independent", "row 12 and 13 (1 of 2) has other logits? yes", True),
        ("rows are independent", "row 1 (1 of 2) has other logits.", False),
        ("rows are independent", "the row 1 (1 of 2) has other logits?", False),
        ("padding has no effect", "row 1 (1 of 2) has other logits?", False),
    ],
)
def test_only_a_star_is_a_wildcard(law: str, finding: str, expected: bool) -> None:
    """A pattern matches the whole finding of its law, and only ``*`` stands for other text."""
    assert ROWS.matches(law, finding) is expected
    assert (known_finding([ROWS], law, finding) is not None) is expected
    assert (unmatched([ROWS], [(law, finding)]) == []) is expected
