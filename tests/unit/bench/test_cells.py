"""Cells are split over ranks: each sample exactly once, evenly, and in blocks."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pressgauge.bench.cells import UNCOMPRESSED, Cell, Share, in_words, split

Split = Callable[[list[int], int, int], list[Share]]
COSTS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
SAMPLES, RANKS = st.integers(1, 5), st.integers(1, 7)


def check_once(costs: list[int], samples: int, ranks: int, split: Split = split) -> None:
    shares = split(costs, samples, ranks)
    assert len(shares) == ranks
    counted = Counter((index, sample) for share in shares for index, part in share.items() for sample in part)
    assert counted == {(index, sample): 1 for index in range(len(costs)) for sample in range(samples)}


@given(COSTS, SAMPLES, RANKS)
@example([0, 1], 3, 3)
@example([0, 0, 0], 2, 4)
def test_every_sample_of_every_cell_is_measured_once(costs: list[int], samples: int, ranks: int) -> None:
    check_once(costs, samples, ranks)


def one_twice(costs: list[int], samples: int, ranks: int) -> list[Share]:
    """The last sample of a rank's last cell is the first of the next rank's as well."""
    shares = split(costs, samples, ranks)
    for share, after in pairwise(shares):
        if share and after:
            last = max(share)
            after.setdefault(last, range(share[last].stop - 1, share[last].stop))
    return shares


def last_dropped(costs: list[int], samples: int, ranks: int) -> list[Share]:
    """Each rank drops its last cell."""
    return [
        {index: part for index, part in share.items() if index != max(share)} for share in split(costs, samples, ranks)
    ]


def rounded_down(costs: list[int], samples: int, ranks: int) -> list[Share]:
    """Each rank has as many cells as all have, and those left over are nobody's."""
    each = len(costs) // ranks
    return [{index: range(samples) for index in range(rank * each, rank * each + each)} for rank in range(ranks)]


@pytest.mark.parametrize("mutant", [one_twice, last_dropped, rounded_down])
def test_a_broken_split_is_caught(mutant: Split) -> None:
    """The law fails by its own assertion where samples are counted twice, or not at all."""
    with pytest.raises(AssertionError):
        check_once([1] * 5, 2, 2, mutant)


@given(st.integers(1, 40), SAMPLES, RANKS)
def test_work_is_split_evenly_and_in_blocks(cells: int, samples: int, ranks: int) -> None:
    """Ranks differ by at most one cell, or one sample if there are fewer cells than ranks; each has one block."""
    shares = split([1] * cells, samples, ranks)
    whole = cells >= ranks or samples == 1
    sizes = [len(share) if whole else sum(map(len, share.values())) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    order = [(index, sample) for share in shares for index in sorted(share) for sample in share[index]]
    assert order == sorted(order)
    if whole:
        assert all(part == range(samples) for share in shares for part in share.values())


@given(COSTS, SAMPLES, RANKS)
def test_what_costs_nothing_is_of_the_ranks_of_the_next(costs: list[int], samples: int, ranks: int) -> None:
    """A cell that costs nothing, such as the uncompressed one, has the ranks of the next that does."""
    shares = split(costs, samples, ranks)
    for index, cost in enumerate(costs):
        after = next((later for later in range(index + 1, len(costs)) if costs[later]), None)
        if not cost and after is not None:
            assert all(share.get(index) == share.get(after) for share in shares)


def test_few_cells_are_split_by_samples() -> None:
    assert split([0, 1], 3, 2) == [{0: range(1), 1: range(1)}, {0: range(1, 3), 1: range(1, 3)}]
    assert split([0, 1, 1], 3, 3) == [
        {0: range(2), 1: range(2)},
        {0: range(2, 3), 1: range(2, 3), 2: range(1)},
        {2: range(1, 3)},
    ]


def test_cells_are_named_by_place() -> None:
    cells = [
        Cell("m", "t", ""),
        Cell("m", "t", "", "knorm", "", 0.5, 0),
        Cell("m", "", "niah", "h2o", "budget", 0.25, 1),
    ]
    assert list(in_words(cells)) == ["m on t: uncompressed, knorm 0.5", "m, task niah: h2o budget 0.25"]
    assert str(Cell("m", "t", "", "mine", "", None, 0)) == "m on t: mine"


@pytest.mark.parametrize(
    ("row", "cell"),
    [
        ({"model": "m", "text": "t", "press": UNCOMPRESSED, "schedule": "step", "keep_ratio": 1.0}, Cell("m", "t", "")),
        (
            {"model": "m", "text": "t", "press": "knorm", "schedule": "step", "keep_ratio": 0.5},
            Cell("m", "t", "", "knorm", "", 0.5, 3),
        ),
        (
            {"model": "m", "task": "niah", "press": "knorm", "schedule": "step", "keep_ratio": 0.5},
            Cell("m", "", "niah", "knorm", "step", 0.5),
        ),
    ],
)
def test_a_row_has_the_cell_of_its_fields(row: dict[str, object], cell: Cell) -> None:
    assert Cell.of(row) == cell
