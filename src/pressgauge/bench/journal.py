"""Journal of an unfinished sweep, to resume it after an interruption."""

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from pressgauge.bench.cells import Cell
from pressgauge.bench.files import naming
from pressgauge.bench.parts import Part
from pressgauge.bench.row import Row, Source
from pressgauge.bench.task_row import TaskInput, TaskRow, TaskSource

_FIRST = b'{"plan": '
"""Beginning of a journal."""


def digest(value: Any) -> str:
    """SHA-256 key of a JSON-serialisable value, equal for equal values only."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON, equal in every process: objects without a JSON form by their fields, names or types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | {
            field.name: plain(getattr(value, field.name)) for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {str(name): plain(at) for name, at in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(at) for at in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if callable(value):
        return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


class Journal:
    """A JSON Lines file: the plan of the sweep, then its results, each appended as soon as it is available.

    Every line ends with a digest of itself. A line that is damaged costs its result and no other.

    Each rank of a sweep has a file of its own, whose name ends with the rank's number if it is not 0. All of them are
    read, whichever rank wrote them.

    Args:
        path: the file of rank 0, created with the first result.
        resume: whether to continue an existing file.
        plan: everything that determines the results and is known before them, by name. A file of another plan is not
            continued.
        rank: the rank that writes.

    Attributes:
        path: the file that this rank writes.
        rows: results by key, as they are read from JSON.
        damaged: lines that are left out, by file and number from 1 on, and what is wrong with each.

    Raises:
        ValueError: if the file exists and ``resume`` is false, it is no journal, or it is of another plan.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: Path, *, resume: bool, plan: Mapping[str, Any] | None = None, rank: int = 0) -> None:
        self.path = path.with_name(f"{path.name}.{rank}") if rank else path
        self.damaged: dict[tuple[Path, int], str] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self._first = path
        self._plan = None if plan is None else plain(plan)
        for each in self.files:
            if not each.is_file():
                raise ValueError(f"{str(each)!r} must be a file, where unfinished results are kept: move it away")
            if not resume:
                raise ValueError(
                    f"{str(each)!r} has the results of a sweep that was interrupted: continue with --resume, or delete "
                    "it"
                )
            self._read(each, each.read_bytes())

    @property
    def files(self) -> list[Path]:
        """The files of all ranks that exist."""
        return files_of(self._first)

    def _read(self, path: Path, content: bytes) -> None:
        """Take in the lines of a file."""
        # A line without an end was being written when the sweep was interrupted.
        whole = content[: content.rfind(b"\n") + 1]
        old, rows, damaged = None, {}, {}
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                entry = _entry(line)
            except ValueError as error:
                damaged[number] = str(error)
                continue
            if "plan" in entry:
                old = entry["plan"]
            else:
                rows[entry["key"]] = entry["row"]
        broken = content[len(whole) :]
        begun = broken.startswith(_FIRST) or _FIRST.startswith(broken)
        if old is None and not rows and (damaged or not (whole or begun)):
            number, reason = next(iter(damaged.items()), (1, "it has no end"))
            raise ValueError(
                f"{str(path)!r} must be the journal of an interrupted sweep, and has nothing of one "
                f"(line {number}: {reason}): delete it, or move it away"
            )
        if old is not None and self._plan is not None and (found := differences(old, self._plan)):
            raise ValueError(
                f"{str(path)!r} has the results of another sweep ({'; '.join(found)}): repeat its command "
                "with --resume, give another --json or --report, or delete it"
            )
        if whole != content:
            os.truncate(path, len(whole))
        self.rows |= rows
        self.damaged |= {(path, number): reason for number, reason in damaged.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, key: str) -> Row | None:
        """The result with this key, or None."""
        try:
            # Parsed on lookup: a row of another version has another key, and may have other fields.
            return Row.from_dict(self.rows[key])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def check(self, source: Source) -> None:
        """Raise ``ValueError`` if results of this model on this text were taken with other weights or tokens."""
        same = ("model", "text", "dtype", "samples", "tokens", "prompt")
        digests = {"weights_sha256": "weights or configuration", "text_sha256": "tokens of the text"}
        self._check(asdict(source), same, digests, f"{source.model} on {source.text}")

    def check_task(self, source: TaskSource, given: TaskInput) -> None:
        """Raise ``ValueError`` if results of this model in this task were taken with other weights or prompts."""
        same = ("model", "task", "dtype", "samples", "tokens")
        digests = {"weights_sha256": "weights or configuration", "prompts_sha256": "prompts"}
        self._check(asdict(source) | asdict(given), same, digests, f"{source.model} in task {given.task}")

    def _check(self, now: Mapping[str, Any], same: Sequence[str], digests: Mapping[str, str], where: str) -> None:
        for row in self.rows.values():
            if any(row.get(name) != now[name] for name in same):
                continue
            for name, what in digests.items():
                if row.get(name, now[name]) != now[name]:
                    raise ValueError(
                        f"{str(self.path)!r} has results of {where} with other {what}: put them back and repeat the "
                        "command, or delete the file"
                    )

    def find_task(self, key: str) -> TaskRow | None:
        """The result of a task with this key, or None."""
        try:
            return TaskRow.from_dict(self.rows[key])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def find_part(self, key: str) -> Part | None:
        """The result of a sample with this key, or None."""
        try:
            return Part.from_dict(self.rows[key])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def cells(self, samples: int) -> set[Cell]:
        """Cells of which there is a result of all samples."""
        parts = Counter(Cell.of(row) for row in self.rows.values() if "sample" in row)
        whole = {Cell.of(row) for row in self.rows.values() if "sample" not in row}
        return whole | {cell for cell, known in parts.items() if known == samples}

    def reread(self) -> None:
        """Take in what other ranks have written since."""
        for path in self.files:
            if path != self.path:
                for line in path.read_bytes().split(b"\n")[:-1]:
                    with suppress(ValueError):
                        entry = _entry(line)
                        self.rows |= {entry["key"]: entry["row"]} if "key" in entry else {}

    def add(self, key: str, row: Row | TaskRow | Part) -> None:
        """Append a result.

        Raises:
            OSError: if it cannot be written, with the name of the file, which then has no part of it.
        """
        self.rows[key] = row.as_dict()
        with naming(self.path), self.path.open("ab") as file:
            before = file.tell()
            lines = _line({"plan": self._plan}) if before == 0 and self._plan is not None else b""
            lines += _line({"key": key, "row": self.rows[key]})
            try:
                file.write(lines)
                file.flush()
            except OSError:
                os.truncate(self.path, before)
                raise

    def close(self) -> None:
        """Delete the files of all ranks, once their results have been written elsewhere."""
        for path in self.files:
            path.unlink(missing_ok=True)


