"""Baselines: recorded rows of values, with tolerances."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

Value = int | float | str
Row = Mapping[str, Value]
Rows = Mapping[str, Row]
"""Rows by name; each maps its fields to values."""


@dataclass(frozen=True)
class Baseline:
    """Contents of a file of ``baselines/``.

    Attributes:
        provenance: origin of the values.
        tolerance: relative tolerance, by field. Other fields are compared exactly.
        rows: the values.
    """

    provenance: Mapping[str, Value]
    tolerance: Mapping[str, float]
    rows: Rows


@dataclass(frozen=True)
class Change:
    """A changed value. ``None`` stands for a missing row or field."""

    file: str
    row: str
    field: str
    was: Value | None
    now: Value | None
    tolerance: float

    @property
    def size(self) -> str:
        """Size of the change: relative or absolute, or only that there is one."""
        if self.was is None:
            return "new"
        if self.now is None:
            return "gone"
        if isinstance(self.was, str) or isinstance(self.now, str):
            return "other"
        if self.tolerance and self.was:
            return f"{self.now / self.was - 1:+.2g}"
        return f"{self.now - self.was:+.6g}"


def read(path: Path) -> Baseline:
    """Read the baseline in a file.

    Raises:
        ValueError: if it is not a baseline.
    """
    try:
        return Baseline(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a baseline, with provenance, tolerance and rows: {error}") from error


def write(baseline: Baseline, path: Path) -> None:
    """Write a baseline to a file, one row per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"provenance": dict(baseline.provenance)}
    rows = {name: dict(row) for name, row in baseline.rows.items()}
    rest = {"tolerance": dict(baseline.tolerance), "rows": rows}
    text = yaml.safe_dump(head, sort_keys=False, width=math.inf)
    text += yaml.safe_dump(rest, sort_keys=False, width=math.inf, default_flow_style=None)
    path.write_text(text, encoding="utf-8")


def _same(was: Value | None, now: Value | None, tolerance: float) -> bool:
    if was is None or now is None or isinstance(was, str) or isinstance(now, str) or not tolerance:
        return was == now or (was != was and now != now)
    return math.isclose(was, now, rel_tol=tolerance) or (math.isnan(was) and math.isnan(now))


def changes(file: str, was: Baseline, now: Rows) -> Iterator[Change]:
    """Changed values, row by row."""
    for name in dict.fromkeys([*was.rows, *now]):
        before, after = was.rows.get(name, {}), now.get(name, {})
        for field in dict.fromkeys([*before, *after]):
            tolerance = was.tolerance.get(field, 0)
            if not _same(before.get(field), after.get(field), tolerance):
                yield Change(file, name, field, before.get(field), after.get(field), tolerance)


def updated(was: Baseline | None, now: Baseline) -> Baseline:
    """Values to record: those within tolerance keep their recorded value, and an unchanged file is not rewritten."""
    if was is None:
        return now
    changed = {(change.row, change.field) for change in changes("", was, now.rows)}
    if not changed:
        return was
    rows = {
        name: {field: value if (name, field) in changed else was.rows[name][field] for field, value in row.items()}
        for name, row in now.rows.items()
    }
    return Baseline(now.provenance, now.tolerance, rows)


def _shown(value: Value | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 28 else f"{text[:25]}..."


def table(found: list[Change], most: int = 12) -> str:
    """Table of changes; of many changes of one file and field, the first ones and the number of others."""
    grid = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("what", "was", "is", "change", "tolerance"):
        grid.add_column(heading, no_wrap=True)
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in found:
        groups.setdefault((change.file, change.field), []).append(change)
    each = max(1, most // len(groups)) if groups else 0
    for (file, field), group in groups.items():
        for one in group[:each]:
            tolerance = f"{one.tolerance:.2g}" if one.tolerance else "exact"
            grid.add_row(f"{file}: {one.row}: {field}", _shown(one.was), _shown(one.now), one.size, tolerance)
        if len(group) > each:
            grid.add_row(f"{file}: {len(group) - each} more of {field}", "", "", "", "")
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())
