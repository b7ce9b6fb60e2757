"""Limits of a plain cache, which never sees the attention mask and has one mask for all layers of a kind."""

from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pressgauge.cache.layer import PressedLayer
from pressgauge.cache.windowed import WindowedLayer
from pressgauge.presses.base import ATTACHED
from pressgauge.rules import Ledger


def check_pass(
    layers: Sequence[Any], ledger: Ledger, tokens: int, padding: Sequence[int], *, unpadded: bool, alone: bool
) -> None:
    """Raise ``ValueError`` if a plain cache does not support a next pass.

    Args:
        layers: layers of the cache.
        ledger: counts of the cache.
        tokens: columns of the pass.
        padding: columns of padding, per row.
        unpadded: whether no row is known to be padded.
        alone: whether no press can be attached to the model.
    """
    if any(padding):
        raise ValueError(f"this cache holds padded rows, which only an attached press knows how to mask: {ATTACHED}")
    windowed = [layer for layer in layers if isinstance(layer, WindowedLayer)]
    for layer in windowed:
        layer.check_plain(tokens)
    if len(padding) == 1 or unpadded:
        return
    others = sum(isinstance(layer, PressedLayer) for layer in layers) - len(windowed)
    evicts = any(layer.would_evict(tokens, padding) for layer in windowed)
    if evicts or (others and ledger.would_cut(tokens, padding)):
        raise ValueError(
            f"a plain cache never sees the attention mask, so it cannot evict from a batch of {len(padding)} rows that "
            f"may be padded: {'' if alone else f'{ATTACHED} or, '}if no row is padded, "
            f"{'use ' if alone else ''}press.cache(config, unpadded=True)"
        )


def uneven(
    layers: Sequence[Any], columns: int, tokens: int, implementation: str | None, *, sliding: bool, alone: bool
) -> bool:
    """Whether the layers that share a mask hold different numbers of entries.

    Args:
        layers: layers of the cache.
        columns: columns fed.
        tokens: columns of the next pass.
        implementation: attention implementation of the model.
        sliding: whether the mask is that of the layers with a window.
        alone: whether no press can be attached to the model, whose attention needs a mask in each pass.

    Raises:
        ValueError: if they do, and one mask does not fit all.
    """
    pressed = [layer for layer in layers if isinstance(layer, PressedLayer) and layer.is_sliding == sliding]
    held = {layer.get_mask_sizes(0)[0] for layer in pressed}
    for layer in layers:
        if sliding and isinstance(layer, DynamicSlidingWindowLayer):
            held.add(min(columns, layer.sliding_window - 1))
        elif not sliding and type(layer) is DynamicLayer:
            held.add(columns)
    if len(held) < 2:
        return False
    if alone:
        raise ValueError(
            f"the model has one mask for all layers, which hold {min(held)} to {max(held)} entries: skip no layers"
        )
    # What is left of other chunks needs a mask in each layer that has it.
    chunked = any(isinstance(layer, WindowedLayer) and layer.window.chunked for layer in pressed)
    if tokens > 1 or chunked:
        raise ValueError(
            f"after an eviction, layers hold different numbers of entries ({min(held)} to {max(held)}), and a "
            f"plain cache has one mask for all: {'' if chunked else 'feed single tokens, or '}{ATTACHED}"
        )
    if implementation not in (None, "sdpa"):
        raise ValueError(
            f"attention {implementation!r} makes one mask for all layers, which hold {min(held)} to "
            f"{max(held)} entries: load the model with attn_implementation='sdpa', or {ATTACHED}"
        )
    return True
