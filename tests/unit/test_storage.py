"""Rules 5, 9 and 12 with reused storage: slots in any order, cropped, padded, selected and reset."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import H2OPress, KnormPress, Press, PressedCache, RandomPress, replay
from pressgauge.conformance import architectures
from pressgauge.conformance.strategies import HEADS, LAYERS, normal_keys
from pressgauge.conformance.versions import cache_of, using
from pressgauge.history import NEVER
from support.drive import feed, run, values_of


def expect(cache: PressedCache, press: Press, keys: Tensor, passes: list[int]) -> None:
    """Check that entries read from a cache are those retained by a replay of these passes, in the order of
    positions."""
    keys, values = keys[:, :, : sum(passes)], values_of(keys)[:, :, : sum(passes)]
    for index, layer in enumerate(cache.layers):
        table = replay(press, keys, passes, layer=index)
        assert torch.equal(cache.evicted_at[index], table)
        for row, head in torch.cartesian_prod(torch.arange(keys.shape[0]), torch.arange(HEADS)).tolist():
            kept = torch.nonzero(table[row, head] == NEVER)[:, 0]
            assert layer.positions[row, head].tolist() == kept.tolist()
            assert torch.equal(layer.keys[row, head], keys[row, head, kept])
            assert torch.equal(layer.values[row, head], values[row, head, kept])


@torch.no_grad()
def feed_on(cache: PressedCache, keys: Tensor, start: int, passes: list[int]) -> None:
    """Feed a cache that has seen ``start`` tokens the following ones."""
    values = values_of(keys)
    for length in passes:
        for layer in range(LAYERS):
            cache.update(keys[:, :, start : start + length], values[:, :, start : start + length], layer)
        start += length


@pytest.mark.parametrize("press_class", [KnormPress, RandomPress])
def test_several_entries_are_evicted_from_reused_storage_at_once(press_class: type[Press]) -> None:
    """Rules 4 and 5: passes of several tokens, each less than a fiftieth of the held entries, evict equally many at
    once."""
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
def test_a_crop_reorders_scores_with_their_entries(press_class: type[Press], interval: int, decoded: int) -> None:
    """Rule 12: a cache with reused storage and evictions, after a crop, equals one that was never fed the cropped
    tokens."""
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
    """Rule 12: a crop to the last evicting pass is accepted, and to one token before its end refused."""
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
    """As in transformers, a crop by all tokens or by more empties the cache."""
    press = KnormPress(0.5, prune_after=20)
    keys, other = normal_keys(40, seed=9), normal_keys(40, seed=10)
    for length in (-10, -11, -20):
        cache = _cropped(press, keys, [9, 1], length)
        assert (cache.seen, cache.held, cache.nbytes) == (0, [0] * LAYERS, 0)
        feed_on(cache, other, 0, [9] + [1] * 31)
        expect(cache, press, other, [9] + [1] * 31)
    for length in (0, 10, 11):
        cache = _cropped(press, keys, [9, 1], length)
        assert cache.seen == 10
        expect(cache, press, keys, [9, 1])
    for length in (9, -1):
        cache = _cropped(press, keys, [9, 1], length)
        assert cache.seen == 9
        expect(cache, press, keys, [9])


def test_a_crop_frees_its_storage() -> None:
    """Rule 9: storage of cropped entries is freed, with and without evictions."""
    entry = 8 * (4 + 2) * HEADS * LAYERS
    for prune_after, held in ((1000, 100), (50, 50)):
        press = KnormPress(0.5, prune_after=prune_after, interval=1000)
        cache = _cropped(press, normal_keys(200, seed=11), [100, 100], 100)
        assert cache.held == [held] * LAYERS
        assert cache.nbytes == held * entry
        assert cache.overhead_nbytes <= 16 * held * HEADS * LAYERS


def test_a_crop_of_no_tokens_is_accepted_by_every_press() -> None:
    """A crop of no tokens is accepted even by presses that do not support crops."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 24)
    press = H2OPress(0.5, prune_after=4)
    with torch.no_grad(), press(model):
        cache, other = (cache_of(model(ids[:, :10])) for _ in range(2))
        for column in range(10, 24):
            for length in (column, 0, column + 1):
                cache.crop(length)
            token = ids[:, column : column + 1]
            assert torch.equal(model(token, **using(cache)).logits, model(token, **using(other)).logits)
    assert cache.evictions
    assert all(map(torch.equal, cache.evicted_at, other.evicted_at))


