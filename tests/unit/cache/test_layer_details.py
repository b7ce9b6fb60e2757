"""A layer of a pressed cache and what it shows, in the cases that only one line of code decides."""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig
from transformers.cache_utils import DynamicLayer

from pressgauge import H2OPress, KeyDiffPress, KnormPress, Press, PressedCache, SnapKVPress
from pressgauge.cache import Handed, PressedLayer, held_tokens, storage_nbytes
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using
from pressgauge.rules import Ledger

CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, num_key_value_heads=2)
NEVER = torch.iinfo(torch.int32).max


def said(sentence: str) -> str:
    """A pattern for the whole of a sentence."""
    return f"^{re.escape(sentence)}$"


def states(start: int, end: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Keys of the tokens of a text, of which later ones are longer, and their values."""
    size = torch.arange(start, end).double()[None, None, :, None] + 1
    keys = size.expand(rows, 2, -1, 3)
    return keys.clone(), -keys


def fed(press: Press, *lengths: int, rows: int = 1) -> PressedCache:
    """A plain cache after passes of these lengths."""
    cache = PressedCache(press, CONFIG, unpadded=True)
    for length in lengths:
        feed(cache, length, rows)
    return cache


def feed(cache: PressedCache, length: int, rows: int = 1) -> None:
    """One more pass, through all layers."""
    seen = cache.ledger.columns
    for layer in range(2):
        cache.update(*states(seen, seen + length, rows), layer)


def test_what_is_remembered_beside_keys_and_values_is_four_bytes_a_position_and_eight_a_rank() -> None:
    """Ranks where scores are fixed; nothing before the first eviction."""
    for press, each in ((KnormPress(0.5, prune_after=4), 4 + 8), (KeyDiffPress(0.5, prune_after=4), 4)):
        cache = fed(press, 3)
        assert [layer.overhead_nbytes for layer in cache.pressed] == [0, 0]
        assert cache.overhead_nbytes == 0
        feed(cache, 5)
        assert [layer.overhead_nbytes for layer in cache.pressed] == [2 * 4 * each] * 2
        assert cache.overhead_nbytes == 2 * 2 * 4 * each
        assert [layer.nbytes for layer in cache.pressed] == [2 * 2 * 4 * 3 * 8] * 2
        assert cache.nbytes == 2 * 2 * 2 * 4 * 3 * 8


def test_a_layer_that_is_reset_is_as_new() -> None:
    """With its press and its place."""
    press = KnormPress(0.5, prune_after=4, skip_layers=(0,))
    cache = fed(press, 10)
    layer = cache.layers[1]
    layer.settle()
    assert layer.compressed
    layer.handed = Handed(1, torch.zeros(1), torch.zeros(1))
    layer.reset()
    assert (layer.press, layer.index, layer.ledger, layer.latent) == (press, 1, cache.ledger, False)
    assert (layer.is_initialized, layer.columns, layer.used, layer.pending, layer.handed) == (False, 0, 0, False, None)
    assert [layer.keys, layer.values, layer.positions, layer.evicted_at] == [None] * 4
    assert (layer.nbytes, layer.overhead_nbytes) == (0, 0)


def test_a_layer_of_latents_is_one_after_a_reset() -> None:
    """A press scores the rotary keys with the latents, before it and after."""
    layer = PressedLayer(KnormPress(0.5, prune_after=2), 0, Ledger(KnormPress(0.5, prune_after=2)), True)
    for _ in range(2):
        layer.ledger.feed(4, [0])
        # By the latents alone the first two would be retained.
        layer.update(torch.tensor([1.0, 2, 3, 4]).view(1, 1, 4, 1), torch.tensor([9.0, 0, 9, 0]).view(1, 1, 4, 1))
        layer.settle()
        assert layer.positions is not None
        assert layer.positions.tolist() == [[[1, 3]]]
        layer.reset()
        layer.ledger = Ledger(KnormPress(0.5, prune_after=2))


def test_a_mask_of_slots_hides_later_tokens_only() -> None:
    """A single query needs none."""
    cache = fed(KnormPress(0.5, prune_after=4), 8)
    layer = cache.layers[0]
    cache.update(*states(8, 9), 0)
    assert layer.mask(1) is None
    cache.update(*states(8, 9), 1)
    cache.update(*states(9, 12), 0)
    assert layer.used == 5 + 3
    mask = layer.mask(3)
    assert mask.shape == (1, 1, 3, 8)
    assert mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == [[1] * 6 + [0, 0], [1] * 7 + [0], [1] * 8]


def test_padding_is_masked_for_all_but_itself() -> None:
    """After an eviction, in a pass of which a row's first tokens are padding."""
    press = KnormPress(0.5, prune_after=2)
    model = architectures.shared("llama")
    cache = press.cache(model.config)
    ids = architectures.tokens(2, 8)
    mask = torch.tensor([[1] * 8, [0] * 5 + [1] * 3])
    seen: list[Tensor] = []
    own = PressedLayer.mask

    def note(self: PressedLayer, tokens: int) -> Tensor | None:
        found = own(self, tokens)
        if self.index == 0 and found is not None:
            seen.append(found.clone())
        return found

    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), press(model):
        patch.setattr(PressedLayer, "mask", note)
        for start, end in ((0, 4), (4, 7), (7, 8)):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:end]
            model(ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions, **using(cache))
    assert [found.shape for found in seen] == [(2, 1, 3, 5), (2, 1, 1, 5)]
    assert seen[0][0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert seen[0][1, 0].int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert seen[1][0, 0].int().tolist() == [[1, 1, 1, 1, 1]]
    assert seen[1][1, 0].int().tolist() == [[0, 0, 1, 1, 1]]


def test_lengths_and_offsets_are_those_of_retained_entries() -> None:
    """As if they were the last columns."""
    cache = fed(KnormPress(0.5, prune_after=4), 12)
    layer = cache.layers[0]
    assert layer.get_seq_length() == 12
    assert layer.get_mask_sizes(3) == (6 + 3, 6)
    assert layer.get_mask_sizes(torch.arange(3)) == (6 + 3, 6)


def test_entries_are_shown_in_order_with_their_positions() -> None:
    """Long keys are evicted first, alike in both heads; the last pass evicts nothing."""
    cache = fed(KnormPress(0.5, prune_after=4), 6, 1, 1, 1)
    for layer in cache.layers:
        assert layer.positions.tolist() == [[[0, 1, 2, 3, 8]] * 2]
        assert layer.positions.dtype == torch.long
        assert layer.keys[0, 0, :, 0].tolist() == [1, 2, 3, 4, 9]
        assert layer.values[0, 1, :, 2].tolist() == [-1, -2, -3, -4, -9]
        assert layer.evicted_at.tolist() == [[[NEVER] * 4 + [6, 6, 7, 8, NEVER]] * 2]
    assert cache.held == [5, 5]
    assert cache.evictions == 2 * 2 * 4


def test_parts_that_are_handed_over_in_one_pass_are_counted_together() -> None:
    """The keys and values are those of the last part, which holds the others."""
    first = Handed.add(None, 3, torch.zeros(1), torch.ones(1))
    assert first.tokens == 3
    keys, values = torch.zeros(2), torch.ones(2)
    second = Handed.add(first, 2, keys, values)
    assert second.tokens == 5
    assert second.keys is keys
    assert second.values is values


def test_layers_of_other_caches_are_measured_by_their_tensors() -> None:
    """A window holds no more than its size, and a layer without keys nothing."""
    keys, values = states(0, 6)
    plain: Any = DynamicCache(config=CONFIG)
    assert storage_nbytes(plain.layers[0]) == 0
    assert held_tokens(plain.layers[1], 6) == 0
    plain.update(keys, values, 0)
    assert storage_nbytes(plain.layers[0]) == 2 * 2 * 6 * 3 * 8
    assert [held_tokens(plain.layers[0], seen) for seen in (5, 6, 7)] == [5, 6, 6]
    assert storage_nbytes(object()) == held_tokens(object(), 3) == 0
    cache = fed(KnormPress(0.5, prune_after=4), 12)
    assert storage_nbytes(cache.layers[0]) == cache.layers[0].nbytes == 2 * 2 * 6 * 3 * 8


def test_a_layer_without_keys_has_a_table_of_one_head() -> None:
    """In which nothing is ever evicted."""
    model = architectures.hybrid()
    press = KnormPress(0.5, prune_after=4, skip_layers="unprunable")
    cache = press.cache(model.config)
    with torch.no_grad(), press(model):
        model(architectures.tokens(1, 12), **using(cache))
    tables = cache.evicted_at
    assert len(tables) == model.config.num_hidden_layers
    for layer in architectures.LINEAR:
        assert tables[layer].tolist() == [[[NEVER] * 12]]
    assert cache.held_rows(architectures.LINEAR[0]).tolist() == [0]
    assert cache.evictions == sum(int((table < NEVER).sum()) for table in tables) > 0


class Changed(DynamicCache):
    """A cache of somebody's own."""


def test_what_cannot_be_taken_over_is_named() -> None:
    """Caches of another kind, and those that hold tokens already."""
    press = KnormPress(0.5)
    sentence = (
        "a press cannot compress a Changed of this kind (a subclass, or with offloading): pass a plain DynamicCache, "
        "or none at all"
    )
    with pytest.raises(ValueError, match=said(sentence)):
        PressedCache.adopt(Changed(config=CONFIG), press, CONFIG)
    plain = DynamicCache(config=CONFIG)
    plain.update(*states(0, 6), 0)
    with pytest.raises(
        ValueError, match=said("the cache holds 6 tokens that no press has seen: start from an empty one")
    ):
        PressedCache.adopt(plain, press, CONFIG)
    assert type(plain) is DynamicCache
    taken_over = PressedCache.adopt(DynamicCache(config=CONFIG), press, CONFIG, prompt_length=5)
    assert type(taken_over) is PressedCache
    assert (taken_over.press, taken_over.ledger.prompt_length, taken_over.unpadded) == (press, 5, False)


def test_what_a_cache_refuses_is_said_in_whole_sentences() -> None:
    """Interrupted passes, passes of other rows, and crops to what is not there any more."""
    cache = fed(KnormPress(0.5, prune_after=20), 8)
    cache.update(*states(8, 9), 0)
    sentence = "an earlier pass through this cache was interrupted: start again with a new cache"
    with pytest.raises(RuntimeError, match=said(sentence)):
        cache.update(*states(9, 10), 0)
    cache = fed(KnormPress(0.5, prune_after=4), 8)
    with pytest.raises(ValueError, match=said("this cache serves 1 rows, got a pass of 2")):
        cache.update(*states(8, 9, rows=2), 0)
    sentence = (
        "cannot crop to 7 tokens: layer 0 evicted entries after token 8, which cannot be restored; crop before "
        "anything is evicted, or start again with a new cache"
    )
    for length in (7, -1):
        with pytest.raises(ValueError, match=said(sentence)):
            cache.crop(length)
    cache.crop(8)
    cache.crop(9)
    assert cache.seen == 8
    voted = PressedCache(H2OPress(0.5, prune_after=20), CONFIG)
    feed(voted, 8)
    sentence = "cannot crop to 7 tokens: H2OPress has counted the attention of the tokens after them"
    sentence += "; start again with a new cache"
    with pytest.raises(ValueError, match=said(sentence)):
        voted.crop(7)
    voted.crop(8)
    voted.crop(9)
    assert voted.seen == 8


def test_rows_that_change_places_in_a_pass_take_their_padding_along() -> None:
    """With the tokens that they were fed."""
    cache = fed(KnormPress(0.5, prune_after=20), 6, rows=3)
    cache.attached, cache.fed = [0, 1, 2], torch.tensor([[0], [10], [20]])
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache.attached == [2, 0, 0]
    assert cache.fed is not None
    assert cache.fed.tolist() == [[20], [0], [0]]
    cache.batch_repeat_interleave(2)
    assert cache.attached == [2, 2, 0, 0, 0, 0]
    assert cache.fed.tolist() == [[20], [20], [0], [0], [0], [0]]
    assert cache.ledger.padding == [0] * 6
    assert all(layer.keys.shape[0] == 6 for layer in cache.layers)
    cache.batch_select_indices(torch.tensor([5, 0, 1]))
    assert cache.attached == [0, 2, 2]
    assert cache.fed.tolist() == [[0], [20], [20]]
    assert all(layer.keys.shape[0] == 3 for layer in cache.layers)


class Noting(DynamicLayer):
    """A layer that remembers with what it was updated."""

    given: Any = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.given = args, kwargs
        return super().update(key_states, value_states)


def test_what_else_a_model_tells_a_layer_reaches_it() -> None:
    """By place or by name, as the releases of transformers do."""
    cache = fed(KnormPress(0.5, prune_after=20, skip_layers=(1,)))
    cache.layers[1] = Noting()
    cache.update(*states(0, 3), 0)
    named: dict[str, Any] = {"other": 2} if "kwargs" in inspect.signature(DynamicCache.update).parameters else {}
    cache.update(*states(0, 3), 1, {"cache_position": 1}, **named)
    assert cache.layers[1].given == (({"cache_position": 1},), named)


def test_a_skipped_layer_that_is_never_fed_is_not_missed() -> None:
    """Such as one that reads the keys of another; one that was fed once is."""
    cache = fed(KnormPress(0.5, prune_after=20, skip_layers=(1,)))
    for start, end in ((0, 3), (3, 4), (4, 6)):
        cache.update(*states(start, end), 0)
    assert cache.held == [6, 0]
    cache.update(*states(0, 6), 1)
    cache.update(*states(6, 7), 0)
    with pytest.raises(RuntimeError, match=r"^an earlier pass through this cache was interrupted: "):
        cache.update(*states(7, 8), 0)


@pytest.mark.parametrize(
    "press", [H2OPress(0.4, prune_after=4), SnapKVPress(0.4, prune_after=4, recent=3)], ids=["h2o", "snapkv"]
)
@torch.no_grad()
def test_padding_takes_no_part_in_attention_scores(press: Press) -> None:
    """A padded row evicts what it evicts alone, first tokens among it, in the same passes."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([20, 13])
    alone = ids[1:, 7:]
    both, single = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with press(model):
        for start, end in ((0, 12), *((t, t + 1) for t in range(12, 20))):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:end]
            model(ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions, **using(both))
            model(alone[:, max(0, start - 7) : end - 7], **using(single))
    assert isinstance(both, PressedCache)
    assert isinstance(single, PressedCache)
    for padded, own in zip(both.evicted_at, single.evicted_at, strict=True):
        assert (own < NEVER).any()
        assert torch.equal(padded[1:, :, 7:], own + 7 * (own < NEVER))
