"""Drives compressors: a bare cache with given keys, or a whole model, pass by pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conformance.strategies import DIMENSION, HEADS, LAYERS
from pressgauge import Press, PressedCache

CONFIG = LlamaConfig(
    vocab_size=8,
    hidden_size=HEADS * DIMENSION,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    intermediate_size=8,
)


def values_of(keys: Tensor) -> Tensor:
    """Values that tell which key they belong to: each names its row, head and position."""
    rows, heads, length, _ = keys.shape
    index = torch.arange(rows * heads * length, dtype=keys.dtype, device=keys.device)
    return torch.stack([index, -index], dim=-1).view(rows, heads, length, 2)


def feed(
    press: Press,
    keys: Tensor,
    passes: list[int],
    *,
    prompt_length: int | None = None,
    look: Callable[[PressedCache, int], None] | None = None,
) -> PressedCache:
    """Feed every layer of a bare cache the same keys; ``look(cache, seen)`` is called after every pass."""
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
    """What a model did with a compressed cache."""

    logits: Tensor
    """``[B, T, V]``: those of every pass, one after the other."""
    cache: PressedCache
    keys: list[Tensor] = field(default_factory=list)
    """Per layer the keys ``[B, K, T, D]`` that the cache was handed."""


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
    """Feed a model a text in passes, with a press at work, and record the keys that its cache is handed."""
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
            logits.append(model(ids[:, seen:end], past_key_values=cache, **given).logits)
            seen = end
    keys = [torch.cat(recorded[layer], dim=2) for layer in sorted(recorded)]
    return Run(torch.cat(logits, dim=1), cache, keys)


@contextmanager
def attention(model: PreTrainedModel, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Use ``function`` for the model's attention, as long as the context is open."""
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register("oracle", function)
    ALL_MASK_ATTENTION_FUNCTIONS.register("oracle", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model.config._attn_implementation = "oracle"
    try:
        yield
    finally:
        model.config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("oracle")
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop("oracle")


@torch.no_grad()
def masked_logits(model: PreTrainedModel, ids: Tensor, tables: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """The oracle of rule 1: one forward pass over the whole text, without a cache, in which query t of a layer sees
    key j exactly if ``j <= t < evicted_at[b, k, j]``."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        time = torch.arange(query.shape[2], device=query.device)
        sees = (time <= time[:, None]) & (time[:, None] < tables[module.layer_idx][:, :, None, :])
        # A query of padding would see nothing at all; what it says does not matter, as long as it is a number.
        sees = sees | torch.eye(len(time), dtype=torch.bool, device=query.device)
        scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
        scores = scores.masked_fill(~sees.repeat_interleave(groups, dim=1), -torch.inf)
        return (scores.softmax(dim=-1) @ value.repeat_interleave(groups, dim=1)).transpose(1, 2), None

    given = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with attention(model, attend):
        return model(ids, use_cache=False, **given).logits  # type: ignore[no-any-return]
