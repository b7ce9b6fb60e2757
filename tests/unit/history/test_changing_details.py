"""Replay with changing scores: what it computes ahead and leaves in place changes nothing."""

import pytest
import torch
from torch import Tensor

from pressgauge import H2OPress, KeyDiffPress, Press, SnapKVPress, TOVAPress, replay
from pressgauge.history import NEVER, changing
from pressgauge.history.changing import _Held

PRESSES: list[Press] = [
    H2OPress(0.1, prune_after=40),
    SnapKVPress(0.1, prune_after=40, recent=4, schedule="budget"),
    TOVAPress(0.1, prune_after=40),
    KeyDiffPress(0.1, prune_after=40),
]
PASSES = [50, *[1] * 30, 3, *[1] * 7]


def states(heads: int, seed: int) -> Tensor:
    """Of two rows, 90 tokens and 4 dimensions."""
    return torch.randn(2, heads, 90, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(press: Press, padding: int = 0) -> Tensor:
    """Eviction history of the tokens, with columns of padding before them."""
    keys, queries = (torch.nn.functional.pad(states(*which), (0, 0, padding, 0)) for which in ((2, 0), (4, 1)))
    passes = [PASSES[0] + padding, *PASSES[1:]]
    return replay(press, keys, passes, padding=[padding] * 2, queries=queries)[..., padding:]


@pytest.mark.parametrize("press", PRESSES, ids=lambda press: type(press).__name__)
def test_single_evictions_are_those_of_the_general_way(press: Press) -> None:
    """Rows with a column of padding evict in the general way, one pass later by the count of columns."""
    plain, padded = table(press), table(press, 1)
    assert int((plain < NEVER).sum()) == 2 * 2 * 50
    assert plain.equal(torch.where(padded == NEVER, NEVER, padded - 1))


@pytest.mark.parametrize("ahead", [1, 3, 10])
@pytest.mark.parametrize("press", PRESSES[:3], ids=lambda press: type(press).__name__)
def test_attention_computed_ahead_is_that_of_each_pass(
    press: Press, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens ahead it is computed, and where there is no room for any."""
    expected = table(press)
    monkeypatch.setattr(changing, "_AHEAD", ahead)
    assert table(press).equal(expected)
    monkeypatch.setattr(changing, "MOST", 0)
    assert table(press).equal(expected)


def test_an_entry_evicted_alone_leaves_a_padding_slot() -> None:
    """With position -1 and a key of zeros, until the entries are moved together."""
    keys = states(2, 0)
    held = _Held(keys, [0, 0])
    held.add(5)
    assert held.filler is None
    slots = torch.tensor([[[1], [4]], [[0], [2]]])
    assert held.drop(slots.flatten().numpy()).tolist() == [1, 4, 0, 2]
    expected = torch.arange(5).expand(2, 2, 5).scatter(2, slots, -1)
    assert held.positions.equal(expected)
    assert held.filler is not None
    assert held.filler.equal(expected < 0)
    assert held.keys.equal(keys[:, :, :5].masked_fill((expected < 0)[..., None], 0))
    kept = (expected < 0).long().argsort(dim=-1, stable=True)[..., :4]
    held.keep(kept, expected.gather(2, kept))
    assert held.filler is None
    assert (held.used, held.known) == (4, 5)
    assert held.keys.equal(keys.gather(2, kept[..., None].expand(-1, -1, -1, 4)))
