"""What attention state remembers, and for how long."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge.presses import attention_scores
from pressgauge.presses.attention_scores import Attention, AttentionSums, LastQueries, weights


def observe(votes: LastQueries, *lengths: int) -> None:
    """Passes of these lengths, of 1 row, 2 query heads and 4 dimensions in float64."""
    for length in lengths:
        states = torch.ones(1, 2, length, 4, dtype=torch.float64)
        votes.observe(Attention(states, states, None, 1.0))


def test_queries_that_left_the_window_are_not_remembered() -> None:
    """At any time no more than the window and the rest of the pass that its oldest query came in."""
    query = 2 * 4 * 8
    cases = ((2, (1, 1, 1), 2), (2, (1,), 1), (3, (2, 2), 4), (3, (2, 1, 2), 3), (2, (5,), 2), (2, (1, 1, 1, 3), 2))
    for most, lengths, remembered in cases:
        votes = LastQueries(most)
        observe(votes, *lengths)
        assert votes.nbytes == remembered * query
        assert votes.queries.shape[2] == min(most, sum(lengths))
        assert votes.nbytes == min(most, sum(lengths)) * query


def normal(rows: int, heads: int, length: int, seed: int) -> Tensor:
    """States of 4 dimensions in float64."""
    return torch.randn(rows, heads, length, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_are_in_float32_or_wider() -> None:
    """Keys of half precision are converted before they are multiplied."""
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        queries, keys = normal(1, 2, 3, 0).to(dtype), normal(1, 1, 5, 1).to(dtype)
        found = weights(queries, keys, None, 0.5)
        assert found.dtype == Attention(queries, keys, None, 0.5).received().dtype == wide
        logits = queries.double() @ keys.double().mT * 0.5
        logits[..., 2:].masked_fill_(torch.ones(3, 3, dtype=torch.bool).triu(1), -torch.inf)
        torch.testing.assert_close(found[:, 0].double(), logits.softmax(dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("most", "block"), [(1, 1), (47, 1), (48, 2), (24 * 4, 4), (10**6, 5)])
def test_attention_is_summed_over_blocks_of_queries(
    most: int, block: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block has more than ``MOST`` weights unless it is a single query, and the sum is that over all at once."""
    queries, keys = normal(2, 2, 5, 0), normal(2, 1, 6, 1)
    filler = torch.tensor([[[False] * 6], [[True] * 3 + [False] * 3]]) if padded else None
    whole = weights(queries, keys, filler, 0.5)
    if filler is not None:
        whole[1, :, :, :2] = 0
    expected = whole.sum(dim=(2, 3)) / 2
    blocks: list[int] = []

    def noted(queries: Tensor, *given: Any) -> Tensor:
        blocks.append(queries.shape[2])
        return weights(queries, *given)

    monkeypatch.setattr(attention_scores, "MOST", most)
    monkeypatch.setattr(attention_scores, "weights", noted)
    torch.testing.assert_close(Attention(queries, keys, filler, 0.5).received(), expected)
    assert (max(blocks), sum(blocks)) == (block, 5)


def test_sums_of_padding_slots_are_zero() -> None:
    """Also where a padding slot took the place of an entry that had received attention."""
    sums = AttentionSums()
    states = normal(1, 1, 3, 0)
    sums.observe(Attention(states, states, None, 1.0))
    later = normal(1, 1, 4, 1)
    sums.observe(Attention(later[:, :, 3:], later, torch.tensor([[[False, True, False, False]]]), 1.0))
    found = sums.of(later)
    assert found[0, 0, 1] == 0
    torch.testing.assert_close(found.sum(), torch.tensor(4.0, dtype=torch.float64) - received_by_second(states))


@pytest.mark.parametrize(("most", "lengths"), [(3, (2, 1, 2)), (3, (5,)), (4, (1, 1)), (1, (2, 1)), (2, (1, 1, 1, 3))])
def test_the_last_queries_share_one_unit_of_attention(most: int, lengths: tuple[int, ...]) -> None:
    """Scores are the mean attention of the window's queries, also once entries were evicted."""
    seen = sum(lengths)
    queries, keys = normal(1, 2, seen, 0), normal(1, 1, seen, 1)
    votes = LastQueries(most)
    start = 0
    for length in lengths:
        stop = start + length
        votes.observe(Attention(queries[:, :, start:stop], keys[:, :, :stop], None, 0.5))
        start = stop
    count = min(most, seen)
    expected = weights(queries[:, :, -count:], keys, None, 0.5).mean(dim=(2, 3))
    torch.testing.assert_close(votes.of(keys), expected)
    votes.keep(torch.arange(seen)[None, None])
    torch.testing.assert_close(votes.of(keys), expected)


def test_sums_remember_one_number_for_each_entry() -> None:
    """And nothing before the first pass."""
    sums = AttentionSums()
    assert sums.nbytes == 0
    states = normal(2, 3, 5, 0)
    sums.observe(Attention(states, states, None, 1.0))
    assert sums.nbytes == 2 * 3 * 5 * 8


def received_by_second(states: Tensor) -> Tensor:
    """Attention of three queries to the second entry."""
    return weights(states, states, None, 1.0)[0, 0, 0, :, 1].sum()
