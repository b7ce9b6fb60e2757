"""Replay of evictions with fixed scores, from the order of the scores alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pressgauge.history.plan import Slots
from pressgauge.history.record import NEVER


def _replay_head(worst_first: list[int], slots: Slots) -> list[int]:
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


def replay_fixed(ranks: Tensor, slots: list[Slots], padding: Sequence[int]) -> Tensor:
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
