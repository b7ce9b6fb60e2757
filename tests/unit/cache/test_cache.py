"""What a pressed cache shows, refuses and stores, in edge cases."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import H2OPress, KnormPress, Press, PressedCache, TOVAPress
from pressgauge.conformance import architectures
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.strategies import LAYERS, normal_keys
from pressgauge.conformance.versions import cache_of, using
from pressgauge.conventions import attention
from support.drive import CONFIG, feed, run, values_of
from support.evictions import evictions


def _update(cache: PressedCache, keys: Tensor, start: int, end: int, *layers: int) -> None:
    """Feed some layers only."""
    values = values_of(keys)
    for layer in layers or range(LAYERS):
        cache.update(keys[:, :, start:end], values[:, :, start:end], layer)


def test_a_cache_can_be_read_during_its_first_pass() -> None:
    """Reading during the first pass completes pending evictions of layers that were fed, and shows no entries of
    others."""
    press, keys = KnormPress(0.5, prune_after=4), normal_keys(20, seed=1)
    cache = press.cache(CONFIG)
    _update(cache, keys, 0, 10, 0)
    first, second = cache.layers
    assert cache.evicted_at == []
    assert cache.evictions == 0
    assert first.keys.shape[2] == 5
    assert [second.keys, second.values, second.positions, second.evicted_at] == [None] * 4
    assert cache.nbytes == first.nbytes > 0
    assert second.nbytes == 0
    _update(cache, keys, 0, 10, 1)
    _update(cache, keys, 10, 11)
    expected = feed(press, keys, [10, 1])
    assert all(map(torch.equal, cache.evicted_at, expected.evicted_at))


@pytest.mark.parametrize("skipped", [(), (1,)])
def test_a_crop_undoes_an_interrupted_pass(skipped: tuple[int, ...]) -> None:
    """After an interrupted pass, a crop makes the cache usable again, and does not change layers that were not fed."""
    press = KnormPress(0.5, prune_after=16, skip_layers=skipped)
    keys, other = normal_keys(40, seed=2), normal_keys(40, seed=3)
    other[:, :, :10] = keys[:, :, :10]
    expected = feed(press, other, [10, 1, 12, 1])
    for seen in (0,) if skipped else (0, 10):
        cache = press.cache(CONFIG)
        if seen:
            _update(cache, keys, 0, seen)
        _update(cache, keys, seen, seen + 3, 0)
        if not skipped:
            with pytest.raises(RuntimeError, match="interrupted"):
                _update(cache, keys, seen + 3, seen + 4)
        cache.crop(-3)
        assert cache.seen == seen
        for start, end in ((0, 10), (10, 11), (11, 23), (23, 24)):
            if start >= seen:
                _update(cache, other, start, end)
        for ours, theirs in zip(cache.layers, expected.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)
        assert all(map(torch.equal, cache.evicted_at, expected.evicted_at))


@torch.no_grad()
def test_a_crop_to_a_single_token_leaves_that_one() -> None:
    """Positive lengths of a crop are numbers of tokens to retain, down to 1."""
    press, keys = KnormPress(0.5, prune_after=16), normal_keys(12, seed=7)
    cache = feed(press, keys, [10])
    cache.crop(1)
    assert (cache.seen, cache.held) == (1, [1] * LAYERS)
    assert all(torch.equal(layer.keys, keys[:, :, :1]) for layer in cache.layers)


def _assisted_decoding(cache: PressedCache, length: int) -> None:
    """Crop under the name of transformers' function that removes candidate tokens."""
    cache.crop(length)


