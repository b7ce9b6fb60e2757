"""Replay with changing scores: what it computes ahead and leaves in place changes nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge import H2OPress, KeyDiffPress, Press, SnapKVPress, TOVAPress, replay
from pressgauge.history import NEVER, likeness, voting
from pressgauge.history.held import Held
from pressgauge.presses.keydiff import cosines, units
from pressgauge.rules import Window
from support.budgets import BlinkingKeyDiffPress, BlinkingTOVAPress, SparingTOVAPress
from support.drive import feed

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
    monkeypatch.setattr(voting, "AHEAD", ahead)
    assert table(press).equal(expected)
    monkeypatch.setattr(voting, "MOST", 0)
    assert table(press).equal(expected)


def test_an_entry_evicted_alone_leaves_a_padding_slot() -> None:
    """With position -1 and a key of zeros, until the entries are moved together."""
    keys = states(2, 0)
    held = Held(keys, [0, 0])
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


def general(press: Press, monkeypatch: pytest.MonkeyPatch, *args: Any, **given: Any) -> Tensor:
    """The replay without shortcuts."""
    with monkeypatch.context() as patch:
        patch.setattr("pressgauge.history.changing.follows", lambda press, votes: False)
        patch.setattr("pressgauge.history.changing.compares", lambda press, keys: False)
        return replay(press, *args, **given)


SHORTCUTS: list[Press] = [
    H2OPress(0.5, prune_after=60, sinks=2),
    H2OPress(0.3, prune_after=20, recent_share=0, interval=2),
    TOVAPress(0.5, prune_after=60),
    TOVAPress(0.3, prune_after=20, sinks=3, recent=4),
    SnapKVPress(0.5, prune_after=60, recent=9, schedule="budget"),
    SnapKVPress(0.3, prune_after=20, recent=1, sinks=2, kernel=3, schedule="step"),
    KeyDiffPress(0.5, prune_after=60),
    KeyDiffPress(0.3, prune_after=20, sinks=2, recent=4, interval=2),
    KeyDiffPress(0.3, prune_after=20, schedule="step"),
]


@pytest.mark.parametrize("passes", [[1] * 200, [40, *[1] * 60, 2, *[1] * 50, 30, *[1] * 18]], ids=["singly", "mixed"])
@pytest.mark.parametrize("press", SHORTCUTS, ids=repr)
def test_shortcuts_change_no_eviction(press: Press, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With grouped queries, in two rows, and with repeated keys, which tie."""
    generator = torch.Generator().manual_seed(4)
    keys, queries = (torch.randn(2, heads, 200, 8, generator=generator, dtype=torch.float64) for heads in (2, 6))
    keys[:, :, 100:160] = keys[:, :, 30:90]
    found = replay(press, keys, passes, queries=queries)
    assert found.equal(general(press, monkeypatch, keys, passes, queries=queries))
    assert int((found < NEVER).sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [SparingTOVAPress, BlinkingTOVAPress, BlinkingKeyDiffPress])