def files_of(path: Path) -> list[Path]:
    """The journals of all ranks that exist beside that of rank 0."""
    ranks = [one for one in path.parent.glob(f"{glob.escape(path.name)}.*") if one.suffix[1:].isdecimal()]
    ranks.sort(key=lambda one: int(one.suffix[1:]))
    return [*([path] if path.exists() else []), *ranks]


def threads_of(path: Path) -> int | None:
    """Threads of the sweep whose journals are at this path; None if there are none."""
    for file in files_of(path):
        with suppress(OSError, ValueError), file.open("rb") as lines:
            plan = _entry(lines.readline().rstrip(b"\n")).get("plan")
            if isinstance(plan, dict) and isinstance(plan.get("threads"), int):
                return int(plan["threads"])
    return None


def _line(entry: Mapping[str, Any]) -> bytes:
    """The line of an entry."""
    return json.dumps({**entry, "sha256": digest(entry)}).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any]:
    """The entry of a line.

    Raises:
        ValueError: if it is none, or was changed since.
    """
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(entry, dict) or sorted(entry) not in (["key", "row", "sha256"], ["plan", "sha256"]):
        raise ValueError("it is no line of a journal of this version")
    sha256 = entry.pop("sha256")
    try:
        intact = digest(entry) == sha256
    except RecursionError:
        intact = False
    if not intact:
        raise ValueError("it was changed: its digest does not match")
    return entry


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two plans, a phrase for each, the first five."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in {**old, **new}:
            place = f"{where} {name}".strip()
            if name not in old or name not in new:
                found.append(f"{place}: only {'now' if name in new else 'there'}")
            else:
                found += differences(old[name], new[name], place)
        return found[:5]
    if old == new:
        return []
    return [f"{where}: {_shown(old)} there and {_shown(new)} now"]


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
