"""Drivers of compressors: a plain cache with given keys, or a whole model, pass by pass."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from pressgauge import Press, PressedCache
from pressgauge.conformance.strategies import DIMENSION, HEADS, LAYERS
from pressgauge.conformance.versions import using

CONFIG = LlamaConfig(
    vocab_size=8,
    hidden_size=HEADS * DIMENSION,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    intermediate_size=8,
)


def values_of(keys: Tensor) -> Tensor:
    """Values that identify their keys by row, head and position."""
    rows, heads, length, _ = keys.shape
    index = torch.arange(rows * heads * length, dtype=keys.dtype, device=keys.device)
    return torch.stack([index, -index], dim=-1).view(rows, heads, length, 2)


@torch.no_grad()
def feed(
    press: Press,
    keys: Tensor,
    passes: list[int],
    *,
    prompt_length: int | None = None,
    look: Callable[[PressedCache, int], None] | None = None,
) -> PressedCache:
    """Feed every layer of a plain cache the same keys; ``look(cache, seen)`` is called after every pass."""
    cache = press.cache(CONFIG, prompt_length=prompt_length, unpadded=keys.shape[0] > 1)
    values = values_of(keys)
    seen = 0
    for length in passes:
        for layer in range(LAYERS):
            cache.update(keys[:, :, seen : seen + length], values[:, :, seen : seen + length], layer)
        seen += length
        if look is not None:
            look(cache, seen)
    return cache


@dataclass
class Run:
    """Result of running a model with a compressed cache."""

    logits: Tensor
    """``[B, T, V]`` over all passes."""
    cache: PressedCache
    keys: list[Tensor] = field(default_factory=list)
    """Keys ``[B, K, T, D]`` passed to the cache, per layer."""


@torch.no_grad()
def run(
    model: PreTrainedModel,
    press: Press,
    ids: Tensor,
    passes: list[int],
    *,
    attached: bool = True,
    mask: Tensor | None = None,
    prompt_length: int | None = None,
) -> Run:
    """Feed a text to a model in passes, with an attached press, and record the keys passed to the cache."""
    cache = press.cache(model.config, prompt_length=prompt_length, unpadded=not attached)
    recorded: dict[int, list[Tensor]] = {}
    update = cache.update

    def recording(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        recorded.setdefault(layer, []).append(keys.clone())
        return update(keys, values, layer, *args, **kwargs)

    cache.update = recording  # type: ignore[assignment, method-assign]
    logits = []
    seen = 0
    with press(model) if attached else nullcontext():
        for length in passes:
            end = seen + length
            given: dict[str, Any] = {}
            if mask is not None:
                given = {
                    "attention_mask": mask[:, :end],
                    "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, seen:end],
                }
            logits.append(model(ids[:, seen:end], **using(cache), **given).logits)
            seen = end
    keys = [torch.cat(recorded[layer], dim=2) for layer in sorted(recorded)]
    return Run(torch.cat(logits, dim=1), cache, keys)
