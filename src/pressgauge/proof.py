"""Checks that a pass went through a press, and that a query met an eviction of the press.

Each layer must attend once, causally, to the keys and values that its cache returned.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pressgauge.cache import Handed, PressedCache
from pressgauge.models import interface, latents
from pressgauge.models.support import Support
from pressgauge.presses.base import Press
from pressgauge.rules import Window

_UNSUPPORTED = ("sinks", "position_bias")
"""Arguments of an attention call whose effect depends on which keys are present, in ways that are not known."""

UNFED = "tokens of the pass that never reached the cache that it was given"

OUTSIDE = "no module of its own that attends through transformers' interface"
"""Reasons: the layer's cache received nothing; the layer's attention bypassed the press."""

T = TypeVar("T")


class Problems:
    """Unsupported layers found in a pass, with reasons, collected into one error.

    Args:
        supported: the model's support.
        decoder: the model's decoder.
        skipped: layers already skipped.
    """

    def __init__(self, supported: Support, decoder: nn.Module, skipped: tuple[int, ...]) -> None:
        self.support, self.decoder, self.skipped = supported, decoder, skipped
        self.reasons: dict[int, str] = {}

    def go_on(self, layer: int, reason: str, attend: Callable[[], T]) -> T:
        """Record a layer's problem and attend as without a press.

        The pass goes on, so that one error reports the problems of all layers.

        Raises:
            ValueError: if that attention fails.
        """
        self.reasons.setdefault(layer, reason)
        try:
            return attend()
        except Exception as error:
            raise self.error() from error

    def error(self) -> ValueError:
        """The error for all recorded problems."""
        if interface.checkpoints_gradients(self.decoder):
            return ValueError(
                "gradient checkpointing takes the cache from the layers in training, so that nothing would be "
                "compressed: turn it off, or call model.eval()"
            )
        return self.support.refusal(self.reasons, self.skipped)


def misread(handed: Handed | None, tokens: int, query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Why a layer's attention did not read what its cache returned, or None if it did.

    Tensors are compared by storage and shape, which needs no synchronisation.

    Args:
        handed: what the cache was passed and returned.
        tokens: tokens of the pass.
        query, key, value: arguments of the attention call.
    """
    if handed is None:
        return UNFED
    if handed.tokens != tokens or query.shape[2] != tokens:
        return f"{handed.tokens} of {tokens} tokens passed to the cache, attention from {query.shape[2]}"
    for name, stored, read in (("keys", handed.keys, key), ("values", handed.values, value)):
        if read is stored:
            continue
        if read.shape != stored.shape:
            return f"{name} cached as {list(stored.shape[1:])} and attended to as {list(read.shape[1:])}"
        if read.data_ptr() != stored.data_ptr():
            return f"attention to {name} that its cache did not return"
    return None


def misexpanded(
    expand: latents.Expand, handed: Handed | None, tokens: int, query: Tensor, key: Tensor, value: Tensor
) -> str | None:
    """Why a layer's attention did not read the expansion of what its cache returned, or None if it did.

    Tensors are compared in a pass from an empty cache only: in others, their entries are counted.

    Args:
        expand: the layer's expansion.
        handed, tokens, query, key, value: as in ``misread``.
    """
    if handed is None or handed.tokens != tokens or query.shape[2] != tokens:
        return misread(handed, tokens, query, key, value)
    held = handed.keys.shape[2]
    if handed.keys.shape[1] != 1 or key.shape[2] != held or value.shape[2] != held:
        return f"latents cached as {list(handed.keys.shape[1:])} and attended to as {list(key.shape[1:])}"
    if held == tokens:
        for name, read, expanded in zip(
            ("keys", "values"), (key, value), expand(handed.keys, handed.values), strict=True
        ):
            if not torch.equal(read, expanded):
                return f"attention to {name} that are not the expansion of what its cache returned"
    return None


