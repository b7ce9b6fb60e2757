"""Files of rows: ``{"rows": [...], "provenance": {...}}``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pressgauge.bench.fields import read_row
from pressgauge.bench.files import write_files
from pressgauge.bench.row import Row


@dataclass(frozen=True)
class Results:
    """Rows of one sweep, and what they were measured with."""

    rows: tuple[Row, ...]
    provenance: Mapping[str, str]


def write_results(path: Path, rows: Sequence[Row], provenance: Mapping[str, str]) -> None:
    """Write rows to a file, completely or not at all."""
    content = {"rows": [row.as_dict() for row in rows], "provenance": dict(provenance)}
    write_files(path.parent, {path.name: json.dumps(content, indent=1, allow_nan=False) + "\n"})


def read_results(path: Path) -> Results:
    """Rows of a file that ``pressgauge measure --json`` wrote.

    Raises:
        ValueError: if the file is not one of these, or has two rows of one measurement.
        OSError: if it cannot be read.
    """
    if path.is_char_device() or path.is_block_device():
        raise ValueError(f"{str(path)!r} must be a file that `pressgauge measure --json` wrote, and is a device")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(read_row(row) for row in content["rows"])
        return Results(rows, {str(name): str(value) for name, value in content["provenance"].items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{str(path)!r} must be a file that `pressgauge measure --json` of this version wrote, and is not one: "
            f"{missing}"
        ) from error
