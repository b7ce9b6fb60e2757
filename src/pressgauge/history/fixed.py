"""Replay of evictions with fixed scores, from the order of the scores alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pressgauge.history.record import NEVER
from pressgauge.rules import Budget, Ledger


@dataclass(frozen=True)
class _Slots:
    """Eviction slots of a row, equal for every head of every layer of a model.

    Attributes:
        seen: per slot, ascending, the number of columns fed after the pass that evicts; a pass has one slot per evicted
            entry.
        first: per token of the row, the first slot it can take: that of the first evicting pass at which the token is
            neither a sink nor recent; the number of slots if there is none.
    """

    seen: list[int]
    first: list[int]


@lru_cache(maxsize=8)
def slots(
    budget: Budget, ratio: Fraction, passes: tuple[int, ...], prompt_length: int | None, padding: tuple[int, ...]
) -> list[_Slots]:
    """Eviction slots of each row.

    Args:
        budget: budget of the press.
        ratio: ``budget.exact_ratio``, a cache key of its own: budgets that compare equal may differ in it.
        passes: tokens of each pass.
        prompt_length: columns of the prompt; by default the first pass is the prompt.
        padding: columns of padding, per row.
    """
    ledger = Ledger(budget, prompt_length)
    slots = [_Slots([], []) for _ in padding]
    held, seen = [0] * len(padding), [0] * len(padding)
    for tokens in passes:
        ledger.feed(tokens, [min(pad, ledger.columns + tokens) for pad in padding])
        if ledger.cut:
            for row, slot in enumerate(slots):
                count = held[row] + ledger.seen[row] - seen[row] - ledger.held[row]
                if count:
                    released = ledger.seen[row] - budget.recent - len(slot.first)
                    slot.first.extend([len(slot.seen)] * released)
                    slot.seen.extend([ledger.columns] * count)
        held, seen = ledger.held, ledger.seen
    for row, slot in enumerate(slots):
        sinks = min(budget.sinks, len(slot.first))
        slot.first[:sinks] = [len(slot.seen)] * sinks
        slot.first.extend([len(slot.seen)] * (ledger.seen[row] - len(slot.first)))
    return slots


def _replay_head(worst_first: list[int], slots: _Slots) -> list[int]:
    """``evicted_at`` of one head's tokens; in the given order, each takes its first free slot.

    This is exact: the lowest-ranked token is evicted as soon as it can be, and without it and its slot the same holds
    for the next one.
    """
    evicted = [NEVER] * len(worst_first)
    seen, first = slots.seen, slots.first
    none = len(seen)
    free = list(range(none + 1))  # union-find: a slot at or before the next free one; itself if free
    for token in worst_first:
        slot = found = first[token]
        while free[found] != found:
            found = free[found]
        if found < none:
            evicted[token] = seen[found]
            free[found] = found + 1
        while slot < found:
            free[slot], slot = found, free[slot]
    return evicted


def replay_fixed(ranks: Tensor, slots: list[_Slots], padding: Sequence[int]) -> Tensor:
    """Replay evictions with fixed scores.

    Args:
        ranks: ``[B, K, T]``.
        slots: eviction slots of each row.
        padding: columns of padding, per row.

    Returns:
        ``evicted_at``: ``[B, K, T]`` int32.
    """
    table = torch.zeros(ranks.shape, dtype=torch.int32)
    for row, pad in enumerate(padding):
        orders = ranks[row, :, pad:].argsort(dim=-1).tolist()
        evicted = [_replay_head(order, slots[row]) for order in orders]
        table[row, :, pad:] = torch.from_numpy(np.array(evicted, dtype=np.int32))
    return table.to(ranks.device)