def misfit(
    module: nn.Module,
    kwargs: Mapping[str, Any],
    again: bool,
    handed: Handed | None,
    tokens: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> str | None:
    """Why a press does not support an attention call, or None if it does.

    Args:
        module: the attention module.
        kwargs: further arguments of the call.
        again: whether the layer has already attended in this pass.
        handed, tokens, query, key, value: as in ``misread``.
    """
    if again:
        return "a second attention call in a pass"
    name = next((name for name in _UNSUPPORTED if kwargs.get(name) is not None), None)
    if name is not None:
        return f"attention with {name}"
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if softcap is not None and not softcap > 0:
        return f"attention with softcap {softcap}"
    if (getattr(module, "sinks", None) is not None) != (sinks is not None):
        return "attention with sinks"
    if sinks is not None and getattr(sinks, "shape", None) != query.shape[1:2]:
        return "attention with s_aux that is not one number per head"
    expand = latents.expansion(module)
    if expand is None:
        return misread(handed, tokens, query, key, value)
    return misexpanded(expand, handed, tokens, query, key, value)


def padding_of(mask: Tensor | Mapping[str, Tensor] | None, cache: PressedCache, rows: int, tokens: int) -> list[int]:
    """Number of leading columns that are padding, per row, after a pass of ``tokens`` columns."""
    before = cache.ledger.columns
    known = cache.ledger.padding or [0] * rows
    if mask is None:
        if any(known):
            raise ValueError("this cache holds padded rows: pass the attention_mask of all columns seen and new")
        return [0] * rows
    if isinstance(mask, Mapping) or mask.dim() != 2:
        raise ValueError("a press makes the masks of its layers itself: pass a 2-D attention_mask, or none")
    if mask.shape != (rows, before + tokens):
        raise ValueError(
            f"attention_mask must cover the {before} columns seen and the {tokens} new ones of {rows} rows, "
            f"got {list(mask.shape)}"
        )
    real = mask != 0
    if bool(real.all()):
        padding, counts = [0] * rows, [before + tokens] * rows
    else:
        padding, counts = (~real).cumprod(dim=-1).sum(dim=-1).tolist(), real.sum(dim=-1).tolist()
    for row in range(rows):
        if padding[row] + counts[row] != before + tokens:
            raise ValueError(f"row {row} has padding between or after its tokens: pad on the left")
        if min(padding[row], before) != known[row]:
            raise ValueError(
                f"row {row} of attention_mask has {padding[row]} columns of padding, in earlier passes {known[row]}"
            )
    return padding


def strange_mask(
    module: nn.Module,
    mask: Tensor | None,
    tokens: int,
    columns: int,
    padding: list[int],
    window: Window | None = None,
) -> str | None:
    """Why a model's mask is not the causal mask of its tokens, or None if it is.

    Args:
        module: the attention module.
        mask: ``[B or 1, 1, tokens, N]``, bool, or additive with 0 and a large negative number; None for no mask.
        tokens: number of queries, the last of the columns.
        columns: columns seen, those of the pass included.
        padding: number of leading columns that are padding, per row.
        window: the layer's window, of which the mask has the columns that are stored; None if it has none.
    """
    stored = columns if window is None else window.stores(columns - tokens) + tokens
    if mask is None:
        causal = getattr(module, "is_causal", True) or tokens == 1
        if window is not None and window.first(columns - 1) > columns - stored:
            return f"attention beyond {window}"
        return None if causal else "attention to later tokens"
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (tokens, stored):
        return f"a mask of its own, {list(mask.shape)} where [rows, 1, {tokens}, {stored}] is causal"
    if mask.dtype == torch.bool:
        sees = mask
    else:
        sees = mask == 0
        # Half of the minimum, since some models add masks to each other.
        if not bool((sees | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
            return "a mask with values other than seen and unseen"
    place = torch.arange(columns - stored, columns, device=mask.device)
    queries = place[stored - tokens :, None]
    expected = (place <= queries)[None, None]
    first = torch.tensor(padding or [0], device=mask.device)[:, None, None, None]
    if window is not None:
        expected = expected & (queries - first < window.end(place - first))
    if any(padding):
        expected = expected & (place >= first)
        # The attention of a padding query does not matter.
        sees = torch.where(queries < first, expected, sees)
    if bool((sees == expected).all()):
        return None
    return "a mask that is not causal" if window is None else f"a mask that is not causal within {window}"


class VacuousWarning(UserWarning):
    """An attached press closed after passes of which none met an eviction: nothing of the press was measured."""


_REPORTED: ContextVar[bool] = ContextVar("reported", default=False)


@contextmanager
def vacuity_reported() -> Iterator[None]:
    """Suppress ``VacuousWarning`` where the result itself says whether an eviction was met."""
    token = _REPORTED.set(True)
    try:
        yield
    finally:
        _REPORTED.reset(token)


def warn_vacuous(press: Press, passes: int) -> None:
    """Warn that no query of the passes met an eviction, at the end of a ``with`` statement.

    Without passes nothing was measured, and a press that retains everything has nothing to evict.
    """
    if not passes or press.keep_ratio == 1 or _REPORTED.get():
        return
    name = f"{type(press).__name__}(keep_ratio={press.keep_ratio}, prune_after={press.prune_after})"
    plural = "pass" if passes == 1 else "passes"
    more = "more tokens" if press.has_own_target else f"tokens after the prompt, more than {press.prune_after} in all"
    warnings.warn(
        f"{name} was attached for {passes} {plural} and no query met an eviction, so what was measured is the "
        f"uncompressed model: feed {more}, or use pressgauge.perplexity",
        VacuousWarning,
        # The caller of the context manager of the caller.
        stacklevel=4,
    )
