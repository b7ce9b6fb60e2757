"""Per-token NLL of a text under a model with a compressed cache."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from rich.progress import Progress, track
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge.arguments import check_context, check_ids, check_model
from pressgauge.attach import meet
from pressgauge.cache import PressedCache, held_tokens, storage_nbytes
from pressgauge.decoder import attached, checked_mask, new_cache, own_positions, prove, refuse_padding
from pressgauge.history import NEVER, History, count_evictions
from pressgauge.models import interface, support
from pressgauge.models.support import refuse_outside
from pressgauge.onepass import NOT_DECODING, OnePass
from pressgauge.presses.base import Press, check_press
from pressgauge.rules import check_prompt, pass_lengths, whole_number

Method = Literal["onepass", "stepwise", "plain"]

_BLOCK = 64
"""Number of tokens whose logits are scored at a time; few enough to fit the CPU's cache."""
_RECURRENCE = 8
"""Number of tokens with which layers without keys are checked."""
_MOST_LOGITS = 1 << 28
"""Maximum number of logits of the rows of one forward pass, unless a single row has more."""


@dataclass(frozen=True)
class Perplexity:
    """Result of ``perplexity``, over the tokens from the end of the prompt on.

    Attributes:
        nll: ``[B, scored]`` in nats, float64 on the CPU; NaN where a padded row has no token to score.
        scored: ``[B, scored]`` bool: the row has this token and one before it.
        hits: ``[B, scored]`` bool: the token was the model's top-1 prediction.
        affected: ``[B, scored]`` bool: entries of the row had been evicted when the token was scored.
        evictions: number of evicted entries, over layers, KV heads and rows.
        held: retained entries of each layer at the end; empty with ``plain``.
        kv_bytes: bytes of keys and values at the end; with ``stepwise``, of their storage, which may be 2 % more.
        compressing: whether there is a press with a ``keep_ratio`` below 1.
        evicted_at: ``[B, K, T]`` int32 per layer, see ``pressgauge.history``; empty without a press or with ``plain``.
    """

    nll: Tensor
    scored: Tensor
    hits: Tensor
    affected: Tensor
    evictions: int
    held: tuple[int, ...]
    kv_bytes: int
    compressing: bool
    evicted_at: tuple[Tensor, ...]

    @property
    def scored_tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.scored.sum())

    @property
    def ppl(self) -> float:
        """Perplexity: exponential of the mean NLL of all scored tokens; NaN if any NLL is NaN."""
        return float(self.nll[self.scored].mean().exp())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy over scored tokens, from 0 to 1."""
        return int(self.hits.sum()) / self.scored_tokens

    @property
    def affected_tokens(self) -> int:
        """Number of tokens scored after a first eviction in their row."""
        return int(self.affected.sum())

    @property
    def vacuous(self) -> bool:
        """Whether the result is meaningless: compressing, yet no scored token was affected."""
        return self.compressing and not self.affected_tokens


def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL and top-1 hits ``[B, n]`` on the CPU of ``targets`` ``[B, n]``, logits ``[B, n, V]``."""
    # MPS has no float64.
    device = torch.device("cpu") if logits.device.type == "mps" else logits.device
    wide = torch.promote_types(logits.dtype, torch.float32)
    nll = torch.empty(targets.shape, dtype=torch.float64)
    hits = torch.empty(targets.shape, dtype=torch.bool)
    for row in range(targets.shape[0]):
        for start in range(0, targets.shape[1], _BLOCK):
            columns = slice(start, start + _BLOCK)
            block = logits[row, columns].to(device, wide)
            target = targets[row, columns, None].to(device)
            # Float64 throughout would cost as much as the model itself, and float32 logits are no more accurate.
            most, own = block.amax(dim=-1, keepdim=True), block.gather(1, target)
            total = (block - most).exp_().sum(dim=-1, keepdim=True)
            nll[row, columns] = (total.double().log() + (most.double() - own.double()))[:, 0]
            # Of equal logits the first is top-1; argmax runs only where the target has the maximum.
            hit = (own == most)[:, 0]
            hit[hit.clone()] = block[hit].argmax(dim=-1) == target[hit, 0]
            hits[row, columns] = hit
    return nll, hits


@dataclass(frozen=True)
class _Scores:
    """Result of a method: ``nll`` and ``hits`` ``[B, scored]``, the rest as in ``Perplexity``."""

    nll: Tensor
    hits: Tensor
    evicted_at: tuple[Tensor, ...] = ()
    held: tuple[int, ...] = ()
    kv_bytes: int = 0


