"""Files of rows: ``{"rows": [...], "tasks": [...], "provenance": {...}}``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pressgauge.bench.fields import read_row, read_task_row
from pressgauge.bench.files import write_files
from pressgauge.bench.row import Row
from pressgauge.bench.task_row import TaskRow


@dataclass(frozen=True)
class Results:
    """Rows of one sweep, and what they were measured with. Older files have no tasks."""

    rows: tuple[Row, ...]
    provenance: Mapping[str, str]
    tasks: tuple[TaskRow, ...] = ()


def as_json(rows: Sequence[Row], provenance: Mapping[str, str], tasks: Sequence[TaskRow] = ()) -> str:
    """Text of a file of rows; ``tasks`` only if there are any."""
    content: dict[str, object] = {"rows": [row.as_dict() for row in rows]}
    content |= {"tasks": [row.as_dict() for row in tasks]} if tasks else {}
    content["provenance"] = dict(provenance)
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_results(
    path: Path, rows: Sequence[Row], provenance: Mapping[str, str], tasks: Sequence[TaskRow] = ()
) -> None:
    """Write rows to a file, completely or not at all."""
    write_files(path.parent, {path.name: as_json(rows, provenance, tasks)})


def told_apart(rows: Sequence[Row]) -> list[Row]:
    """Rows of several files, with what they scored in the name of a text that stands for more than one."""
    scored: dict[tuple[str, str], set[tuple[object, ...]]] = {}
    for row in rows:
        scored.setdefault((row.model, row.text), set()).add(_scored(row))
    return [
        replace(row, text=f"{row.text}, {row.samples} x {row.tokens} tokens after {row.prompt} ({row.text_sha256[:8]})")
        if len(scored[row.model, row.text]) > 1
        else row
        for row in rows
    ]


def _scored(row: Row) -> tuple[object, ...]:
    return row.samples, row.tokens, row.prompt, row.text_sha256


def read_results(path: Path) -> Results:
    """Rows of a file that ``pressgauge measure --json`` wrote.

    Raises:
        ValueError: if the file is not one of these.
        OSError: if it cannot be read.
    """
    if path.is_char_device() or path.is_block_device():
        raise ValueError(f"{str(path)!r} must be a file that `pressgauge measure --json` wrote, and is a device")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Texts without a form in UTF-8 could not be shown.
        json.dumps(content, ensure_ascii=False).encode()
        if not isinstance(content, dict):
            raise ValueError(f"it must be an object, and is a {type(content).__name__}")
        rows = tuple(read_row(row) for row in content["rows"])
        tasks = tuple(read_task_row(row) for row in content.get("tasks", ()))
        return Results(rows, {str(name): str(value) for name, value in content["provenance"].items()}, tasks)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{str(path)!r} must be a file that `pressgauge measure --json` of this version wrote, and is not one: "
            f"{missing}"
        ) from error
