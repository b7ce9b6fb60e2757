"""Journal of an unfinished sweep, to resume it after an interruption."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pressgauge.bench.row import Row
from pressgauge.bench.task_row import TaskRow


def digest(value: Any) -> str:
    """SHA-256 key of a JSON-serialisable value, equal for equal values only."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Journal:
    """A JSON Lines file of results, each appended as soon as it is available.

    Args:
        path: the file, created with the first result.
        resume: whether to continue an existing file.

    Raises:
        ValueError: if the file exists and ``resume`` is false.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        if not resume:
            raise ValueError(
                f"{str(path)!r} has the results of a sweep that was interrupted: continue with --resume, or delete it"
            )
        text = path.read_text(encoding="utf-8")
        # A line without an end was being written when the sweep was interrupted.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(path, len(whole.encode()))
        for line in whole.splitlines():
            entry = json.loads(line)
            self._rows[entry["key"]] = entry["row"]

    def find(self, key: str) -> Row | None:
        """The result with this key, or None."""
        # Parsed on lookup: only rows with a current key were written by this version, with its fields.
        return Row.from_dict(self._rows[key]) if key in self._rows else None

    def find_task(self, key: str) -> TaskRow | None:
        """The result of a task with this key, or None."""
        return TaskRow.from_dict(self._rows[key]) if key in self._rows else None

    def add(self, key: str, row: Row | TaskRow) -> None:
        """Append a result."""
        self._rows[key] = row.as_dict()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": self._rows[key]}) + "\n")

    def close(self) -> None:
        """Delete the file, once its results have been written elsewhere."""
        self.path.unlink(missing_ok=True)
