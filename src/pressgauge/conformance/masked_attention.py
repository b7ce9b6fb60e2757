"""Attention oracle: one forward pass over a text, masked by a cache's reported evictions."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge.conformance.precision import in_dtype, rounded
from pressgauge.conventions.attention import attend, attention


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
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        **given: Any,
    ) -> tuple[Tensor, None]:
        # GPT-2 does not pass a scale before transformers 5.24.
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        key, value = (rounded(tensor, stored).to(query.dtype) for tensor in (key, value))
        time = torch.arange(query.shape[2], device=query.device)
        table = tables[module.layer_idx].to(query.device)
        sees = (time <= time[:, None]) & (time[:, None] < table[:, :, None, :])
        # A padding query would attend to nothing. Its output does not matter, but must not be NaN.
        sees = sees | (torch.eye(len(time), dtype=torch.bool, device=query.device) & ~sees.any(-1, keepdim=True))
        return attend(query, key, value, sees, scaling, given.get("s_aux")), None

    ids, mask = ids.to(model.device), None if mask is None else mask.to(model.device)
    given = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with attention(model, masked):
        logits: Tensor = model(ids, use_cache=False, **given).logits
    return logits.cpu()
