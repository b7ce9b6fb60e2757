"""Proof that a pass went through a press: each layer attended once, causally, to what its cache returned."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pressgauge.cache import Handed
from pressgauge.models import interface
from pressgauge.models.support import Support

_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments of an attention call that change scores in ways that depend on which keys are there."""

UNFED = "tokens of the pass that never reached the cache that it was given"

OUTSIDE = "no module of its own that attends through transformers' interface"
"""Reasons of a layer whose cache was handed nothing, and of one whose attention a press never came to see."""

T = TypeVar("T")


class Problems:
    """What a pass did that a press cannot do right by, by layer: collected, so that one error names all of it.

    Args:
        supported: what is known of the model.
        decoder: its decoder.
        skipped: the layers that are skipped already.
    """

    def __init__(self, supported: Support, decoder: nn.Module, skipped: tuple[int, ...]) -> None:
        self.support, self.decoder, self.skipped = supported, decoder, skipped
        self.reasons: dict[int, str] = {}

    def go_on(self, layer: int, reason: str, attend: Callable[[], T]) -> T:
        """Note what is wrong with a layer, and attend as the model would alone, to find what is wrong with others."""
        self.reasons.setdefault(layer, reason)
        try:
            return attend()
        except Exception as error:
            raise self.error() from error

    def error(self) -> ValueError:
        """The error that says all."""
        if interface.checkpoints_gradients(self.decoder):
            return ValueError(
                "gradient checkpointing takes the cache from the layers in training, so that nothing would be "
                "compressed: turn it off, or call model.eval()"
            )
        return self.support.refusal(self.reasons, self.skipped)


def misread(handed: Handed | None, tokens: int, query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Why a layer's attention did not read what its cache returned for a pass of ``tokens``, or None if it did.

    Tensors are compared by their storage and shape, which costs no synchronisation.
    """
    if handed is None:
        return UNFED
    if handed.tokens != tokens or query.shape[2] != tokens:
        return f"{handed.tokens} of {tokens} tokens handed to the cache, attention from {query.shape[2]}"
    for name, stored, read in (("keys", handed.keys, key), ("values", handed.values, value)):
        if read is stored:
            continue
        if read.shape != stored.shape:
            return f"{name} cached as {list(stored.shape[1:])} and attended to as {list(read.shape[1:])}"
        if read.data_ptr() != stored.data_ptr():
            return f"attention to {name} that its cache did not return"
    return None


def misfit(
    kwargs: Mapping[str, Any],
    again: bool,
    handed: Handed | None,
    tokens: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> str | None:
    """Why a press cannot take over an attention call of a pass of ``tokens``, or None if it can; ``again`` if the layer
    has attended in this pass."""
    if again:
        return "a second attention call in a pass"
    name = next((name for name in _UNSUPPORTED if kwargs.get(name) is not None), None)
    if name is not None:
        return f"attention with {name}"
    return misread(handed, tokens, query, key, value)


def strange_mask(module: nn.Module, mask: Tensor | None, tokens: int, columns: int, padding: list[int]) -> str | None:
    """Why the mask that a model made is not the causal one of its tokens, or None if it is.

    Args:
        module: the attention module.
        mask: ``[B or 1, 1, tokens, columns]``, bool or 0 and a large negative number; None for no mask.
        tokens: queries, the last of the columns.
        columns: tokens seen, with those of the pass.
        padding: per row, how many of the first columns are padding.
    """
    if mask is None:
        causal = getattr(module, "is_causal", True) or tokens == 1
        return None if causal else "attention to later tokens"
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (tokens, columns):
        return f"a mask of its own, {list(mask.shape)} where [rows, 1, {tokens}, {columns}] is causal"
    if mask.dtype == torch.bool:
        sees = mask
    else:
        sees = mask == 0
        # Half of the least number, since some models add masks up.
        if not bool((sees | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
            return "a mask with values other than seen and unseen"
    place = torch.arange(columns, device=mask.device)
    expected = (place <= place[columns - tokens :, None])[None, None]
    if any(padding):
        first = torch.tensor(padding, device=mask.device)[:, None, None, None]
        expected = expected & (place >= first)
        # What a query of padding sees does not matter.
        sees = torch.where(place[columns - tokens :, None] < first, expected, sees)
    return None if bool((sees == expected).all()) else "a mask that is not causal"
