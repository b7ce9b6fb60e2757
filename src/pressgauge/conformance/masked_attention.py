"""Attention oracle: one forward pass over a text, masked by a cache's reported evictions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressgauge.conformance.precision import in_dtype, rounded


@contextmanager
def registrations_undone() -> Iterator[None]:
    """Context that removes what is registered in it for attention and its masks."""
    mappings = [functions._global_mapping for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)]
    before = [dict(mapping) for mapping in mappings]
    try:
        yield
    finally:
        for mapping, own in zip(mappings, before, strict=True):
            mapping.clear()
            mapping.update(own)


@contextmanager
def attention(model: PreTrainedModel, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Use ``function``, which builds its own masks, as the model's attention in this context."""
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register("oracle", function)
    ALL_MASK_ATTENTION_FUNCTIONS.register("oracle", lambda *given, **more: None)
    model.config._attn_implementation = "oracle"
    try:
        yield
    finally:
        model.config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("oracle")
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop("oracle")


def attend(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scaling: float) -> Tensor:
    """Masked attention in the dtype of the query: ``[B, q, H, D]``.

    Args:
        query: ``[B, H, q, D]``.
        key, value: ``[B, K, N, D]``, K a divisor of H.
        sees: ``[B or 1, K or 1, q, N]`` bool, True where a query attends to a key.
        scaling: scaling factor of the query-key products.
    """
    groups = query.shape[1] // key.shape[1]
    if sees.shape[1] > 1:
        sees = sees.repeat_interleave(groups, dim=1)
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
    weights = scores.masked_fill(~sees, -torch.inf).softmax(dim=-1)
    return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2)


@torch.no_grad()
def masked_logits(
    model: PreTrainedModel,
    ids: Tensor,
    tables: list[Tensor],
    mask: Tensor | None = None,
    stored: torch.dtype | None = None,
) -> Tensor:
    """Oracle of rule 1: logits ``[B, T, V]`` on the CPU, from one forward pass without a cache.

    Query t of a layer attends to key j if and only if ``j <= t < evicted_at[b, k, j]``.

    Args:
        model: the model.
        ids: ``[B, T]``.
        tables: ``evicted_at`` per layer, ``[B, K, T]``.
        mask: ``[B, T]``, 0 at padding; None if nothing is padded.
        stored: dtype to which entries are rounded; None for that of the model.
    """
    # In float64, whatever the model under test is in.
    model = in_dtype(model, torch.float64)

    def masked(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        key, value = (rounded(tensor, stored).to(query.dtype) for tensor in (key, value))
        time = torch.arange(query.shape[2], device=query.device)
        table = tables[module.layer_idx].to(query.device)
        sees = (time <= time[:, None]) & (time[:, None] < table[:, :, None, :])
        # A padding query would attend to nothing. Its output does not matter, but must not be NaN.
        sees = sees | (torch.eye(len(time), dtype=torch.bool, device=query.device) & ~sees.any(-1, keepdim=True))
        return attend(query, key, value, sees, scaling), None

    ids, mask = ids.to(model.device), None if mask is None else mask.to(model.device)
    given = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with attention(model, masked):
        logits: Tensor = model(ids, use_cache=False, **given).logits
    return logits.cpu()