def test_storage_moves_seldom() -> None:
    """Growing storage reserves space: 40 more entries do not copy 1,000 others 40 times."""
    places: list[int] = []

    def look(cache: PressedCache, seen: int) -> None:
        places.append(cache.layers[0].storage["keys"].data_ptr())

    cache = feed(KnormPress(0.5, prune_after=0), normal_keys(2080, seed=12), [2000] + [1] * 80, look=look)
    assert cache.held == [1040] * LAYERS
    assert sum(before != after for before, after in pairwise(places)) <= 5


class FailedError(Exception):
    """Raised while a model generates."""


def _fail(*_: object, **__: object) -> bool:
    raise FailedError


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_the_prompt_of_a_generation_ends_with_it(fails: bool, given: bool) -> None:
    """Under ``prefill``, a shorter first pass after ``generate`` is a prompt, with evictions after it."""
    model = architectures.shared("llama")
    ids, prompt = architectures.tokens(1, 12, seed=1), architectures.tokens(1, 20, seed=2)
    press = KnormPress(0.5, prune_after=4, schedule="prefill")
    expected = run(model, press, ids, [10, 1, 1])
    assert expected.cache.held == [5 + 2] * architectures.LAYERS
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 3, "do_sample": False}
    with torch.no_grad(), press(model):
        if fails:
            with pytest.raises(FailedError):
                model.generate(prompt, stopping_criteria=[_fail], **settings)
        else:
            model.generate(prompt, **settings)
        output = model(ids[:, :10], **(using(DynamicCache()) if given else {}))
        cache = cache_of(output)
        assert cache.held == [5] * architectures.LAYERS
        model(ids[:, 10:11], **using(cache))
        logits = model(ids[:, 11:], **using(cache)).logits
    assert torch.equal(logits, expected.logits[:, 11:])
    assert all(map(torch.equal, cache.evicted_at, expected.cache.evicted_at))


def test_a_reset_cache_takes_its_next_first_pass_for_the_prompt() -> None:
    """``reset()`` clears the prompt length, unless it was declared."""
    press = KnormPress(0.5, prune_after=2, schedule="prefill")
    keys = normal_keys(20, seed=13)
    cache = feed(press, keys, [16, 1])
    cache.reset()
    feed_on(cache, keys, 0, [8, 1, 1])
    expect(cache, press, keys, [8, 1, 1])
    assert cache.held == [4 + 2] * LAYERS
    declared = feed(press, keys, [4, 4, 1], prompt_length=8)
    declared.reset()
    feed_on(declared, keys, 0, [4, 4, 1])
    assert declared.held == [4 + 1] * LAYERS


def test_an_interrupted_pass_of_a_plain_cache_is_refused() -> None:
    """After a pass that fed some layers only, a next pass is refused, and nothing of it is counted."""
    keys = normal_keys(20, seed=14)
    cache = feed(KnormPress(0.5, prune_after=4), keys, [10])
    cache.update(keys[:, :, 10:11], keys[:, :, 10:11, :2], 0)
    with pytest.raises(RuntimeError, match="interrupted: start again with a new cache"):
        cache.update(keys[:, :, 11:12], keys[:, :, 11:12, :2], 0)
    assert cache.seen == 11
    assert cache.layers[0].keys.shape[2] == 6