@pytest.mark.parametrize("keep_ratio", [1, 1.0])
def test_a_press_that_keeps_all_assists_decoding_as_a_dynamic_cache_does(keep_ratio: float) -> None:
    """Rule 7: a press that evicts nothing allows assisted decoding, with the tokens of a ``DynamicCache``."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 6).repeat(1, 4)
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": 12,
        "prompt_lookup_num_tokens": 3,
    }
    # transformers 5.2 needs an end-of-sequence token for assisted decoding.
    model.generation_config.eos_token_id, eos = [architectures.VOCABULARY], model.generation_config.eos_token_id
    try:
        expected = model.generate(ids, **using(DynamicCache(config=model.config)), **settings)
        press = KnormPress(keep_ratio, prune_after=4)
        found = model.generate(ids, **using(press.cache(model.config)), **settings)
    finally:
        model.generation_config.eos_token_id = eos
    assert torch.equal(found, expected)


@pytest.mark.parametrize("keep_ratio", [1, 1.0])
def test_a_press_that_keeps_all_may_take_candidates_back(keep_ratio: float) -> None:
    """Rule 7: a press that evicts nothing may remove candidates, and others are refused."""
    keys = normal_keys(12, seed=8)
    cache = feed(KnormPress(keep_ratio, prune_after=4), keys, [10])
    _assisted_decoding(cache, 8)
    assert (cache.seen, cache.held) == (8, [8] * LAYERS)
    other = feed(KnormPress(0.9, prune_after=100), keys, [10])
    with pytest.raises(ValueError, match="generate without assistant_model and prompt_lookup_num_tokens"):
        _assisted_decoding(other, 8)
    assert other.seen == 10


@pytest.mark.parametrize("prune_after", [4, 100])
def test_positions_of_padding_slots_are_minus_one(prune_after: int) -> None:
    """Positions of padding slots are -1 before and after an eviction, and those of entries exclude padding."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([12, 9, 5])
    cache = run(model, KnormPress(0.5, prune_after=prune_after), ids, [10, 1, 1], mask=mask).cache
    for index, layer in enumerate(cache.layers):
        held = cache.held_rows(index)
        for row, count in enumerate(held.tolist()):
            slots = layer.positions[row]
            assert (slots[:, : len(slots[0]) - count] == -1).all()
            assert (slots[:, len(slots[0]) - count :] >= 0).all()
        if prune_after == 100:
            assert layer.positions[2, 0].tolist() == [-1] * 7 + list(range(5))


def _decode(model: Any, press: Press, ids: Tensor, passes: list[int]) -> PressedCache:
    """The cache of an attached press that needs queries."""
    cache = DynamicCache(config=model.config)
    with press(model):
        for part in ids.split(passes, dim=1):
            model(part, **using(cache))
    assert isinstance(cache, PressedCache)
    return cache


