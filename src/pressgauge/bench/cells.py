"""Cells of a sweep, and how they are split over ranks: integers and names only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any

UNCOMPRESSED = "uncompressed"
"""Name of the row without a press."""

Share = dict[int, range]
"""Samples that a rank measures, by the index of their cell."""


@dataclass(frozen=True)
class Cell:
    """One measurement of a sweep.

    Attributes:
        model, text, task: names; a cell is of a text or of a task, and the other is empty.
        press: name of the press, or ``UNCOMPRESSED``.
        schedule: the press's, of a task; else empty.
        ratio: its keep ratio; None if it takes none.
        line: index of the press among those of the sweep; -1 of the uncompressed cell. Rows do not have it.
    """

    model: str
    text: str
    task: str
    press: str = UNCOMPRESSED
    schedule: str = ""
    ratio: float | None = 1.0
    line: int = field(default=-1, compare=False)

    @property
    def place(self) -> str:
        """Model, and text or task."""
        return f"{self.model}, task {self.task}" if self.task else f"{self.model} on {self.text}"

    @property
    def name(self) -> str:
        """Press, schedule and ratio, as far as it has them."""
        if self.press == UNCOMPRESSED:
            return self.press
        return " ".join(filter(None, [self.press, self.schedule, "" if self.ratio is None else f"{self.ratio:g}"]))

    def __str__(self) -> str:
        return f"{self.place}: {self.name}"

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """The cell of a row, or of a sample's part of one, by its fields."""
        task = str(row.get("task") or "")
        if row.get("press") == UNCOMPRESSED:
            return cls(str(row.get("model")), str(row.get("text") or ""), task)
        schedule = str(row.get("schedule") or "") if task else ""
        ratio = row.get("keep_ratio")
        return cls(str(row.get("model")), str(row.get("text") or ""), task, str(row.get("press")), schedule, ratio)


def split(costs: Sequence[int], samples: int, ranks: int) -> list[Share]:
    """Split a sweep: by cells, and by samples if fewer cells than ranks have a cost.

    Cells are split into blocks, so that a rank loads few models. A cell that costs nothing, since its result is at hand
    or is a by-product of the next one, is of the same ranks as the next one that does cost something.

    Args:
        costs: of each cell, relative to each other.
        samples: samples of each cell.
        ranks: number of ranks.

    Returns:
        The samples of each rank. Each sample of each cell is in exactly one of them.
    """
    shares: list[Share] = [{} for _ in range(ranks)]
    working = [index for index, cost in enumerate(costs) if cost]
    if len(working) < ranks and samples > 1:
        units = len(working) * samples
        bounds = [rank * units // ranks for rank in range(ranks + 1)]
        parts = {
            index: [
                range(max(0, start - place * samples), min(samples, stop - place * samples))
                for start, stop in pairwise(bounds)
            ]
            for place, index in enumerate(working)
        }
    else:
        total, ends = sum(costs), list(accumulate(costs))
        owners = {index: (2 * ends[index] - costs[index]) * ranks // (2 * total) for index in working}
        parts = {
            index: [range(samples if rank == owner else 0) for rank in range(ranks)] for index, owner in owners.items()
        }
    following = [range(samples), *(range(0) for _ in range(ranks - 1))]
    if working:
        following = parts[working[-1]]
    for index in reversed(range(len(costs))):
        following = parts.get(index, following)
        for share, part in zip(shares, following, strict=True):
            if part:
                share[index] = part
    return shares


def in_words(cells: Sequence[Cell]) -> Iterator[str]:
    """Cells in a line per model and text or task."""
    for place, group in groupby(cells, key=lambda cell: cell.place):
        yield f"{place}: {', '.join(cell.name for cell in group)}"