def _plain(model: PreTrainedModel, input_ids: Tensor, mask: Tensor, prompt: int) -> _Scores:
    given = () if bool(mask.all()) else (mask, own_positions(mask))
    logits = interface.feed(model, input_ids, {}, *given)
    return _Scores(*score(logits[:, prompt - 1 : -1], input_ids[:, prompt:]))


def _stepwise(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor, press: Press | None, prompt: int, progress: bool
) -> _Scores:
    refuse_padding(model, mask, prompt)
    cache = new_cache(press, model, prompt)
    named = {interface.cache_argument(model): cache}
    positions = own_positions(mask)
    padded = not bool(mask.all())
    columns = input_ids.shape[1]
    scores = []
    seen = 0
    with attached(press, model):
        for tokens in track(pass_lengths(columns, prompt), "scoring", disable=not progress, transient=True):
            end = seen + tokens
            given = (mask[:, :end], positions[:, seen:end]) if padded else ()
            try:
                logits = interface.feed(model, input_ids[:, seen:end], named, *given)
            except Exception as error:
                outside = not interface.goes_through_interface(type(interface.decoder_of(model)))
                if not seen or not outside or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(
                    f"{type(model).__name__} ({interface.VERSION}) does not continue with the cache that it was given "
                    f"({type(error).__name__}: {error}): {interface.PLAIN}"
                ) from error
            prove(model, cache, end)
            if end < columns:
                scores.append(score(logits[:, -1:], input_ids[:, end : end + 1]))
            seen = end
    nll, hits = (torch.cat(parts, dim=1) for parts in zip(*scores, strict=True))
    if isinstance(cache, PressedCache):
        return _Scores(nll, hits, tuple(table.cpu() for table in cache.evicted_at), tuple(cache.held), cache.nbytes)
    seen = int(mask.sum(dim=-1).max())
    held = tuple(held_tokens(layer, seen) for layer in cache.layers)
    return _Scores(nll, hits, held=held, kv_bytes=sum(storage_nbytes(layer) for layer in cache.layers))


def _check_recurrence(model: PreTrainedModel, ids: Tensor) -> None:
    """Raise ``ValueError`` if layers without keys compute other logits for ``ids`` fed singly.

    Some state-space models in transformers do. ``ids`` is ``[1, T]``.
    """
    if all(map(interface.caches_keys, interface.layer_classes(model.config))):
        return
    cache = {interface.cache_argument(model): new_cache(None, model, 1)}
    singly = torch.cat([interface.feed(model, token, cache) for token in ids.split(1, dim=1)], dim=1)
    whole = interface.feed(model, ids, {})
    change = float((whole - singly).abs().max() / whole.abs().max())
    # Such layers compute in float32 at best, and sum in a different order.
    if not change <= max(1e-4, 32 * torch.finfo(whole.dtype).eps):
        raise ValueError(
            f"{type(model).__name__} ({interface.VERSION}) computes other logits for tokens fed singly, off by "
            f"{change:.1e} of their size, {NOT_DECODING}"
        )


