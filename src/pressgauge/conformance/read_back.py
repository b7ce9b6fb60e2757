"""Quantised entries as they are read back: by token, and the logits of attention to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge.conformance.audit import GONE, Audit
from pressgauge.conformance.outcomes import Departure, note
from pressgauge.conformance.precision import tolerance
from pressgauge.conformance.session import Trace
from pressgauge.conformance.severity import Severity
from pressgauge.conformance.traces import audited
from pressgauge.conformance.versions import using
from pressgauge.conventions.adapters import bottom_right
from pressgauge.conventions.attention import attention


@dataclass(frozen=True)
class ReadBack:
    """Entries of one layer after a pass, by token."""

    keys: Tensor
    """``[B, K, T, D]`` of the T tokens seen; those of evicted tokens are as they arrived."""
    values: Tensor
    held: Tensor
    """Whether a token is held: ``[B, K, T]`` bool."""
    exact: tuple[Tensor, Tensor]
    """Whether its key and its value are those that arrived, to the bit: ``[B, K, T]`` bool."""


def read_back(audit: Audit, number: int, layer: int) -> ReadBack:
    """Entries of a layer after pass ``number``, by token."""
    trace = audit.trace
    arrived = trace.arrived(layer, number + 1)
    held_keys = trace.passes[number].held[layer][0]
    if held_keys.shape[2] == arrived[0].shape[2]:
        # Nothing was evicted, so that the order is that of tokens, whatever is read back.
        positions = torch.arange(held_keys.shape[2]).expand(held_keys.shape[:3])
    else:
        positions = audit.held[number][layer].positions.long()
    held = torch.zeros((*arrived[0].shape[:2], arrived[0].shape[2] + 1), dtype=torch.bool)
    index = positions.masked_fill(positions == GONE, held.shape[2] - 1)
    held.scatter_(2, index, True)
    entries = []
    for read, own in zip(trace.passes[number].held[layer], arrived, strict=True):
        table = torch.cat([own, own[:, :, :1]], dim=2)
        table.scatter_(2, index[..., None].expand_as(read), read)
        entries.append(table[:, :, :-1])
    held = held[..., :-1]
    exact = tuple((mine == own).all(-1) & held for mine, own in zip(entries, arrived, strict=True))
    return ReadBack(entries[0], entries[1], held, (exact[0], exact[1]))


class Replayed(DynamicCache):
    """A cache that hands out given entries instead of those that arrive.

    Args:
        before: entries of each layer before the pass, ``[B, K, N, D]``.
        own: those of the pass.
    """

    def __init__(self, before: list[tuple[Tensor, Tensor]], own: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.before, self.own = before, own

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The entries of a layer that a pass attends to."""
        parts = zip(self.before[layer_idx], self.own[layer_idx], strict=True)
        keys, values = (torch.cat(pair, dim=2).to(key_states) for pair in parts)
        return keys, values


SEEN = {
    "originals": "its own entries as they arrived and the earlier ones as read back before it",
    "own originals": "its own entries as they arrived and the earlier ones as read back after it",
    "read back": "all entries as read back after it",
}
"""What a pass may attend to."""


def attended(audit: Audit, number: int) -> Iterator[tuple[str, Tensor]]:
    """Logits ``[B, q, V]`` of a pass that attends to one of ``SEEN``."""
    trace, one = audit.trace, audit.trace.passes[number]
    layers = range(trace.layers)
    after = [_with_evicted(audit, number, layer) for layer in layers]
    before = [read_back(audit, number - 1, layer) if number else _nothing(after[layer]) for layer in layers]
    old = [_of_held(held, held) for held in before]
    aged = [_of_held(now, held) for held, now in zip(before, after, strict=True)]
    own = [(now.keys[:, :, one.start :], now.values[:, :, one.start :]) for now in after]
    arrived = [one.arrived[layer] for layer in layers]
    ways = {"originals": (old, arrived), "own originals": (aged, arrived), "read back": (aged, own)}
    for name, (earlier, new) in ways.items():
        yield name, _logits(trace, number, Replayed(earlier, new))


def _with_evicted(audit: Audit, number: int, layer: int) -> ReadBack:
    """Entries after a pass, with those that it evicted as they were handed to attention, if that is known."""
    after = read_back(audit, number, layer)
    one = audit.trace.passes[number]
    handed = one.returned.get(layer)
    if after.held.all() or handed is None:
        return after
    there = audit.held[number - 1][layer].positions.long() if number else torch.zeros((*after.held.shape[:2], 0)).long()
    own = torch.arange(one.start, one.end).expand(*there.shape[:2], -1)
    positions = torch.cat([there, own], dim=2)
    if handed[0].shape[2] != positions.shape[2] or bool((positions == GONE).any()):
        return after
    entries = []
    for known, given in zip((after.keys, after.values), handed, strict=True):
        table = known.scatter(2, positions[..., None].expand_as(given), given)
        entries.append(torch.where(after.held[..., None], known, table))
    return ReadBack(entries[0], entries[1], after.held, after.exact)


def _nothing(like: ReadBack) -> ReadBack:
    none = like.held[:, :, :0]
    return ReadBack(like.keys[:, :, :0], like.values[:, :, :0], none, (none, none))


def _of_held(entries: ReadBack, held: ReadBack) -> tuple[Tensor, Tensor]:
    """Entries of the tokens that were held, in their order; heads with fewer are padded with zeros."""
    there = held.held
    width = int(there.sum(-1).max()) if there.numel() else 0
    order = (~there).int().argsort(dim=-1, stable=True)[..., :width]
    real = there.gather(2, order)[..., None]
    found = []
    for tensor in (entries.keys, entries.values):
        if not width:
            found.append(tensor[:, :, :0])
            continue
        found.append(tensor.gather(2, order[..., None].expand(-1, -1, -1, tensor.shape[3])) * real)
    return found[0], found[1]


def _logits(trace: Trace, number: int, cache: Replayed) -> Tensor:
    one, model = trace.passes[number], trace.model
    positions = torch.arange(one.start, one.end)[None] if one.positions is None else one.positions
    with torch.no_grad(), attention(model, bottom_right):
        ids = trace.ids[:, one.start : one.end].to(model.device)
        logits: Tensor = model(
            ids, position_ids=positions.to(model.device), use_cache=True, **using(cache)
        ).logits.cpu()
    return logits


def check_attention_to_what_is_read_back(trace: Trace, first: int = 0) -> None:
    """Check the logits of each pass against attention to the entries as read back.

    Args:
        trace: a run without padded rows.
        first: the first token whose logits are checked.

    Raises:
        Departure: if they differ by more than noise.
    """
    own, audit = Severity.of_logits(trace), audited(trace)
    for number, one in enumerate(trace.passes):
        start = max(0, first - one.start)
        found = one.logits[:, start:]
        if not found.shape[1]:
            continue
        errors = {}
        for name, logits in attended(audit, number):
            logits = logits[:, start:]
            errors[name] = float((found - logits).abs().max() / logits.abs().max())
            if errors[name] < tolerance(found.dtype):
                break
        else:
            name, least = min(errors.items(), key=lambda pair: pair[1])
            where = f"pass {number} (tokens {one.start} to {one.end - 1})"
            sentence = (
                f"the logits of {where} are off by {least:.2g} of the largest{own.beside(least)} from attention to "
                f"{SEEN[name]}, the nearest of three"
            )
            if not own.is_noise(least):
                raise Departure(sentence)
            note(sentence)
        if not number and name == "originals" and one.length > 1:
            note(
                "the first pass attends to entries as they arrive, so that a perplexity from a single pass is that of "
                "the uncompressed model"
            )