@pytest.mark.parametrize(
    "press",
    [H2OPress(0.4, prune_after=60, recent_share=0), TOVAPress(0.4, prune_after=60)],
    ids=["h2o", "tova"],
)
@torch.no_grad()
def test_attention_scores_follow_their_entries_in_large_storage(press: Press) -> None:
    """A cache of 60 entries, with reused slots, has the evictions of the oracle."""
    model = architectures.build("llama", num_hidden_layers=1)
    ids, passes = architectures.tokens(1, 84), [64] + [1] * 20
    seen: dict[str, Any] = {}

    def note(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        seen.update(queries=query[0].tolist(), keys=key[0].tolist(), scale=scaling)
        causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
        return attention.attend(query, key, value, causal, scaling), None

    with attention.attention(model, note):
        model(ids, use_cache=False)
    expected = evictions(press, seen["keys"], seen["queries"], seen["scale"], passes)
    cache = _decode(model, press, ids, passes)
    assert cache.held == [60]
    assert cache.evicted_at[0][0].tolist() == expected


@pytest.mark.parametrize("press", [H2OPress(0.5, prune_after=20), TOVAPress(0.5, prune_after=20)], ids=["h2o", "tova"])
@torch.no_grad()
def test_remembered_attention_is_overhead(press: Press) -> None:
    """Overhead is four bytes per position, plus eight per sum or the last query of each head."""
    model = architectures.shared("llama")
    cache = _decode(model, press, architectures.tokens(1, 40), [30] + [1] * 10)
    entries = 20 * 2 * architectures.LAYERS
    remembered = 8 * entries if isinstance(press, H2OPress) else 6 * 8 * 8 * architectures.LAYERS
    assert 4 * entries + remembered <= cache.overhead_nbytes <= 1.05 * (4 * entries + remembered)


@pytest.mark.parametrize("inside", range(2))
def test_storage_of_inference_mode_is_written_to_outside_it(inside: int) -> None:
    """Storage created in inference mode is usable outside it, and the other way round."""
    press, keys = KnormPress(0.5, prune_after=100), normal_keys(160, seed=4)
    passes = [110] + [1] * 30
    cache, start = press.cache(CONFIG), 0
    for number, length in enumerate(passes):
        with torch.inference_mode(number % 2 == inside):
            _update(cache, keys, start, start + length)
            start += length
            assert cache.held == [100] * LAYERS
    expected = feed(press, keys, passes)
    assert all(map(torch.equal, cache.evicted_at, expected.evicted_at))
    assert all(torch.equal(ours.keys, other.keys) for ours, other in zip(cache.layers, expected.layers, strict=True))


@pytest.mark.parametrize("interval", [1, 8])
def test_a_soft_prompt_gets_its_gradient_through_retained_entries(interval: int) -> None:
    """The gradient of a soft prompt is that of masked attention, although later keys of the first layer need none and
    storage has free slots."""
    model = architectures.build("llama").requires_grad_(False)
    ids, passes = architectures.tokens(1, 150), [120] + [1] * 30
    soft = torch.nn.Parameter(model.get_input_embeddings()(ids[:, :120]).clone())
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: torch.cat([soft, output[:, 120:]], dim=1) if output.shape[1] >= 120 else output
    )
    press = KnormPress(0.5, prune_after=100, interval=interval)
    cache = press.cache(model.config)
    with press(model):
        logits = torch.cat([model(part, **using(cache)).logits for part in ids.split(passes, dim=1)], dim=1)
    (found,) = torch.autograd.grad(logits.square().mean(), soft)
    oracle: Any = masked_logits
    (expected,) = torch.autograd.grad(oracle.__wrapped__(model, ids, cache.evicted_at).square().mean(), soft)
    assert cache.evictions
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_there_is_no_maximum_length() -> None:
    """A cache reports no maximum length, as a ``DynamicCache`` does."""
    layer = KnormPress(0.5).cache(CONFIG).layers[0]
    other: Any = DynamicCache(config=CONFIG).layers[0]
    names = [name for name in ("get_max_cache_shape", "get_max_length") if hasattr(other, name)]
    assert names
    for name in names:
        assert getattr(layer, name)() == getattr(other, name)() == -1


def test_no_history_before_the_first_pass() -> None:
    """Before the first pass, ``evicted_at`` is empty and the cache holds nothing, with any skipped layers."""
    for skipped in ((), (0,), tuple(range(LAYERS))):
        cache = KnormPress(0.5, skip_layers=skipped).cache(CONFIG)
        assert cache.evicted_at == []
        assert (cache.seen, cache.held, cache.nbytes) == (0, [0] * LAYERS, 0)


def test_held_is_in_integers() -> None:
    """Numbers held are integers, which JSON supports."""
    cache = feed(KnormPress(0.5, prune_after=4, skip_layers=(0,)), normal_keys(12), [12])
    assert cache.held == [12, 6]
    assert all(type(count) is int for count in cache.held)


class Changed(DynamicCache):
    """A user's subclass of a cache."""


def test_caches_of_another_class_are_refused() -> None:
    """Subclasses and offloading caches are refused, and not changed."""
    model = architectures.shared("llama")
    offloading: Any = DynamicCache(config=model.config)
    offloading.offloading = True
    ids = architectures.tokens(1, 12)
    for cache, kind in ((Changed(config=model.config), Changed), (offloading, DynamicCache)):
        with (
            KnormPress(0.5, prune_after=4)(model),
            pytest.raises(ValueError, match="pass a plain DynamicCache, or none at all"),
        ):
            model(ids, **using(cache))
        assert type(cache) is kind
        assert cache.get_seq_length() == 0


