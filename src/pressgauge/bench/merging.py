"""Results of all ranks of a sweep, merged in the order of its plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from torch import Tensor

from pressgauge.bench.answering import Answers
from pressgauge.bench.compressors import Failed
from pressgauge.bench.observed import Observed
from pressgauge.bench.parts import Part, joined_parts
from pressgauge.bench.plan import Plan
from pressgauge.bench.row import Row, Settings, Source, make_row
from pressgauge.bench.task_row import TaskRow, make_task_row
from pressgauge.texts.loading import MOST_UNKNOWN

_OF_TASKS = ("schedule", "prune_after", "skip_layers")
"""Fields of settings that the rows of tasks have."""


@dataclass(frozen=True)
class Sweep:
    """Results of a sweep.

    Attributes:
        rows: one per model, text, press and ratio, in this order.
        maps: by title, ``evicted_at`` of each text's first sample, for the smallest ratio of each press.
        correlations: by model and text, correlations of key norm and attention, see ``pressgauge.norm_attention``.
        tasks: one row per model, task, press, schedule and ratio, in this order.
        missing: measurements that failed, a line each.
    """

    rows: tuple[Row, ...]
    maps: dict[str, tuple[Tensor, ...]]
    correlations: dict[str, Tensor]
    tasks: tuple[TaskRow, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a cell has no row.

    Attributes:
        reason: a line.
        changed: whether nothing more can be measured with the model.
        sample: index of the first sample that was to be measured.
    """

    reason: str
    changed: bool
    sample: int = 0


@dataclass(frozen=True)
class Text:
    """What a model and a text have in common with no press.

    Attributes:
        vocabulary: tokens of the model's vocabulary.
        unknown: share of the text's tokens that are unknown to the tokenizer.
    """

    vocabulary: int
    unknown: float


@dataclass
class Report:
    """What a rank measured.

    Attributes:
        rows: whole results by the index of their cell.
        parts: results of samples by the index of their cell and their own.
        failures: by the index of the cell.
        texts: by model and text.
        settings: of each press with ``keep_ratio`` 1, by model, whether for tasks, and index among the presses.
        maps, correlations: as in ``Sweep``.
        stopped: whether a failure ended the work.
        error: sentence of an error that ended it; None if there was none.
    """

    rows: dict[int, Row | TaskRow] = field(default_factory=dict)
    parts: dict[int, dict[int, Part]] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    texts: dict[str, Text] = field(default_factory=dict)
    settings: dict[tuple[str, bool, int], Settings] = field(default_factory=dict)
    maps: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    correlations: dict[str, Tensor] = field(default_factory=dict)
    stopped: bool = False
    error: str | None = None


def merged(plan: Plan, reports: Sequence[Report]) -> Sweep:
    """The sweep of which each rank measured a share.

    Raises:
        ValueError: if an uncompressed perplexity is not finite, or a metric fails.
    """
    whole = _together(reports)
    cells = plan.cells
    rows: list[Row] = []
    tasks: list[TaskRow] = []
    missing: list[str] = []
    stopped = False
    for place, group in groupby(range(len(cells)), key=lambda index: cells[index].place):
        if stopped:
            break
        first, *others = group
        base = _row(plan, whole, first, None)
        measured: dict[int, Row | TaskRow] = {}
        for index in others:
            failure = whole.failures.get(index)
            row = None
            if base is not None and not stopped and failure is None:
                try:
                    row = _row(plan, whole, index, base)
                except Failed as error:
                    failure = Failure(str(error), changed=False)
            if row is not None:
                measured[index] = row
                continue
            reason = "was not measured on a model that was changed" if stopped else "was not measured"
            missing.append(f"{cells[index]} {reason if failure is None or stopped else failure.reason}")
            stopped = stopped or (failure is not None and failure.changed)
        if base is None:
            missing.insert(len(missing) - len(others), f"{cells[first]} was not measured")
            continue
        for line, name in enumerate(
            plan.presses if isinstance(base, Row) else [name for name, _ in plan.of_tasks.lines]
        ):
            settings = whole.settings[cells[first].model, bool(cells[first].task), line]
            own = [row for index, row in measured.items() if cells[index].line == line]
            if isinstance(base, Row):
                text = whole.texts[place]
                listed = [replace(base, press=name, **settings.fields), *(row for row in own if isinstance(row, Row))]
                rows += [replace(row, warnings=_warnings(base, text), bands=plan.bands) for row in listed]
            else:
                renamed = {name: value for name, value in settings.fields.items() if name in _OF_TASKS}
                tasks.append(replace(base, press=name, **renamed))
                tasks += [row for row in own if isinstance(row, TaskRow)]
    return Sweep(tuple(rows), whole.maps, whole.correlations, tuple(tasks), tuple(missing))


def _together(reports: Sequence[Report]) -> Report:
    """The reports of all ranks in one."""
    whole = Report()
    for report in reports:
        for index, parts in report.parts.items():
            whole.parts.setdefault(index, {}).update(parts)
        for name in ("rows", "texts", "settings", "maps", "correlations"):
            getattr(whole, name).update(getattr(report, name))
        for index, failure in sorted(report.failures.items()):
            # Of several, that in the first of the samples.
            whole.failures[index] = min(failure, whole.failures.get(index, failure), key=lambda one: one.sample)
    return whole


def _row(plan: Plan, whole: Report, index: int, base: Row | TaskRow | None) -> Row | TaskRow | None:
    """The row of a cell, measured by one rank or put together from its samples; None if some are missing."""
    if index in whole.rows:
        return whole.rows[index]
    parts = whole.parts.get(index, {})
    if sorted(parts) != list(range(plan.samples)):
        return None
    ordered = [parts[sample] for sample in range(plan.samples)]
    if isinstance(ordered[0].result, Answers):
        assert not isinstance(base, Row)
        return task_row(ordered, base)
    assert not isinstance(base, TaskRow)
    return text_row(plan, ordered, base)


def text_row(plan: Plan, parts: Sequence[Part], base: Row | None) -> Row:
    """The row of a text's cell from parts of all its samples, compared with the uncompressed row if there is one.

    Raises:
        Failed: if a metric fails for a third-party compressor, of which less is known than of a press.
        ValueError: if it fails otherwise.
    """
    first = parts[0]
    result, uncompressed = joined_parts(parts)
    assert isinstance(first.source, Source)
    assert not isinstance(result, Answers)
    row = make_row(first.press, first.settings, first.source, result, base)
    try:
        return replace(row, metrics=tuple(metric.measure(result, uncompressed or result) for metric in plan.metrics))
    except ValueError as error:
        if isinstance(result, Observed):
            raise Failed(f"failed after it was decoded: {error}") from error
        raise


def task_row(parts: Sequence[Part], base: TaskRow | None) -> TaskRow:
    """The row of a task's cell, likewise."""
    first = parts[0]
    result, _ = joined_parts(parts)
    assert isinstance(result, Answers)
    assert not isinstance(first.source, Source)
    return make_task_row(first.press, first.settings, *first.source, result, base)


def _warnings(uncompressed: Row, text: Text) -> tuple[str, ...]:
    """Reasons why measurements with a model on a text say nothing about a press."""
    found = []
    if uncompressed.ppl > text.vocabulary:
        found.append(
            f"the uncompressed perplexity, {uncompressed.ppl:,.0f}, is worse than that of guessing among the "
            f"{text.vocabulary:,} tokens of the vocabulary: the model does not know such text, or its weights are wrong"
        )
    if text.unknown > MOST_UNKNOWN:
        found.append(f"{text.unknown:.0%} of the text's tokens are unknown to the model's tokenizer")
    return tuple(found)
