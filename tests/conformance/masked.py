"""The oracle of attention: one forward pass over a whole text, masked by what a cache says that it evicted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@contextmanager
def attention(model: PreTrainedModel, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Use ``function``, which makes its own masks, for the model's attention, as long as the context is open."""
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
