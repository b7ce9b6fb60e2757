"""Ranking, where the cache relies on it."""

import itertools

import numpy as np
import pytest
import torch

from pressgauge.presses.ranking import choose, last_choice, last_of_lowest, lowest, rank, spare, surely_last_of_lowest
from pressgauge.rules import Budget, Ledger


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_lowest_ranked_entries_are_named_in_ascending_order(count: int) -> None:
    """As sorting each head's ranks in Python names them."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.stack([torch.randperm(7, generator=generator) for _ in range(6)]).view(2, 3, 7)
    expected = [[sorted(sorted(range(7), key=head.__getitem__)[:count]) for head in row] for row in ranks.tolist()]
    assert lowest(ranks, count).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_are_rounded_to_ten_bits_half_to_even(dtype: torch.dtype, sign: int) -> None:
    """Scores that are equal then rank by position; the steps between 1 and 2 are of 2 ** -9."""
    step = 2.0**-9
    for score, rounded in ((0.25, 0), (0.5, 0), (0.75, 1), (1.5, 2), (2.5, 2), (3.5, 4)):
        if dtype == torch.float16 and score % 0.5:
            continue
        scores = sign * (1 + step * torch.tensor([score, rounded - 1, rounded, rounded + 1], dtype=torch.float64))
        ranks = rank(scores.to(dtype)[None, None], torch.arange(4)[None, None])[0, 0].tolist()
        ascending = sorted(range(4), key=ranks.__getitem__)
        assert ascending == ([1, 2, 0, 3] if sign > 0 else [3, 2, 0, 1])


@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 2, 0], [1, 2, 0], [0, 0, 7]])
def test_the_newest_tokens_of_each_row_are_spared(padding: list[int]) -> None:
    """They rank above all others, counted in the row's own tokens, and padding slots stay last."""
    budget = Budget(0.5, prune_after=2, recent=2)
    ledger = Ledger(budget)
    ledger.feed(8, padding)
    positions = (torch.arange(8) - torch.tensor(padding)[:, None, None]).clamp(min=-1)
    ranks = rank(torch.zeros(3, 1, 8), positions)
    most = torch.iinfo(torch.int64).max
    expected = [
        [[most if column >= max(6, pad) else rank for column, rank in enumerate(head)] for head in row]
        for row, pad in zip(ranks.tolist(), padding, strict=True)
    ]
    assert spare(budget, ranks, positions, ledger.balance).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_choices_are_the_lowest_ranks(dtype: torch.dtype) -> None:
    """Of numbers of both signs, zeros, ties, and numbers halfway between two roundings."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-1100, 1100, (400, 1, 12), generator=generator).to(dtype)
    halves = steps * (1 + torch.randint(0, 3, steps.shape, generator=generator) * 2.0**-11)
    scores = torch.cat([halves, steps / 1024, -halves.abs(), halves.abs(), steps.sign() * 0.0])
    scores = scores.nextafter(scores + torch.randint(-1, 2, scores.shape, generator=generator))
    empty = torch.rand(scores.shape, generator=generator) < 0.3
    empty[..., 5] = False
    positions = torch.arange(12).expand(scores.shape)
    expected = rank(scores, positions).masked_fill(empty, torch.iinfo(torch.int64).max).argmin(dim=-1).flatten()
    assert last_choice(scores, empty).tolist() == expected.tolist()
    assert last_of_lowest(scores.masked_fill(empty, torch.inf)[:, 0].numpy()).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_choices_are_the_lowest_ranks_of_extreme_numbers(dtype: torch.dtype) -> None:
    """Of pairs of numbers, near the largest and the smallest, subnormal or zero, or minus infinity."""
    kind = torch.finfo(dtype)
    sizes = torch.tensor([kind.max * (1 - 2.0**-9), kind.tiny, kind.tiny * kind.eps * 5, 1.0, 0.0], dtype=dtype)
    near = (
        sizes[:, None] * torch.tensor([1, 1 - 2.0**-11, 1 - 2.0**-10, 1 - 2.0**-9, 1 - 2.0**-7], dtype=dtype)
    ).flatten()
    numbers = torch.cat([near, -near, torch.tensor([-torch.inf], dtype=dtype)])
    scores = torch.cartesian_prod(numbers, numbers)
    expected = rank(scores[:, None], torch.arange(2).expand(len(scores), 1, 2)).argmin(dim=-1).flatten().numpy()
    with np.errstate(over="raise", invalid="raise"):
        found = np.concatenate([last_of_lowest(line[None]) for line in scores.numpy()])
    # Comparing lists would take minutes if they differed.
    assert (found == expected).all()
    assert (last_of_lowest(scores.numpy()) == expected).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_farthest_scores_that_are_rounded_alike_tie(dtype: torch.dtype, sign: int) -> None:
    """The later of two at the ends of an interval is chosen, and the lower one of two beyond them."""
    for step in range(1, 100, 7):
        middle, half = 1 + step * 2.0**-9, torch.tensor(2.0**-10, dtype=dtype)
        ends = torch.stack([middle - half, middle + half])
        beyond, inside = (ends.nextafter(to) for to in (ends.new_tensor([0, 9]), ends.new_full((2,), middle)))
        for pair, chosen in ((inside, 1), (beyond, 0 if sign > 0 else 1)):
            assert last_of_lowest((sign * pair)[None].numpy()) == [chosen]
            assert last_of_lowest((sign * pair)[None].flip(1).numpy()) == [1 if pair is inside else 1 - chosen]


@pytest.mark.parametrize("margin", [2.0**-7, 2.0**-10])
def test_a_sure_choice_is_not_that_of_scores_known_too_roughly(margin: float) -> None:
    """Two scores, known up to more than the steps between numbers of 10 bits, or to half of one."""
    for distance in np.arange(0, 4 * margin, margin / 16):
        sure = surely_last_of_lowest(np.array([[1.0, 1.0 + distance]]), margin)
        assert sure is None or distance > 2 * margin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sure_choice_is_that_of_all_scores_within_the_margin(dtype: torch.dtype, sign: int) -> None:
    """Scores are near and on the edges between those of 10 bits; all are moved up, down or not at all."""
    margin = 2.0**-9 / 32
    generator = torch.Generator().manual_seed(0)
    moves = torch.tensor(list(itertools.product((-margin, 0, margin), repeat=4)), dtype=dtype)
    unsure = 0
    for _ in range(200):
        scores = sign * (1 + torch.randint(0, 40, (1, 4), generator=generator).to(dtype) * 2.0**-9 / 16)
        possible = set(last_of_lowest((scores + moves).numpy()).tolist())
        found = surely_last_of_lowest(scores.numpy(), margin)
        if found is None:
            unsure += 1
        else:
            assert possible == set(found.tolist())
    assert 10 < unsure < 190


def test_a_choice_is_unsure_where_one_line_is() -> None:
    """Two lines, of which the second has a score on an edge."""
    scores = np.array([[1.0, 1.5, np.inf], [2.0, 1.0, 1 + 2.0**-10]])
    assert surely_last_of_lowest(scores[:1], 1e-9) == [0]
    assert surely_last_of_lowest(scores, 0.0).tolist() == [0, 2]  # type: ignore[union-attr]
    assert surely_last_of_lowest(scores, 1e-9) is None


def test_a_single_choice_ranks_nan_below_every_number_and_integers_exactly() -> None:
    """The later one of several, and never a padding slot."""
    scores = torch.tensor([[[-torch.inf, torch.nan, 2.0, torch.nan, torch.nan]]])
    empty = torch.tensor([[[False, False, False, False, True]]])
    assert last_choice(scores, empty).tolist() == [3]
    assert last_choice(torch.tensor([[[5000, 4999, 4999, 5001, 1]]]), empty).tolist() == [2]


@pytest.mark.parametrize("keep", [1, 5, 6, 7])
def test_entries_in_order_are_chosen_as_any_others_are(keep: int) -> None:
    """Also where one of them is evicted: the first, the last or one between."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (5, 8, 7), generator=generator).double()
    positions = torch.arange(3, 24, 3).expand(scores.shape)
    ranks = rank(scores, positions)
    assert {0, 3, 6} <= set(ranks.argmin(dim=-1).flatten().tolist())
    known = choose(ranks, positions, [keep] * 5, ordered=True)
    for found, expected in zip(known, choose(ranks, positions, [keep] * 5), strict=True):
        assert found.equal(expected)


def test_rows_that_retain_different_numbers_are_chosen_in_the_general_way() -> None:
    """A row that evicts one entry next to a row that evicts two."""
    positions = torch.arange(4).expand(2, 1, 4)
    ranks = rank(torch.tensor([3.0, 1.0, 2.0, 4.0]).expand(2, 1, 4), positions)
    kept, stays, gone = choose(ranks, positions, [3, 2], ordered=True)
    assert kept[0].tolist() == [[0, 2, 3]]
    assert (stays.tolist(), gone.tolist()) == ([[[0, 2, 3]], [[-1, 0, 3]]], [[[-1, 1]], [[2, 1]]])
    _, stays, gone = choose(ranks, positions, [4, 3], ordered=True)
    assert (stays.tolist(), gone.tolist()) == ([[[0, 1, 2, 3]], [[-1, 0, 2, 3]]], [[[-1]], [[1]]])
