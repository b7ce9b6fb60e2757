"""Survivors of a mutation run are compared with the list of equivalent mutants."""

import re
from pathlib import Path

import pytest

from tools import survivors

LIST = """# Lines with # are comments.

Nothing can tell.
    rules.ledger.Ledger.crop
    - a = 1
    + a = 2
    history.fixed._slots
    - b = 1
    - c = 1
    + b = c = 1

Nor this.
    presses.ranking.rank
    - return x
    + return -(-x)
"""
DIFF = """--- budget.py
+++ budget.py
@@ -1,3 +1,3 @@
 def crop(self):
-    a = 1
+    a = 2
     return a
"""
CROP = "pressgauge.rules.ledger.xǁLedgerǁcrop__mutmut_3"
MUTANTS = {
    "known": ("rules.ledger.Ledger.crop", "- a = 1", "+ a = 2"),
    "new": ("rules.ledger.Ledger.crop", "- a = 1", "+ a = 3"),
}


def test_a_list_is_read() -> None:
    """A reason applies to all changes below it."""
    assert survivors.listed(LIST) == {
        ("rules.ledger.Ledger.crop", "- a = 1", "+ a = 2"): "Nothing can tell.",
        ("history.fixed._slots", "- b = 1", "- c = 1", "+ b = c = 1"): "Nothing can tell.",
        ("presses.ranking.rank", "- return x", "+ return -(-x)"): "Nor this.",
    }


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        (CROP, "rules.ledger.Ledger.crop"),
        ("pressgauge.history.fixed.x__slots__mutmut_12", "history.fixed._slots"),
        ("pressgauge.presses.ranking.x_rank__mutmut_1", "presses.ranking.rank"),
        ("pressgauge.history.record.xǁHistoryǁ__init____mutmut_2", "history.record.History.__init__"),
    ],
)
def test_a_mutant_is_named_by_its_function(mutant: str, name: str) -> None:
    """Names of mutmut give functions, also of classes, private names and special methods."""
    assert survivors.function(mutant) == name


def test_a_change_is_its_lines() -> None:
    """A change consists of the removed and added lines of a diff, without its header and context."""
    assert survivors.change(CROP, DIFF) == MUTANTS["known"]


@pytest.mark.parametrize(
    ("fates", "known", "code", "sentence"),
    [
        ("killed", {}, 0, "0 changes survived, 0 are listed"),
        ("timeout", {}, 0, "0 changes survived, 0 are listed"),
        ("survived", {MUTANTS["known"]: "x"}, 0, "1 changes survived, 1 are listed"),
        ("survived", {}, 1, "survived, and is not listed"),
        ("segfault", {}, 1, "survived, and is not listed"),
        ("killed", {MUTANTS["new"]: "x"}, 1, "listed as equivalent, and did not survive"),
        ("not checked", {}, 1, "the run is not complete"),
    ],
)
def test_survivors_are_exactly_the_listed_changes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    fates: str,
    known: dict[tuple[str, ...], str],
    code: int,
    sentence: str,
) -> None:
    """Unlisted survivors, listed changes that were killed and incomplete runs fail."""
    path = tmp_path / "equivalent.txt"
    lines = [f"{reason}\n    " + "\n    ".join(change) for change, reason in known.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(survivors, "EQUIVALENT", path)
    monkeypatch.setattr(survivors, "mutmut", lambda what, *_: f"    {CROP}: {fates}\n" if what == "results" else DIFF)
    assert survivors.main() == code
    assert sentence in capsys.readouterr().out


def test_the_page_lists_every_equivalent_change() -> None:
    """The page has a row for every listed change, with its function and reason."""
    page = (Path(__file__).parents[2] / "docs" / "mutation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| .* \| (.*) \|$", page.partition("## Changes that survive")[2], re.MULTILINE)
    listed = survivors.listed(survivors.EQUIVALENT.read_text(encoding="utf-8"))
    assert sorted(rows) == sorted((change[0], reason) for change, reason in listed.items())
