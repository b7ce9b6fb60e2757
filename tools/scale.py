"""Cost of what a sweep does beside measuring, for numbers of cells: ``python -m tools.scale [CELLS...]``.

The functions are those of a sweep; only the measurements are left out. Each cell has the row of 3 samples of 1,024
tokens. The journals of all ranks are written here one after the other, and the time is that of the slowest rank. Times
are of the processor, so that other work on the machine does not change them.
"""

import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from pressgauge import KnormPress
from pressgauge.bench.cells import UNCOMPRESSED, Cell, split
from pressgauge.bench.journal import Journal, digest
from pressgauge.bench.merging import Report, Text, merged
from pressgauge.bench.plan import Plan
from pressgauge.bench.results import write_results
from pressgauge.bench.row import Row, Settings, Source, make_row
from pressgauge.bench.sharing import costs
from pressgauge.uncompressed import Perplexity

T = TypeVar("T")

CELLS = (10, 1_000, 100_000)
RANKS = 8
SAMPLES, TOKENS = 3, 1_024
COLUMNS = (
    "cells",
    "split, s",
    "journal of a rank, s",
    "journals, MiB",
    "read again, s",
    "reports, MiB",
    "merge, s",
    "`--json`, s",
)


def plan_of(cells: int) -> Plan:
    """A plan of about this many cells: presses of ten ratios on texts of one model."""
    ratios = [1.0, *(round(0.05 + 0.09 * number, 2) for number in range(10))]
    names = [f"knorm(recent={number})" for number in range(max(1, min(10, cells // 10)))]
    texts = [f"text {number}" for number in range(max(1, cells // (10 * len(names))))]
    return Plan(
        presses={name: tuple(KnormPress(ratio) for ratio in ratios) for name in names},
        models=("model",),
        texts=tuple(texts),
        samples=SAMPLES,
        tokens=TOKENS,
        prompt=1,
        device=torch.device("cpu"),
        dtype="float32",
    )


def row_of() -> Row:
    """A row of a measurement."""
    nll = torch.rand((SAMPLES, TOKENS - 1), dtype=torch.float64)
    known = torch.ones_like(nll, dtype=torch.bool)
    result = Perplexity(nll, known, known, known, 9, (512,) * 32, 9, True, (), nll, known)
    source = Source("model", "text", "float32", "cpu", SAMPLES, TOKENS, 1, "0" * 64, "0" * 64, 1)
    return make_row(UNCOMPRESSED, KnormPress(1.0), source, result)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds of processor time that a function takes, and its result."""
    before = time.process_time()
    result = run()
    return time.process_time() - before, result


def told(row: Row, cell: Cell) -> Row:
    """The row as one of this cell."""
    return replace(row, text=cell.text, press=cell.press, keep_ratio=cell.ratio)


def write(journal: Journal, rows: Sequence[Row]) -> None:
    """Append rows."""
    for number, row in enumerate(rows):
        journal.add(digest([number, row.text, row.press, row.keep_ratio]), row)


def measure(cells: int, folder: Path) -> list[str]:
    """Columns of the table for a number of cells."""
    plan, row = plan_of(cells), row_of()
    listed, all_cells = timed(lambda: plan.cells)
    splitting, shares = timed(lambda: split(costs(plan, set()), SAMPLES, RANKS))
    path = folder / f"{cells}.json.unfinished"
    reports, writing = [], []
    # All are opened before the first is written, as by ranks that start together.
    journals = [Journal(path, resume=True, plan=plan.as_dict(), rank=rank) for rank in range(RANKS)]
    for journal, share in zip(journals, shares, strict=True):
        rows = {index: told(row, all_cells[index]) for index, part in share.items() if len(part) == SAMPLES}
        writing.append(timed(partial(write, journal, list(rows.values())))[0])
        texts = {all_cells[index].place: Text(1000, 0.0) for index in share}
        settings = {("model", False, line): Settings.of(press[0]) for line, press in enumerate(plan.presses.values())}
        reports.append(Report(rows=dict(rows), texts=texts, settings=settings))
    size = sum(file.stat().st_size for file in folder.glob(f"{path.name}*"))
    reading, known = timed(lambda: Journal(path, resume=True, plan=plan.as_dict()))
    gathering, gathered = timed(lambda: sum(len(pickle.dumps(report)) for report in reports))
    merging, sweep = timed(lambda: merged(plan, reports))
    putting, _ = timed(lambda: write_results(folder / "rows.json", sweep.rows, {}))
    known.close()
    return [
        f"{len(all_cells):,}",
        f"{listed + splitting:.3f}",
        f"{max(writing):.2f}",
        f"{size / 2**20:,.1f}",
        f"{reading:.2f}",
        f"{gathered / 2**20:,.1f}",
        f"{gathering + merging:.2f}",
        f"{putting:.2f}",
    ]


def main() -> None:
    """Print the table."""
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{' ---: |' * len(COLUMNS)}")
    for cells in map(int, sys.argv[1:] or CELLS):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(measure(cells, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
