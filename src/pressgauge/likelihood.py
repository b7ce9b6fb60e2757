"""Per-token NLL of a text under a model with a compressed cache, and its distance from the uncompressed run."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from rich.progress import Progress, track
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge.arguments import check_context, check_ids, check_model
from pressgauge.attach import meet
from pressgauge.cache import PressedCache, held_tokens, storage_nbytes
from pressgauge.decoder import attached, checked_mask, new_cache, own_positions, prove, refuse_padding
from pressgauge.divergence import Comparison, Note
from pressgauge.history import History, count_evictions, first_evictions, retained
from pressgauge.models import heads, interface, support
from pressgauge.models.padding import has_recurrent_layers
from pressgauge.models.support import refuse_outside
from pressgauge.onepass import NOT_DECODING, OnePass
from pressgauge.presses.base import Press, check_press
from pressgauge.rules import check_prompt, pass_lengths, whole_number
from pressgauge.uncompressed import Perplexity, Uncompressed

Method = Literal["onepass", "stepwise", "plain"]

_BLOCK = 64
"""Number of tokens whose logits are scored at a time; few enough to fit the CPU's cache."""
_RECURRENCE = 8
"""Number of tokens with which layers without keys are checked."""
_MOST_LOGITS = 1 << 28
"""Maximum number of logits of the rows of one forward pass, unless a single row has more."""


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


def _plain(model: PreTrainedModel, input_ids: Tensor, mask: Tensor, prompt: int, note: Note | None) -> _Scores:
    given = () if bool(mask.all()) else (mask, own_positions(mask))
    logits = interface.feed(model, input_ids, {}, *given)
    if note is not None:
        note(list(range(len(logits))), slice(0, logits.shape[1] - prompt), logits[:, prompt - 1 : -1])
    return _Scores(*score(logits[:, prompt - 1 : -1], input_ids[:, prompt:]))


def _stepwise(
    model: PreTrainedModel,
    input_ids: Tensor,
    mask: Tensor,
    press: Press | None,
    prompt: int,
    progress: bool,
    note: Note | None,
) -> _Scores:
    refuse_padding(model, mask, prompt, press)
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
                if not seen or press is not None or not outside or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(
                    f"{type(model).__name__} ({interface.VERSION}) does not continue with the cache that it was given "
                    f"({type(error).__name__}: {error}): {interface.PLAIN}"
                ) from error
            prove(model, cache, end)
            if end < columns:
                scores.append(score(logits[:, -1:], input_ids[:, end : end + 1]))
                if note is not None:
                    note(list(range(len(logits))), slice(end - prompt, end - prompt + 1), logits[:, -1:])
            seen = end
    nll, hits = (torch.cat(parts, dim=1) for parts in zip(*scores, strict=True))
    if isinstance(cache, PressedCache):
        return _Scores(nll, hits, tuple(table.cpu() for table in cache.evicted_at), tuple(cache.held), cache.nbytes)
    seen = int(mask.sum(dim=-1).max())
    held = tuple(held_tokens(layer, seen) for layer in cache.layers)
    return _Scores(nll, hits, held=held, kv_bytes=sum(storage_nbytes(layer) for layer in cache.layers))


def _check_recurrence(model: PreTrainedModel, ids: Tensor) -> None:
    """Raise ``ValueError`` if recurrent layers compute other logits for ``ids``, ``[1, T]``, fed singly, as some do."""
    if not has_recurrent_layers(model.config):
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
    model: PreTrainedModel,
    input_ids: Tensor,
    mask: Tensor,
    press: Press | None,
    prompt: int,
    progress: bool,
    note: Note | None,
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
                scored = slice(padding + first - prompt, columns - prompt)
                nll[group, scored], hits[group, scored] = score(logits[:, first - 1 : -1], ids[:, first:])
                if note is not None:
                    note(group, scored, logits[:, first - 1 : -1])
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
        # Storage is as wide as the head that holds most, the query's own token included in a window of transformers.
        window = None if press is None or layer in press.skipped else supported.windows.get(layer)
        stored = retained(tables[layer], window, paddings)
        size = getattr(own, "sliding_window", columns + 1)
        held.append(min(stored, size - 1))
        kv_bytes += rows * tables[layer].shape[1] * min(stored, size) * entry_nbytes[layer]
    evicted_at = []
    if press is not None:
        without_keys = History(rows, 1, torch.device("cpu")).evicted_at(columns, paddings)
        evicted_at = [tables.get(layer, without_keys) for layer in range(layers)]
    return _Scores(nll, hits, tuple(evicted_at), tuple(held), kv_bytes)


def _again(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor, prompt: int, rows: list[int], columns: slice
) -> Tensor:
    """Logits of rows of equal length in the uncompressed run, for a range of their scored tokens up to the last."""
    padding = int((mask[rows[0]] == 0).sum())
    onepass = OnePass(None, support.of_config(model.config), prompt)
    return onepass.logits(model, input_ids[rows, padding:])[:, columns.start + prompt - padding - 1 : -1]


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    input_ids: Tensor,
    press: Press | None = None,
    prompt: int = 1,
    method: Method = "onepass",
    *,
    against: Uncompressed | None = None,
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
        against: the uncompressed run that distributions are compared with; None compares none.
        attention_mask: ``[B, T]``, 0 at padding; None if nothing is padded.
        progress: show a progress bar.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range, more tokens than the model's context, a press that can never evict, or
            a model that the press or the method does not support, or another text or model than those of ``against``.
    """
    check_model(model)
    check_press(press)
    check_ids(input_ids, 2, model.config)
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
    comparison = None
    if against is not None:
        against.check(model, input_ids, mask, prompt)
        if press is None and method == "onepass" and against.result is None:
            comparison = against.begin(partial(_again, model, input_ids, mask, prompt))
        else:
            comparison = compared_with(against)
    note = None if comparison is None else comparison.note
    if method == "plain":
        scores = _plain(model, input_ids, mask, prompt, note)
    elif method == "stepwise":
        scores = _stepwise(model, input_ids, mask, press, prompt, progress, note)
    else:
        scores = _onepass(model, input_ids, mask, press, prompt, progress, note)
    result = _result(heads.of_all(model.config, scores), scored, prompt, press, comparison)
    if against is not None:
        against.close(result)
    return result


def compared_with(against: Uncompressed) -> Comparison:
    """A comparison of a run with the uncompressed one, which runs now if it has not."""
    if against.result is None:
        mask = against.attention_mask
        perplexity(against.model, against.input_ids, None, against.prompt, against=against, attention_mask=mask)
    return against.comparison()


def _result(
    scores: _Scores, scored: Tensor, prompt: int, press: Press | None, comparison: Comparison | None
) -> Perplexity:
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
        kl=None if comparison is None else comparison.kl.masked_fill(~scored, float("nan")),
        agrees=None if comparison is None else comparison.agrees & scored,
    )


def _affected(tables: tuple[Tensor, ...], scored: Tensor, prompt: int) -> Tensor:
    """Which scored tokens come after the first eviction in their row: ``[B, scored]`` bool."""
    if not tables:
        return torch.zeros_like(scored)
    queries = torch.arange(prompt - 1, prompt - 1 + scored.shape[1])
    return scored & (first_evictions(tables)[:, None] <= queries)
