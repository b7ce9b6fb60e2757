"""Journals: damaged lines cost their results only, and results of another plan are not lost."""

import errno
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pressgauge.bench.journal import Journal, plain
from pressgauge.bench.row import Row, Source

PLAN = {"presses": {"knorm": {"0.5": {"recent": 0}}}, "tokens": 40, "texts": ("reference",)}
SOURCE = Source("m", "t", "float32", "cpu", 1, 40, 1, "text", "weights", 7)


def row(ratio: float) -> Row:
    """A row with this keep ratio."""
    return Row(
        "knorm",
        "budget",
        ratio,
        16,
        (0,),
        ppl=3.5,
        ppl_change=0.1,
        ppl_interval=(0.05, 0.15),
        ppl_interval_units="8 blocks",
        accuracy=0.5,
        scored_tokens=9,
        affected_tokens=8,
        evictions=7,
        held=(4, 3),
        kv_bytes=5,
        vacuous=False,
        nll_sums=((1.1, 2.2),),
        token_counts=((2.0, 2.0),),
        **SOURCE.__dict__,
    )


ROWS = {str(number): row(number / 10) for number in range(1, 6)}


def written(path: Path) -> bytes:
    """A journal of five rows, and its content."""
    journal = Journal(path, resume=False, plan=PLAN)
    for key, one in ROWS.items():
        journal.add(key, one)
    return path.read_bytes()


def found(path: Path) -> dict[str, Row]:
    """Rows of a resumed journal."""
    journal = Journal(path, resume=True, plan=PLAN)
    return {key: one for key in ROWS if (one := journal.find(key)) is not None}


def test_a_journal_begins_with_its_plan(tmp_path: Path) -> None:
    """The first line is the plan, and each further one a row."""
    first, *others = written(tmp_path / "journal").splitlines()
    assert json.loads(first)["plan"] == {**PLAN, "texts": ["reference"]}
    assert [json.loads(line)["key"] for line in others] == list(ROWS)
    assert found(tmp_path / "journal") == ROWS


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_costs_the_rows_of_its_line(tmp_path: Path, place: float, flip: int) -> None:
    """A changed byte costs the row of its line, or of two lines if it was their break; all others are intact."""
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    content = bytearray(written(path))
    at = int(place * len(content))
    line = content[:at].count(b"\n")
    broken_end = content[at] == ord("\n")
    content[at] ^= flip
    path.write_bytes(content)
    journal = Journal(path, resume=True, plan=PLAN)
    lost = {list(ROWS)[number - 1] for number in ({line, line + 1} if broken_end else {line}) if 1 <= number <= 5}
    assert {key for key in ROWS if journal.find(key) != ROWS[key]} == lost
    assert {key for key in ROWS if journal.find(key) is None} == lost
    if not (broken_end and line == 5):
        # The last line without an end looks like one that was being written.
        assert (path, line + 1) in journal.damaged


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{}", "it is no line of a journal of this version"),
        (b"[]", "it is no line of a journal of this version"),
        (b"", "it is not JSON"),
        (b"garbage", "it is not JSON"),
        (b"\xff\xfe\x00", "it is not JSON"),
        (b'{"a":' * 100_000, "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"1" * 10_000, "it is not JSON"),
        (b'{"key": "9", "row": {"press": "knorm"}}', "it is no line of a journal of this version"),
        (b'{"key": [], "row": 5, "sha256": "0"}', "it was changed: its digest does not match"),
    ],
    ids=str,
)
@pytest.mark.parametrize("number", [1, 3, 7])
def test_a_line_that_is_none_of_ours_is_named_and_left_out(
    tmp_path: Path, line: bytes, reason: str, number: int
) -> None:
    """Any other line is left out with its number and reason, wherever it is, and costs no row."""
    path = tmp_path / "journal"
    lines = written(path).splitlines()
    lines.insert(number - 1, line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert Journal(path, resume=True, plan=PLAN).damaged == {(path, number): reason}
    assert found(path) == ROWS


@pytest.mark.parametrize(
    "content", [b"{}\n", b"my notes", b"my notes\n", b"\x00" * 50, b"[" * 100_000 + b"\n", b"\n\n", b"{}"]
)
def test_a_file_that_is_no_journal_is_refused_and_not_changed(tmp_path: Path, content: bytes) -> None:
    """A file without any line of ours may be the user's: it is neither used nor changed."""
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"journal' must be the journal of an interrupted sweep.*\(line 1: it .*\): de"
    ):
        Journal(path, resume=True, plan=PLAN)
    assert path.read_bytes() == content


