"""Sweeps that several ranks share: who measures what, and what is done with their reports."""

import traceback
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from pressgauge.bench.cells import UNCOMPRESSED, Cell, Share, in_words, split
from pressgauge.bench.compressors import Compressor
from pressgauge.bench.journal import Journal, differences, digest, plain
from pressgauge.bench.merging import Report, Sweep, merged
from pressgauge.bench.plan import Plan
from pressgauge.bench.ranks import Lost, Ranks
from pressgauge.bench.sweep import measure
from pressgauge.errors import one_line, sentence
from pressgauge.tasks.fitting import Prompts

STEPWISE = 1 / 4
"""Forward passes of a text that take as long as one token of a third-party compressor, which is decoded stepwise."""
ANSWERING = 8
"""Forward passes of a text that take as long as a task."""


class Unfinished(Exception):  # noqa: N818  # the state of the sweep
    """A sweep ended before all its cells were measured.

    Attributes:
        missing: cells that are not in the journals, a line per model and text or task.
    """

    def __init__(self, message: str, missing: Sequence[str]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


def costs(plan: Plan, done: set[Cell]) -> list[int]:
    """Costs of all cells relative to each other; 0 of those that are done, or by-products of the next one."""
    cells = plan.cells
    found = []
    for cell, after in zip(cells, (*cells[1:], None), strict=True):
        cost = ANSWERING if cell.task else 1
        if cell.text and cell.line >= 0 and isinstance(list(plan.presses.values())[cell.line][0], Compressor):
            cost = max(1, round(STEPWISE * plan.tokens))
        by_product = cell.press == UNCOMPRESSED and after is not None and after.place == cell.place
        found.append(0 if cell in done or (by_product and after not in done) else cost)
    return found


def share_of(plan: Plan, journal: Journal | None, ranks: Ranks) -> Share:
    """The samples that this rank measures. All ranks know the results of all journals, and split the rest.

    Raises:
        ValueError: if ranks would measure different things, or take times on a device that they share.
    """
    if plan.timing and any(ranks.gather(ranks.shared)):
        raise ValueError(
            f"--timing needs a device for each rank, and some of {ranks.count} ranks share one: start fewer ranks, or "
            "measure times in one process"
        )
    plans = ranks.gather(plain(plan.as_dict()))
    for rank, other in enumerate(plans):
        if found := differences(plans[0], other):
            raise ValueError(
                f"ranks must have the same devices, versions and options, got {'; '.join(found)} ({rank} instead of 0 "
                "is now)"
            )
    # Ranks of several machines may not see the files of each other.
    if journal is not None and len(set(ranks.gather(digest(sorted(journal.rows))))) > 1:
        for rows in ranks.gather(journal.rows):
            journal.rows |= rows
    done = set() if journal is None else journal.cells(plan.samples)
    # Times are taken of a whole cell.
    samples = 1 if plan.timing else plan.samples
    share = split(costs(plan, done), samples, ranks.count)[ranks.index]
    return {index: range(plan.samples) for index in share} if plan.timing else share


def run_shared(
    plan: Plan,
    share: Share,
    samples: dict[tuple[str, str], Tensor],
    journal: Journal | None,
    ranks: Ranks,
    *,
    prompts: Mapping[str, Mapping[str, Prompts]],
    pictures: bool,
    advance: Callable[[str, int], None],
    resume: Callable[[int], None],
) -> Sweep | None:
    """Measure this rank's share, and merge the reports of all ranks.

    Returns:
        The sweep, on rank 0; None on others.

    Raises:
        Unfinished: on rank 0, if a rank ended with an error, or without a report.
    """
    if ranks.count == 1:
        return merged(plan, [measure(plan, share, samples, journal, prompts, pictures, advance, resume)])
    report = Report()
    try:
        measure(plan, share, samples, journal, prompts, pictures, advance, resume, report)
    except Exception as error:
        report.error = sentence(error)
        if report.error is None:
            traceback.print_exception(error)
            report.error = f"internal error: {type(error).__name__}: {one_line(str(error))}"
    try:
        reports: list[Report] = ranks.gather(report)
    except Lost as error:
        raise Unfinished(str(error), missing(plan, journal)) from error
    if ranks.index:
        return None
    errors = list(dict.fromkeys(one.error for one in reports if one.error is not None))
    if errors:
        alike = len(errors) == 1 and all(one.error is not None for one in reports)
        lost = [] if alike else [plan.cells[index] for index in sorted(absent(plan, reports))]
        raise Unfinished("; ".join(errors), list(in_words(lost)))
    return merged(plan, reports)


def absent(plan: Plan, reports: Sequence[Report]) -> set[int]:
    """Cells of which there is neither a row nor a result of each sample nor a failure."""
    found = set(range(len(plan.cells)))
    parts: dict[int, set[int]] = {}
    for report in reports:
        found -= {*report.rows, *report.failures}
        for index, own in report.parts.items():
            parts.setdefault(index, set()).update(own)
    return found - {index for index, own in parts.items() if len(own) == plan.samples}


def missing(plan: Plan, journal: Journal | None) -> list[str]:
    """Cells without a whole result in the journals that this rank sees, a line per model and text or task."""
    done: set[Cell] = set()
    if journal is not None:
        journal.reread()
        done = journal.cells(plan.samples)
    return list(in_words([cell for cell in plan.cells if cell not in done]))