def _onepass(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor, press: Press | None, prompt: int, progress: bool
) -> _Scores:
    if press is None:
        supported = support.of_config(model.config)
        refuse_outside(model)
    else:
        press, supported = meet(press, model)
    if supported.selecting:
        raise ValueError(
            f"{supported.name} ({interface.VERSION}) has layers that index, compress or select keys, {NOT_DECODING}"
        )
    _check_recurrence(model, input_ids[-1:, -_RECURRENCE:])
    rows, columns = input_ids.shape
    paddings = (mask == 0).sum(dim=1).tolist()
    nll = torch.full((rows, columns - prompt), float("nan"), dtype=torch.float64)
    hits = torch.zeros((rows, columns - prompt), dtype=torch.bool)
    tables: dict[int, Tensor] = {}
    entry_nbytes: dict[int, int] = {}
    text = model.config.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    together = max(1, _MOST_LOGITS // (columns * text.vocab_size))
    # Rows of equal length share a pass, so that masks cover evictions only.
    groups = []
    for padding in sorted(set(paddings) - {columns}):
        alike = [row for row in range(rows) if paddings[row] == padding]
        groups += [(padding, alike[start : start + together]) for start in range(0, len(alike), together)]
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("scoring", total=len(groups) * layers)
        for padding, group in groups:
            onepass = OnePass(press, supported, prompt, padding, lambda: bar.advance(task))
            ids = input_ids[group, padding:]
            logits = onepass.logits(model, ids)
            first = max(prompt - padding, 1)
            if first < ids.shape[1]:
                scored = slice(padding + first - prompt, None)
                nll[group, scored], hits[group, scored] = score(logits[:, first - 1 : -1], ids[:, first:])
            entry_nbytes |= onepass.entry_nbytes
            for layer, table in onepass.evicted_at.items():
                whole = tables.setdefault(layer, torch.zeros((rows, table.shape[1], columns), dtype=torch.int32))
                whole[group] = table
    held = []
    kv_bytes = 0
    own_layers = interface.layer_classes(model.config)
    # Only some releases have cache layers for layers that share the keys of others.
    layers = min(layers, len(own_layers))
    for layer, own in enumerate(own_layers[:layers]):
        if layer not in tables or not interface.caches_keys(own):
            # The layer has no keys, or reads those of another.
            held.append(0)
            continue
        # All heads of a layer retain equally many entries; storage is as wide as its longest row.
        entries = int((tables[layer][:, 0] == NEVER).sum(dim=-1).max())
        # A window includes the query's own token, so one entry fewer is retained.
        window = getattr(own, "sliding_window", columns + 1)
        held.append(min(entries, window - 1))
        kv_bytes += rows * tables[layer].shape[1] * min(entries, window) * entry_nbytes[layer]
    evicted_at = []
    if press is not None:
        without_keys = History(rows, 1, torch.device("cpu")).evicted_at(columns, paddings)
        evicted_at = [tables.get(layer, without_keys) for layer in range(layers)]
    return _Scores(nll, hits, tuple(evicted_at), tuple(held), kv_bytes)


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    input_ids: Tensor,
    press: Press | None = None,
    prompt: int = 1,
    method: Method = "onepass",
    *,
    attention_mask: Tensor | None = None,
    progress: bool = False,
) -> Perplexity:
    """Perplexity of a text under a model with a compressed cache.

    The first ``prompt`` tokens are one pass, the others are fed singly. Token i, for i from ``prompt`` on, is scored by
    the logits of token i - 1.

    Args:
        model: any causal model that uses transformers' attention interface.
        input_ids: ``[B, T]``, padded on the left.
        press: the press; None for an uncompressed cache.
        prompt: tokens of the prompt, 1 <= prompt < T.
        method: ``onepass`` computes the result of decoding in one forward pass over the text; ``stepwise`` decodes with
            the real cache; ``plain`` is one forward pass without evictions, and vacuous for a compressing press.
        attention_mask: ``[B, T]``, 0 at padding; None if nothing is padded.
        progress: show a progress bar.


    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range, more tokens than the model's context, a press that can never evict, or
            a model that the press or the method does not support.
    """
    check_model(model)
    check_press(press)
    check_ids(input_ids, 2)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    prompt = whole_number("prompt", prompt, None)
    mask = checked_mask(input_ids, attention_mask)
    check_context(model.config, int(mask.sum(dim=-1).max()), "input_ids")
    check_prompt(press, prompt, input_ids.shape[1], int(mask[:, :prompt].sum(dim=-1).max()))
    own = mask.bool()
    # A token is scored if neither it nor the one before it is padding.
    scored = (own[:, 1:] & own[:, :-1])[:, prompt - 1 :].cpu()
    if not scored.any():
        raise ValueError(f"no token after the first {prompt} has a token before it: the rows are nothing but padding")
    if method == "plain":
        scores = _plain(model, input_ids, mask, prompt)
    elif method == "stepwise":
        scores = _stepwise(model, input_ids, mask, press, prompt, progress)
    else:
        scores = _onepass(model, input_ids, mask, press, prompt, progress)
    return Perplexity(
        nll=scores.nll.masked_fill(~scored, float("nan")),
        scored=scored,
        hits=scores.hits & scored,
        affected=_affected(scores.evicted_at, scored, prompt),
        evictions=count_evictions(scores.evicted_at),
        held=scores.held,
        kv_bytes=scores.kv_bytes,
        compressing=press is not None and press.keep_ratio < 1,
        evicted_at=scores.evicted_at,
    )


def _affected(tables: tuple[Tensor, ...], scored: Tensor, prompt: int) -> Tensor:
    """Which scored tokens come after the first eviction in their row: ``[B, scored]`` bool."""
    first = torch.full((scored.shape[0],), NEVER)
    for table in tables:
        first = torch.minimum(first, table.masked_fill(table == 0, NEVER).flatten(1).amin(dim=1))
    queries = torch.arange(prompt - 1, prompt - 1 + scored.shape[1])
    return scored & (first[:, None] <= queries)