def test_a_pass_of_other_rows_is_refused() -> None:
    """A pass with another number of rows is refused, and the cache is not changed."""
    keys = normal_keys(12, seed=5)
    cache = feed(KnormPress(0.5, prune_after=4), keys, [8])
    before = copy.deepcopy(cache)
    with pytest.raises(ValueError, match="this cache serves 1 rows, got a pass of 2"):
        _update(cache, keys.expand(2, -1, -1, -1), 8, 9)
    _update(cache, keys, 8, 9)
    _update(before, keys, 8, 9)
    assert all(map(torch.equal, cache.evicted_at, before.evicted_at))


@torch.no_grad()
def test_an_adopted_cache_does_not_assume_unpadded_rows() -> None:
    """Outside the context, an adopted cache is a plain one, which does not assume that rows are unpadded."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 12)
    cache = DynamicCache(config=model.config)
    with KnormPress(0.5, prune_after=20)(model):
        model(ids, **using(cache))
    assert isinstance(cache, PressedCache)
    with pytest.raises(ValueError, match="cannot evict from a batch of 2 rows that may be padded"):
        model(architectures.tokens(2, 30), **using(cache))


@torch.no_grad()
def test_a_plain_cache_takes_several_tokens_while_layers_hold_equally_many() -> None:
    """A plain cache accepts passes of several tokens until layers hold different numbers, since layers share one
    mask."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 40)
    cache = KnormPress(0.5, prune_after=16, skip_layers=(1,)).cache(model.config)
    plain = DynamicCache(config=model.config)
    for start, end in ((0, 8), (8, 11), (11, 13), (13, 16)):
        part = ids[:, start:end]
        assert torch.equal(model(part, **using(cache)).logits, model(part, **using(plain)).logits)
    model(ids[:, 16:17], **using(cache))
    model(ids[:, 17:18], **using(cache))
    assert cache.held == [16, 18, 16]
    with pytest.raises(ValueError, match=r"layers hold different numbers of entries \(16 to 18\).*feed single tokens"):
        model(ids[:, 18:20], **using(cache))
    model(ids[:, 18:19], **using(cache))


@pytest.mark.parametrize("skipped", [(0,), (1,), (0, 2)])
@torch.no_grad()
def test_a_crop_applies_to_skipped_layers(skipped: tuple[int, ...]) -> None:
    """Skipped layers are cropped with the others, and their storage is freed."""
    model = architectures.shared("llama")
    ids, other = architectures.tokens(1, 40), architectures.tokens(1, 40, seed=1)
    other[:, :20] = ids[:, :20]
    press = KnormPress(0.5, prune_after=4, skip_layers=skipped, interval=16)
    expected = run(model, press, other, [16, 4, 8, 5])
    for length in (20, -8):
        cache = run(model, press, ids, [16, 4, 8]).cache
        cache.crop(length)
        assert cache.seen == 20
        assert cache.held == [20 if layer in skipped else 12 for layer in range(architectures.LAYERS)]
        assert cache.nbytes == sum(cache.held) * 2 * 2 * 8 * 8  # KV heads, keys and values, dimension, bytes
        with press(model):
            for start, end in ((20, 28), (28, 33)):
                logits = model(other[:, start:end], **using(cache)).logits
        assert torch.equal(logits, expected.logits[:, 28:])
        assert all(map(torch.equal, cache.evicted_at, expected.cache.evicted_at))


@torch.no_grad()
def test_a_crop_before_the_first_pass_has_no_effect() -> None:
    """Before the first pass, a crop, reset, reordering or repetition has no effect."""
    model = architectures.shared("llama")
    press, ids = KnormPress(0.5, prune_after=4), architectures.tokens(1, 12)
    expected = run(model, press, ids, [12])
    cache = press.cache(model.config)
    for length in (0, 3, -3):
        cache.crop(length)
    cache.reset()
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([], dtype=torch.long))
    with press(model):
        output = model(ids, **using(cache))
    assert torch.equal(output.logits, expected.logits)
    assert cache_of(output).held == [6] * architectures.LAYERS