def _given(mask: Tensor, start: int, end: int) -> dict[str, Any]:
    """Mask and positions of a pass over these columns."""
    return {
        "attention_mask": mask[:, :end],
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, start:end],
    }


LENGTHS = (50, 31, 12, 23)
COLUMNS = 50


def _own_passes(passes: list[int], padding: int) -> list[int]:
    """Lengths of these passes for a row with this much padding."""
    ends = [sum(passes[: count + 1]) for count in range(len(passes))]
    own = [max(0, min(length, end - padding)) for length, end in zip(passes, ends, strict=True)]
    return [length for length in own if length]


@pytest.mark.parametrize(("implementation", "near"), [("sdpa", 1e-10), ("eager", 1e-4)])
@torch.no_grad()
def test_queries_of_padding_have_no_effect(implementation: str, near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 11: padded rows equal rows alone, and masks of the press leave no query without a key, which gives NaN in
    eager float64 attention and in torch before 2.5."""
    model = architectures.build("llama")
    model.set_attn_implementation(implementation)
    ids, mask = architectures.padded(list(LENGTHS))
    passes = [8, 9, 5, 11, 4, 6, 1, 1, 5]
    press = KnormPress(0.5, prune_after=4)
    alone = []
    for row, length in enumerate(LENGTHS):
        text = ids[row : row + 1, COLUMNS - length :]
        alone.append(run(model, press, text, _own_passes(passes, COLUMNS - length)).logits[0])
    own = torch.nn.functional.scaled_dot_product_attention

    def strict(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        output = own(query, key, value, attn_mask=attn_mask, **kwargs)
        if attn_mask is None or cache.seen == passes[0]:
            return output
        return output.masked_fill(~attn_mask.any(dim=-1, keepdim=True), torch.nan)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", strict)
    cache = press.cache(model.config)
    start = 0
    with press(model):
        for length in passes:
            end = start + length
            logits = model(ids[:, start:end], **using(cache), **_given(mask, start, end)).logits
            assert not start or logits.isfinite().all()
            for row, expected in enumerate(alone):
                padding = COLUMNS - LENGTHS[row]
                first = max(start, padding)
                if first < end:
                    difference = logits[row, first - start :] - expected[first - padding : end - padding]
                    assert difference.abs().max() < near
            for layer in cache.layers:
                assert layer.keys.isfinite().all()
                assert layer.values.isfinite().all()
                filler = layer.positions < 0
                assert (layer.keys[filler] == 0).all()
                assert (layer.values[filler] == 0).all()
            start = end
    assert cache.evictions


@pytest.mark.parametrize("chosen", [[2, 0], [3, 1, 1], [False, True, False, True], [-1]])
@torch.no_grad()
def test_padded_rows_are_selected_whole(chosen: list[int] | list[bool]) -> None:
    """``batch_select_indices`` moves entries, history and counts of a row together."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded(list(LENGTHS))
    indices = torch.tensor(chosen)
    rows = torch.arange(len(LENGTHS))[indices].tolist()
    press = KnormPress(0.5, prune_after=6, skip_layers=(1,))
    passes = [44, 1, 1, 4]
    cache = run(model, press, ids[:, :46], passes[:3], mask=mask[:, :46]).cache
    cache.batch_select_indices(indices)
    with press(model):
        logits = model(ids[rows, 46:], **using(cache), **_given(mask[rows], 46, 50)).logits
    for place, row in enumerate(rows):
        padding = COLUMNS - LENGTHS[row]
        alone = run(model, press, ids[row : row + 1, padding:], _own_passes(passes, padding))
        assert (logits[place] - alone.logits[0, -4:]).abs().max() < 1e-10
        for layer, table in enumerate(cache.evicted_at):
            assert cache.held_rows(layer)[place] == alone.cache.held[layer]
            own = alone.cache.evicted_at[layer][0]
            assert torch.equal(table[place, :, padding:], torch.where(own == NEVER, NEVER, own + padding))
