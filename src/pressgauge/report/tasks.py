"""Results of tasks for readers: tables of a terminal, and a section of the page."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from pressgauge.bench.task_comparing import TaskComparison, TaskContest, task_contests
from pressgauge.bench.task_row import LEAST_CEILING, LESS, TASK_QUANTITIES, TaskRow
from pressgauge.formats import DASH, percent, points

_COLOURS = {LESS: "red", "vacuous": None, "uncompressed": None}
_KINDS = {LESS: "bad", "vacuous": "neutral", "uncompressed": "neutral"}
"""CSS classes of verdicts, for their colour."""
_SETTINGS: dict[str, Callable[[TaskRow], str]] = {
    "press": lambda row: row.press,
    "schedule": lambda row: row.schedule,
    "keep ratio": lambda row: f"{row.keep_ratio:g}",
}
READING = (
    f"Under {LEAST_CEILING:.0%} recall of the uncompressed model nothing can be told about a press. Intervals are over "
    "samples, by the adjusted Wald interval of Bonett and Price for paired scores. With fewer than five samples they "
    "are too wide for a verdict."
)


def _groups(rows: Sequence[TaskRow]) -> Iterator[list[TaskRow]]:
    for _, group in groupby(rows, key=lambda row: (row.model, row.task)):
        yield list(group)


def _what(row: TaskRow) -> str:
    lengths = sorted({min(row.prompt_tokens), max(row.prompt_tokens)})
    prompts = " to ".join(f"{length:,}" for length in lengths)
    return f"{row.samples:,} samples, prompts of {prompts} tokens, answers of up to {row.room:,}"


def make_task_tables(rows: Sequence[TaskRow]) -> Iterator[Table]:
    """A table per model and task."""
    columns = [quantity.terminal for quantity in TASK_QUANTITIES.values() if quantity.terminal]
    for group in _groups(rows):
        first = group[0]
        caption = f"{_what(first)}; prune_after {first.prune_after}\n"
        if first.gated:
            caption += f"NO VERDICT: {first.verdict}"
        else:
            caption += "in brackets: paired 95 % confidence interval, over samples"
        table = Table(
            title=escape(f"task {first.task}: {first.model}"), caption=escape(caption), box=box.SIMPLE, padding=0
        )
        for heading in ("press", "schedule", "keep\nratio"):
            table.add_column(heading, justify="right" if "ratio" in heading else "left")
        for column in columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        table.add_column("verdict")
        for row in group:
            colour = _COLOURS.get(row.verdict)
            verdict = escape("cannot be told" if row.gated else row.verdict)
            cells = [escape(text(row)) for text in _SETTINGS.values()] + [escape(one.text(row)) for one in columns]
            table.add_row(*cells, f"[{colour}]{verdict}[/]" if colour else verdict)
        yield table


def task_sections(rows: Sequence[TaskRow]) -> list[dict[str, Any]]:
    """What the page shows of each model and task."""
    pages = {one.page.heading: one.page.text for one in TASK_QUANTITIES.values() if one.page}
    columns = {**_SETTINGS, **pages, "verdict": lambda row: row.verdict}
    sections = []
    for group in _groups(rows):
        first = group[0]
        sections.append(
            {
                "where": f"{first.model}, task {first.task}",
                "what": _what(first),
                "gated": first.verdict if first.gated else "",
                "ceiling": f"{first.ceiling:.0%}",
                "summaries": [] if first.gated else list(_summaries(group)),
                "contests": [_told(one) for one in task_contests(group)],
                "columns": list(columns),
                "rows": [{name: text(row) for name, text in columns.items()} for row in group],
                "kinds": [_KINDS.get(row.verdict, "between" if row.judged else "neutral") for row in group],
            }
        )
    return sections


def _summaries(rows: Sequence[TaskRow]) -> Iterator[str]:
    """A sentence per press, and per schedule if they differ."""
    found: dict[tuple[str, str], list[str]] = {}
    for (press, schedule), line in groupby(rows, key=lambda row: (row.press, row.schedule)):
        told = [
            f"{row.recall:.0%} at {row.keep_ratio:g} ({row.verdict})"
            if row.judged
            else f"vacuous at {row.keep_ratio:g}"
            for row in line
            if row.judged or row.vacuous
        ]
        found.setdefault((press, "; ".join(told)), []).append(schedule)
    for (press, results), schedules in found.items():
        yield f"{press}, {' and '.join(schedules)}: {results or 'only the uncompressed run was measured'}."


def _told(contest: TaskContest) -> str:
    """Sentence about two presses under the same schedule and ratio."""
    better, worse = contest.better, contest.worse
    where = f"under {better.schedule} at {better.keep_ratio:g}"
    if not contest.told:
        return f"Between {better.press} and {worse.press} {where} no difference can be told."
    low, high = (f"{100 * end:.0f}" for end in contest.interval)
    return f"{better.press} recalls more than {worse.press} {where}, by {low} to {high} points."


def make_task_comparison(found: TaskComparison) -> Table:
    """Table of the measurements of tasks that two files of results share."""
    caption = "change: in percentage points from the first file to the second, with its paired 95 % confidence interval"
    table = Table(caption=caption, box=box.SIMPLE, padding=0)
    for heading in ("measurement", "recall", "recall", "change, points"):
        table.add_column(heading, justify="left" if heading == "measurement" else "right")
    for cell in found.cells:
        before, after = cell.before, cell.after
        change = DASH if cell.interval is None else points(after.recall - before.recall, cell.interval)
        table.add_row(escape(_cell(before)), percent(before.recall), percent(after.recall), escape(change))
    return table


def task_comparison_notes(found: TaskComparison) -> Iterator[str]:
    """What the tasks of two files of results do not share, a line each."""
    if any(cell.interval is None for cell in found.cells):
        yield f"{DASH}: the files have other prompts, so their recalls cannot be compared"
    for name, (one, other) in found.differences.items():
        yield f"differs in tasks: {name}: {one} and {other}"
    for rows, which in ((found.missing, "first"), (found.new, "second")):
        yield from (f"only in the {which} file: {_cell(row)}" for row in rows)


def _cell(row: TaskRow) -> str:
    skipped = ",".join(map(str, row.skip_layers)) or "none"
    settings = f"{row.schedule}, {row.keep_ratio:g} from {row.prune_after}, layers skipped: {skipped}"
    return f"{row.model}, task {row.task}: {row.press}, {settings}"