@pytest.mark.parametrize("length", [0, 1, 9, 40])
def test_a_sweep_killed_while_it_began_its_journal_is_resumed(tmp_path: Path, length: int) -> None:
    """The beginning of a first line is what a kill leaves, and is resumed without rows."""
    path = tmp_path / "journal"
    path.write_bytes(written(tmp_path / "whole")[:length])
    journal = Journal(path, resume=True, plan=PLAN)
    journal.add("1", ROWS["1"])
    assert journal.damaged == {}
    assert found(path) == {"1": ROWS["1"]}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_journal_killed_anywhere_is_continued(tmp_path: Path, share: float) -> None:
    """From any prefix of a journal, adding the missing rows gives the file of an uninterrupted sweep."""
    path, whole = tmp_path / "journal", tmp_path / "whole"
    whole.unlink(missing_ok=True)
    content = written(whole)
    path.write_bytes(content[: int(share * len(content))])
    journal = Journal(path, resume=True, plan=PLAN)
    assert journal.damaged == {}
    for key, one in ROWS.items():
        if journal.find(key) is None:
            journal.add(key, one)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": 41}, "(tokens: 40 there and 41 now)"),
        ({"texts": ("reference", "x")}, "(texts: reference there and reference, x now)"),
        ({"presses": {"knorm": {"0.5": {"recent": 8}}}}, "(presses knorm 0.5 recent: 0 there and 8 now)"),
        ({"presses": {"knorm": {}}}, "(presses knorm 0.5: only there)"),
        ({"timing": True}, "(timing: only now)"),
    ],
)
def test_results_of_another_plan_are_kept(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """A journal of another plan is refused with what differs, and is not changed."""
    path = tmp_path / "journal"
    content = written(path)
    with pytest.raises(ValueError, match=r"has the results of another sweep .*repeat its command with --resume") as e:
        Journal(path, resume=True, plan={**PLAN, **change})
    assert words in str(e.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("other", [replace(SOURCE, weights_sha256="other"), replace(SOURCE, text_sha256="other")])
def test_results_of_other_weights_or_tokens_are_kept(tmp_path: Path, other: Source) -> None:
    """Rows of a model or text of the same name but other content are refused, not left to be deleted."""
    path = tmp_path / "journal"
    written(path)
    journal = Journal(path, resume=True, plan=PLAN)
    journal.check(SOURCE)
    journal.check(replace(SOURCE, model="another", weights_sha256="x"))
    with pytest.raises(ValueError, match=r"has results of m on t with other (weights|tokens)"):
        journal.check(other)


def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a row cannot be written, the error names the file, whose earlier lines are intact."""
    path = tmp_path / "journal"
    content = written(path)
    journal = Journal(path, resume=True, plan=PLAN)
    opened = Path.open

    class Full:
        """A file whose disk is full after half of what is written."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode="r": Full(opened(self, mode)))
    with pytest.raises(OSError, match="No space left on device") as error:
        journal.add("6", row(0.6))
    monkeypatch.undo()
    assert error.value.filename == str(path)
    assert path.read_bytes() == content


def test_a_plan_is_the_same_in_every_process() -> None:
    """Objects are known by their fields, functions by their names, and others without their addresses."""

    @dataclass
    class Thing:
        number: int

    assert plain({"a": Thing(3), "b": (1, None), "c": {2, 1}}) == {
        "a": {"class": "Thing", "number": 3},
        "b": [1, None],
        "c": [1, 2],
    }
    assert plain(written) == f"{__name__}:written"
    assert plain(object()) == "<object object>"
