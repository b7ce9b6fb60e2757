"""Attention functions put in place of a model's own, and undone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


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


def attend(
    query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scaling: float, sinks: Tensor | None = None
) -> Tensor:
    """Masked attention in the dtype of the query: ``[B, q, H, D]``.

    Args:
        query: ``[B, H, q, D]``.
        key, value: ``[B, K, N, D]``, K a divisor of H.
        sees: ``[B or 1, K or 1, q, N]`` bool, True where a query attends to a key.
        scaling: scaling factor of the query-key products.
        sinks: ``[H]``, logits that take part in the softmax and attend to nothing; None for none.
    """
    groups = query.shape[1] // key.shape[1]
    if sees.shape[1] > 1:
        sees = sees.repeat_interleave(groups, dim=1)
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
    scores = scores.masked_fill(~sees, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]]
    return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2)
