"""Comparisons of results: two files cell by cell, and presses with each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

from pressgauge.bench.intervals import LEVEL, Change, change
from pressgauge.bench.results import Results
from pressgauge.bench.row import Row
from pressgauge.bench.task_row import TaskRow

CELL = ("model", "text", "press", "schedule", "keep_ratio", "prune_after", "skip_layers")
"""Fields that identify a measurement in two files."""
DETERMINANTS = ("dtype", "device", "samples", "tokens", "prompt", "text_sha256", "weights_sha256", "package")
"""Fields on which a result may depend besides."""


@dataclass(frozen=True)
class Cell:
    """The same measurement in two files.

    Attributes:
        before, after: its rows.
        change: change in perplexity from one to the other; None if they scored other tokens.
    """

    before: Row
    after: Row
    change: Change | None


@dataclass(frozen=True)
class Comparison:
    """Two files of results.

    Attributes:
        cells: measurements that both have.
        missing, new: measurements that only the first or only the second has.
        differences: what differs in their provenance, with both values.
    """

    cells: tuple[Cell, ...]
    missing: tuple[Row, ...]
    new: tuple[Row, ...]
    differences: dict[str, tuple[str, str]]


R = TypeVar("R", Row, TaskRow)


@dataclass(frozen=True)
class Paired(Generic[R]):
    """Rows of two files.

    Attributes:
        pairs: rows of the measurements that both have.
        missing, new: rows of measurements that only the first or only the second has.
        differences: what differs in any pair, with both values.
    """

    pairs: tuple[tuple[R, R], ...]
    missing: tuple[R, ...]
    new: tuple[R, ...]
    differences: dict[str, tuple[str, str]]


def paired(before: Sequence[R], after: Sequence[R], cell: Sequence[str], determinants: Sequence[str]) -> Paired[R]:
    """Pair the rows of two files by the fields ``cell``, and compare the fields ``determinants`` of each pair."""
    old, new = ({tuple(getattr(row, name) for name in cell): row for row in rows} for rows in (before, after))
    pairs = tuple((old[key], new[key]) for key in old if key in new)
    differences: dict[str, tuple[str, str]] = {}
    for one, other in pairs:
        values = {name: (str(getattr(one, name)), str(getattr(other, name))) for name in determinants}
        differences |= {name: value for name, value in values.items() if value[0] != value[1]}
    missing, more = (
        tuple(row for key, row in here.items() if key not in there) for here, there in ((old, new), (new, old))
    )
    return Paired(pairs, missing, more, differences)


def compare(before: Results, after: Results) -> Comparison:
    """Compare two files of results, cell by cell."""
    found = paired(before.rows, after.rows, CELL, DETERMINANTS)
    names = dict.fromkeys([*before.provenance, *after.provenance])
    differences = {
        name: values
        for name in names
        if len(set(values := (before.provenance.get(name, "missing"), after.provenance.get(name, "missing")))) > 1
    }
    cells = tuple(_cell(*pair) for pair in found.pairs)
    return Comparison(cells, found.missing, found.new, differences | found.differences)


def _cell(before: Row, after: Row) -> Cell:
    same = before.text_sha256 == after.text_sha256 and before.token_counts == after.token_counts
    return Cell(before, after, change(before.sums, after.sums) if same else None)


def also_holds(row: Row, other: Row, *, less: bool) -> str:
    """`` and holds more``, ``less`` or ``an unknown amount``, if that may be why a press loses less or more.

    Empty if it is not: if they hold the same up to 5 %, or the one that loses less holds less memory as well. At one
    keep ratio, compressors of one's own may hold different numbers of entries.

    Args:
        row, other: rows of the press and of the other one.
        less: whether the press loses less.
    """
    if row.kv_bytes is None or other.kv_bytes is None:
        return " and holds an unknown amount"
    lowest, highest = sorted((row.kv_bytes, other.kv_bytes))
    if 20 * highest <= 21 * lowest or (row.kv_bytes == lowest) is less:
        return ""
    return f" and holds {'more' if less else 'less'}"


@dataclass(frozen=True)
class Contest:
    """Two presses at the same ratio.

    Attributes:
        better, worse: rows of the press with the lower and with the higher perplexity.
        change: change in perplexity from the better one to the worse one.
    """

    better: Row
    worse: Row
    change: Change

    @property
    def told(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.change.interval is not None and self.change.interval[0] > 0


def contests(rows: Sequence[Row]) -> list[Contest]:
    """All pairs of presses at the same ratio, on one text under one model.

    Intervals are simultaneous (Bonferroni): the chance that any of them misses its true difference is at most 5 %.
    """
    pairs = list(_pairs(rows))
    level = 1 - (1 - LEVEL) / max(1, len(pairs))
    return [Contest(one, other, change(one.sums, other.sums, level)) for one, other in pairs]


RANDOM = ("keep_ratio", "schedule", "prune_after", "skip_layers", "dtype", "device")
"""Fields in which a row and the row of ``random`` that it has to beat agree."""


def is_random(row: Row) -> bool:
    """Whether a row is one of ``random``."""
    return row.press == "random" or row.press.startswith("random(")


@dataclass(frozen=True)
class Beside:
    """A press beside ``random``.

    Attributes:
        change: change in perplexity from ``random`` to the press.
        also: what the press holds where that may be the reason of the change, see ``also_holds``.
    """

    change: Change
    also: str

    @property
    def words(self) -> str:
        """Whether the press loses less than ``random``, and what it holds where that may be the reason."""
        found = self.change
        if found.interval is None or found.interval[0] <= 0 <= found.interval[1]:
            return "no difference can be told"
        return f"loses {'less' if found.change < 0 else 'more'} than random{self.also}"


def against_random(rows: Sequence[Row]) -> dict[int, Beside]:
    """Each press beside ``random``, by the row's index; presses without one have none.

    The rows are of one text under one model. Intervals are simultaneous (Bonferroni).
    """
    pairs: dict[int, Row] = {}
    for index, row in enumerate(rows):
        if row.judged and not is_random(row):
            alike = [
                other
                for other in rows
                if is_random(other)
                and other.judged
                and other.token_counts == row.token_counts
                and all(getattr(other, name) == getattr(row, name) for name in RANDOM)
            ]
            pairs |= {index: alike[0]} if alike else {}
    level = 1 - (1 - LEVEL) / max(1, len(pairs))
    changes = {index: change(other.sums, rows[index].sums, level) for index, other in pairs.items()}
    return {
        index: Beside(found, also_holds(rows[index], pairs[index], less=found.change < 0))
        for index, found in changes.items()
    }


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    for one, other in combinations([row for row in rows if row.judged], 2):
        if one.keep_ratio == other.keep_ratio and one.press != other.press:
            yield (one, other) if one.ppl <= other.ppl else (other, one)
