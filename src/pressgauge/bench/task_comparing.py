"""Comparisons of recall: two files cell by cell, and presses with each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from pressgauge.bench.comparing import paired
from pressgauge.bench.intervals import LEVEL
from pressgauge.bench.results import Results
from pressgauge.bench.score_intervals import score_interval
from pressgauge.bench.task_row import TaskRow

CELL = ("model", "task", "press", "schedule", "keep_ratio", "prune_after", "skip_layers")
"""Fields that identify a measurement in two files."""
DETERMINANTS = ("dtype", "device", "samples", "tokens", "room", "prompts_sha256", "weights_sha256")
"""Fields on which a result may depend besides."""


@dataclass(frozen=True)
class TaskCell:
    """The same measurement in two files.

    Attributes:
        before, after: its rows.
        interval: of the change in recall from one to the other; None if their prompts differ.
    """

    before: TaskRow
    after: TaskRow
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class TaskComparison:
    """Rows of tasks in two files.

    Attributes:
        cells: measurements that both have.
        missing, new: measurements that only the first or only the second has.
        differences: what differs in any cell, with both values.
    """

    cells: tuple[TaskCell, ...]
    missing: tuple[TaskRow, ...]
    new: tuple[TaskRow, ...]
    differences: dict[str, tuple[str, str]]


def compare_tasks(before: Results, after: Results) -> TaskComparison:
    """Compare the tasks of two files of results, cell by cell."""
    found = paired(before.tasks, after.tasks, CELL, DETERMINANTS)
    return TaskComparison(tuple(_cell(*pair) for pair in found.pairs), found.missing, found.new, found.differences)


def _cell(before: TaskRow, after: TaskRow) -> TaskCell:
    same = before.prompts_sha256 == after.prompts_sha256
    return TaskCell(before, after, score_interval(before.recalls, after.recalls) if same else None)


@dataclass(frozen=True)
class TaskContest:
    """Two presses under the same schedule and ratio.

    Attributes:
        better, worse: rows of the press with the higher and with the lower recall.
        interval: of the change in recall from the worse to the better one.
    """

    better: TaskRow
    worse: TaskRow
    interval: tuple[float, float]

    @property
    def told(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.interval[0] > 0


def task_contests(rows: Sequence[TaskRow]) -> list[TaskContest]:
    """All pairs of presses under the same schedule and ratio, in one task of one model.

    Intervals are simultaneous (Bonferroni): the chance that any of them misses its true difference is that of one.
    """
    pairs = list(_pairs(rows))
    level = 1 - (1 - LEVEL) / max(1, len(pairs))
    return [TaskContest(one, other, score_interval(other.recalls, one.recalls, level)) for one, other in pairs]


def _pairs(rows: Sequence[TaskRow]) -> Iterator[tuple[TaskRow, TaskRow]]:
    for one, other in combinations([row for row in rows if row.judged], 2):
        alike = all(getattr(one, name) == getattr(other, name) for name in ("schedule", "keep_ratio", "prompts_sha256"))
        if alike and one.press != other.press:
            yield (one, other) if one.recall >= other.recall else (other, one)
