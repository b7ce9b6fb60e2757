"""What an unfinished sweep has measured so far, so that it can go on after an interruption."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pressgauge.bench.row import Row


def digest(value: Any) -> str:
    """A key for everything that determines a result: the same for equal values only. ``value`` must be JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Journal:
    """A file with a line per result, written as soon as the result is there.

    Args:
        path: the file; it is made with the first result.
        resume: go on with what is in it.

    Raises:
        ValueError: if there is an unfinished sweep and it is not to be resumed.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        if not resume:
            raise ValueError(
                f"{str(path)!r} has the results of a sweep that was interrupted: go on with --resume, or delete it"
            )
        text = path.read_text(encoding="utf-8")
        # What follows the last end of line was being written when the sweep was interrupted.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(path, len(whole.encode()))
        for line in whole.splitlines():
            entry = json.loads(line)
            self._rows[entry["key"]] = entry["row"]

    def find(self, key: str) -> Row | None:
        """The result with this key, if there is one."""
        # Only a row with this key is of this version, whose fields are known.
        return Row.from_dict(self._rows[key]) if key in self._rows else None

    def add(self, key: str, row: Row) -> None:
        """Keep a result."""
        self._rows[key] = row.as_dict()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": self._rows[key]}) + "\n")

    def close(self) -> None:
        """Delete the file, once its results are written elsewhere."""
        self.path.unlink(missing_ok=True)