def test_protected_tokens_that_come_and_go_are_spared_in_the_general_way(
    kind: type[Press], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A protected token may have neighbours that were evicted when they were not protected."""
    generator = torch.Generator().manual_seed(seed)
    keys, queries = (torch.randn(2, heads, 200, 8, generator=generator, dtype=torch.float64) for heads in (2, 6))
    press = kind(0.3, prune_after=20)
    found = replay(press, keys, [1] * 200, queries=queries)
    assert found.equal(general(press, monkeypatch, keys, [1] * 200, queries=queries))
    if not press.needs_queries:
        assert found.equal(feed(press, keys, [1] * 200).evicted_at[0])


class Alternating(TOVAPress):
    """Retains in every second layer what it evicts in the others."""

    def score(self, keys: Tensor, *, layer: int, **given: Any) -> Tensor:
        scores = super().score(keys, layer=layer, **given)
        return -scores if layer % 2 else scores


class Reversed(TOVAPress):
    """Retains what TOVAPress evicts."""

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        return -super().score(keys, **given)


@pytest.mark.parametrize("window", [None, Window(40)])
def test_scores_are_those_of_the_layer(window: Window | None) -> None:
    """In every second one, those of the reversed press."""
    keys, queries = states(2, 0), states(4, 1)
    given: dict[str, Any] = {"queries": queries, "window": window}
    even, odd = (replay(Alternating(0.5, prune_after=20), keys, [1] * 90, layer=layer, **given) for layer in (2, 3))
    assert even.equal(replay(TOVAPress(0.5, prune_after=20), keys, [1] * 90, **given))
    assert odd.equal(replay(Reversed(0.5, prune_after=20), keys, [1] * 90, **given))
    assert not odd.equal(even)


class ReversedH2O(H2OPress):
    """Retains what H2OPress evicts."""

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        return -super().score(keys, **given)


class ReversedKeyDiff(KeyDiffPress):
    """Retains what KeyDiffPress evicts."""

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        return -super().score(keys, **given)


@pytest.mark.parametrize("kind", [ReversedH2O, ReversedKeyDiff])
def test_a_class_with_another_score_does_not_take_the_shortcut(
    kind: type[Press], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evictions are those of its score, and differ from those of the class that it derives from."""
    keys, queries = states(2, 0), states(4, 1)
    press = kind(0.5, prune_after=20)
    found = replay(press, keys, [1] * 90, queries=queries)
    assert found.equal(general(press, monkeypatch, keys, [1] * 90, queries=queries))
    base = kind.__base__
    assert base is not None
    assert not found.equal(replay(base(0.5, prune_after=20), keys, [1] * 90, queries=queries))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_key_that_is_not_finite_is_compared_in_the_general_way(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As are the entries after it, since the mean direction is not finite while the key is held."""
    keys = states(2, 0)
    keys[0, 1, 50, 2] = number
    press = KeyDiffPress(0.5, prune_after=20)
    found = replay(press, keys, [1] * 90)
    assert found.equal(general(press, monkeypatch, keys, [1] * 90))
    assert int((found < NEVER).sum()) == 2 * 2 * 45


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [None, 0.01])
def test_near_ties_to_the_mean_direction_are_those_of_the_general_way(
    share: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of two dimensions have many directions alike. The sum of centred ones is shorter than one of them. Some in
    float32 are too near to an edge of the rounding to be told from a product of matrices."""
    exact: list[int] = []

    def compared(unit: Tensor, mean: Tensor) -> Tensor:
        exact.append(unit.shape[1])
        return cosines(unit, mean)

    monkeypatch.setattr(likeness, "cosines", compared)
    keys = torch.randn(4, 6, 200, 2, generator=torch.Generator().manual_seed(5), dtype=dtype)
    if share is not None:
        keys[:, :, 1::2] = share * keys[:, :, 1::2] - keys[:, :, ::2]
    press = KeyDiffPress(0.5, prune_after=60)
    found = replay(press, keys, [1] * 200)
    assert exact or dtype == torch.float64
    assert found.equal(general(press, monkeypatch, keys, [1] * 200))


@pytest.mark.parametrize("seed", range(2))
def test_keys_with_a_common_part_are_compared_as_in_the_general_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in which their cosines differ in the last digits only, and a sum of them in float32 in more."""
    keys = torch.randn(4, 8, 300, 3, generator=torch.Generator().manual_seed(seed))
    keys[..., 0] += 30
    press = KeyDiffPress(0.5, prune_after=100)
    assert replay(press, keys, [1] * 300).equal(general(press, monkeypatch, keys, [1] * 300))


def test_keys_that_cancel_have_no_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores are equal, and the newest entry is evicted, as in the general way."""
    keys = torch.randn(2, 3, 90, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    keys[:, :, 1:60:2] = -keys[:, :, :60:2]
    keys[:, :, 60:] = 0
    press = KeyDiffPress(0.5, prune_after=60)
    found = replay(press, keys, [1] * 90)
    assert found.equal(general(press, monkeypatch, keys, [1] * 90))
    assert found[..., 60:].equal(torch.arange(61, 91).expand(2, 3, 30))


def test_keys_are_normalised_once_per_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And after a quarter of the entries was evicted. The score itself is not computed for single evictions, and few of
    these need exact cosines."""
    looked: list[int] = []

    def counted(keys: Tensor, empty: Tensor) -> Tensor:
        looked.append(keys.shape[2])
        return units(keys, empty)

    monkeypatch.setattr(likeness, "units", counted)
    exact: list[int] = []

    def compared(unit: Tensor, mean: Tensor) -> Tensor:
        exact.append(unit.shape[1])
        return cosines(unit, mean)

    monkeypatch.setattr(likeness, "cosines", compared)
    monkeypatch.setattr(KeyDiffPress, "score", lambda *_, **__: pytest.fail("scored"))
    keys = torch.randn(1, 2, 500, 4, generator=torch.Generator().manual_seed(6))
    table = replay(KeyDiffPress(0.5, prune_after=300), keys, [1] * 500)
    assert int((table < NEVER).sum()) == 2 * 200
    # At token 301, at the end of the stretch, twice with the entries together again, and between these.
    assert len(exact) < 20
    assert looked == [301 + 64, 366 + 64, 301 + 64, 366 + 58, 301 + 47]
