"""Rules 5, 9 and 12 where storage is reused: slots in any order, cropped, padded, selected and reset."""

import pytest
import torch
from torch import Tensor

from presses.drive import feed, values_of
from pressgauge import KnormPress, Press, PressedCache, RandomPress, StreamingLLMPress, replay
from pressgauge.conformance.strategies import HEADS, LAYERS, normal_keys
from pressgauge.history import NEVER


def expect(cache: PressedCache, press: Press, keys: Tensor, passes: list[int]) -> None:
    """What is read of a cache is what a replay of these passes says was never evicted, in the order of positions."""
    keys, values = keys[:, :, : sum(passes)], values_of(keys)[:, :, : sum(passes)]
    for index, layer in enumerate(cache.layers):
        table = replay(press, keys, passes, layer=index)
        assert torch.equal(cache.evicted_at[index], table)
        for row, head in torch.cartesian_prod(torch.arange(keys.shape[0]), torch.arange(HEADS)).tolist():
            kept = torch.nonzero(table[row, head] == NEVER)[:, 0]
            assert layer.positions[row, head].tolist() == kept.tolist()
            assert torch.equal(layer.keys[row, head], keys[row, head, kept])
            assert torch.equal(layer.values[row, head], values[row, head, kept])


def feed_on(cache: PressedCache, keys: Tensor, start: int, passes: list[int]) -> None:
    """Feed a cache that has seen ``start`` tokens the ones that follow."""
    values = values_of(keys)
    for length in passes:
        for layer in range(LAYERS):
            cache.update(keys[:, :, start : start + length], values[:, :, start : start + length], layer)
        start += length


@pytest.mark.parametrize("press_class", [KnormPress, RandomPress, StreamingLLMPress])
def test_several_entries_leave_reused_storage_at_once(press_class: type[Press]) -> None:
    """Rules 4 and 5: passes of a few tokens, each less than a fiftieth of what is held, evict as many at once."""
    press = press_class(0.1, prune_after=300, schedule="budget")
    passes = [320, *[2, 5, 3, 4, 1] * 6]
    keys = normal_keys(sum(passes), seed=5)
    fed: list[int] = []

    def look(cache: PressedCache, seen: int) -> None:
        fed.append(passes[len(fed)])
        expect(cache, press, keys, fed)

    feed(press, keys, passes, look=look)


@pytest.mark.parametrize(("interval", "decoded"), [(1, 21), (4, 42)])
@pytest.mark.parametrize("press_class", [KnormPress, RandomPress])
def test_a_crop_takes_scores_along_with_their_entries(press_class: type[Press], interval: int, decoded: int) -> None:
    """Rule 12: after evictions that reused storage, a cropped cache goes on as one that was never fed what went."""
    press = press_class(0.5, prune_after=60, schedule="budget", interval=interval)
    keys, other = normal_keys(300, seed=6), normal_keys(300, seed=7)
    passes = [200] + [1] * decoded
    cache = feed(press, keys, passes)
    before = cache.evictions
    assert before > LAYERS * HEADS * 100
    left = sum(passes) - 1
    cache.crop(-1)
    assert cache.evictions == before
    other[:, :, :left] = keys[:, :, :left]
    expect(cache, press, other, passes[:-1])
    feed_on(cache, other, left, [1] * 40)
    expect(cache, press, other, [*passes[:-1], *[1] * 40])


def _cropped(press: Press, keys: Tensor, passes: list[int], length: int) -> PressedCache:
    cache = feed(press, keys, passes)
    cache.crop(length)
    return cache


def test_a_crop_reaches_back_to_the_last_eviction_and_no_further() -> None:
    """Rule 12: right after the pass that last evicted is near enough, and one token before its end is too far."""
    press = KnormPress(0.5, prune_after=4, interval=8)
    keys = normal_keys(40, seed=8)
    passes = [12, 1, 1, 1]
    for length in (12, -3):
        cache = _cropped(press, keys, passes, length)
        assert cache.seen == 12
        expect(cache, press, keys, [12])
        feed_on(cache, keys, 12, [1] * 20)
        expect(cache, press, keys, [12] + [1] * 20)
    for length in (11, -4):
        cache = feed(press, keys, passes)
        with pytest.raises(ValueError, match="cannot crop to 11 tokens: layer 0 evicted entries after token 12"):
            cache.crop(length)
        expect(cache, press, keys, passes)


def test_a_crop_reaches_back_to_the_start_and_no_further() -> None:
    """As transformers' caches do: by as many tokens as were fed is to nothing, and by more is not at all."""
    press = KnormPress(0.5, prune_after=20)
    keys, other = normal_keys(40, seed=9), normal_keys(40, seed=10)
    cache = _cropped(press, keys, [9, 1], -10)
    assert (cache.seen, cache.held, cache.nbytes) == (0, [0] * LAYERS, 0)
    feed_on(cache, other, 0, [9] + [1] * 31)
    expect(cache, press, other, [9] + [1] * 31)
    for length in (-11, 0, 10, 11):
        cache = _cropped(press, keys, [9, 1], length)
        assert cache.seen == 10
        expect(cache, press, keys, [9, 1])
    for length in (9, -1):
        cache = _cropped(press, keys, [9, 1], length)
        assert cache.seen == 9
        expect(cache, press, keys, [9])


def test_a_crop_frees_what_it_takes() -> None:
    """Rule 9: no storage of what was cropped is kept, whether or not anything was evicted."""
    entry = 8 * (4 + 2) * HEADS * LAYERS
    for prune_after, held in ((1000, 100), (50, 50)):
        press = KnormPress(0.5, prune_after=prune_after, interval=1000)
        cache = _cropped(press, normal_keys(200, seed=11), [100, 100], 100)
        assert cache.held == [held] * LAYERS
        assert cache.nbytes == held * entry
        assert cache.overhead_nbytes <= 16 * held * HEADS * LAYERS
