"""A pressed cache, in the cases that only one line of code decides."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlavaConfig

from pressgauge import KnormPress, PressedCache
from pressgauge.conformance.strategies import LAYERS
from support.drive import CONFIG, values_of

KEYS = torch.randn(2, 2, 20, 4, generator=torch.Generator().manual_seed(0))


def feed(cache: PressedCache, rows: int, start: int, end: int) -> None:
    """A pass through all layers."""
    keys = KEYS[:rows, :, start:end]
    for layer in range(LAYERS):
        cache.update(keys, values_of(keys), layer)


def test_rows_are_taken_for_padded_unless_told_otherwise() -> None:
    """A plain cache that is made by its class refuses to evict from two rows unless they are said to be unpadded."""
    press = KnormPress(0.5, prune_after=4)
    with pytest.raises(ValueError, match="so it cannot evict from a batch of 2 rows that may be padded"):
        feed(PressedCache(press, CONFIG), 2, 0, 8)
    cache = PressedCache(press, CONFIG, unpadded=True)
    feed(cache, 2, 0, 8)
    assert cache.held == [4] * LAYERS


def test_a_reset_cache_knows_that_rows_are_unpadded() -> None:
    """What was asserted of the rows of the first sequence holds for the next."""
    cache = PressedCache(KnormPress(0.5, prune_after=4), CONFIG, unpadded=True)
    for _ in range(2):
        feed(cache, 2, 0, 8)
        assert cache.held == [4] * LAYERS
        cache.reset()


class WithoutKeys:
    """A layer that is cropped and has no keys."""

    cropped = 0

    def crop(self, tokens: int) -> None:
        self.cropped -= tokens


def test_a_layer_without_keys_is_cropped_by_itself() -> None:
    """Its tokens are removed together with those of the other layers."""
    cache = PressedCache(KnormPress(0.5, prune_after=16, skip_layers=(1,)), CONFIG)
    cache.layers[1] = WithoutKeys()
    cache.update(KEYS[:1, :, :8], values_of(KEYS[:1, :, :8]), 0)
    cache.crop(-3)
    assert cache.layers[0].columns == cache.seen == 5
    assert cache.layers[1].cropped == 3


def test_an_adopted_cache_can_be_reset() -> None:
    """It keeps its configuration, and evicts from the next sequence as from the first."""
    press = KnormPress(0.5, prune_after=4)
    cache = PressedCache.adopt(DynamicCache(config=CONFIG), press, CONFIG)
    for _ in range(2):
        feed(cache, 1, 0, 8)
        assert cache.held == [4] * LAYERS
        cache.reset()
        assert cache.held == [0] * LAYERS
    assert cache.config is CONFIG


def test_attention_is_that_of_the_text_model() -> None:
    """After an eviction, layers of different lengths need an attention with a mask each, that of the decoder of a
    composite model."""
    text: Any = copy.deepcopy(CONFIG)
    config = LlavaConfig(text_config=text)
    press = KnormPress(0.5, prune_after=4, skip_layers=(1,))
    cache = PressedCache(press, config)
    feed(cache, 1, 0, 8)
    assert cache.get_mask_sizes(1, 0) == (5, 4)
    text._attn_implementation = "eager"
    with pytest.raises(
        ValueError, match=r"^attention 'eager' makes one mask for all layers, which hold 4 to 8 entries"
    ):
        cache.get_mask_sizes(1, 0)


def test_layers_that_evict_alike_share_a_mask() -> None:
    """After an eviction, a pass of several tokens is possible if no layer is skipped."""
    cache = PressedCache(KnormPress(0.5, prune_after=4), CONFIG)
    feed(cache, 1, 0, 8)
    assert [cache.get_mask_sizes(3, layer) for layer in range(LAYERS)] == [(4 + 3, 4)] * LAYERS
