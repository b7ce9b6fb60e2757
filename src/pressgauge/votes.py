"""Votes: what queries say of the entries of one layer, for presses whose scores come from attention.

Shapes: B batch, H query heads, K KV heads, N entries held, q queries, D head dimension. Query heads ``k * H / K`` to
``(k + 1) * H / K - 1`` read KV head k, and vote for it. No table of ``[T, T]`` is ever made.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

_MOST = 1 << 22
"""Attention weights that are made at a time."""


def received(queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> Tensor:
    """The attention that each entry receives: the sum over queries, and the mean over the query heads of its KV head.

    Args:
        queries: ``[B, H, q, D]``, those of the last q entries: each sees the entries up to its own.
        keys: ``[B, K, N, D]``, in order of position.
        filler: ``[B, K, N]``, where there is filler, which neither votes nor is voted for; None for nowhere.
        scale: what products of queries and keys are multiplied by.

    Returns:
        ``[B, K, N]``, in float32 or wider.
    """
    rows, query_heads, count, dimension = queries.shape
    heads, entries = keys.shape[1:3]
    dtype = torch.promote_types(keys.dtype, torch.float32)
    keys, queries = keys.to(dtype), queries.to(dtype) * scale
    found = keys.new_zeros((rows, heads, entries))
    block = max(1, _MOST // (rows * query_heads * entries))
    for start in range(0, count, block):
        stop = min(start + block, count)
        size, before, seen = stop - start, entries - count + start, entries - count + stop
        part = queries[:, :, start:stop].reshape(rows, heads, -1, dimension)
        logits = (part @ keys[:, :, :seen].mT).view(rows, heads, -1, size, seen)
        if size > 1:
            later = torch.ones((size, size), dtype=torch.bool, device=keys.device).triu(1)
            logits[..., before:].masked_fill_(later, -torch.inf)
        if filler is not None:
            logits.masked_fill_(filler[:, :, None, None, :seen], -torch.inf)
        weights = logits.softmax(dim=-1)
        if filler is not None:
            # A query of padding sees nothing, and what nothing is divided by is no number.
            weights.masked_fill_(filler[:, :, None, before:seen, None], 0)
        found[..., :seen] += weights.sum(dim=(2, 3))
    return found * (heads / query_heads)


class Votes(ABC):
    """What one layer remembers of the queries that it has seen."""

    @abstractmethod
    def observe(self, queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> None:
        """Take in a pass. The arguments are those of ``received``, of all entries held before it and its own."""

    @abstractmethod
    def of(self, keys: Tensor) -> Tensor:
        """``[B, K, N]``: the votes for the entries of the last ``observe``, whose keys are given again."""

    @abstractmethod
    def keep(self, kept: Tensor) -> None:
        """Go on with the entries at the indices ``[B, K, n]``."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are remembered."""


class LastQueries(Votes):
    """The last queries themselves; they vote anew whenever somebody asks.

    Args:
        most: how many. Their own entries have to be held still when they vote.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.scale = 1.0
        self.filler: Tensor | None = None
        self.queries: Tensor | None = None

    def observe(self, queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> None:
        self.scale, self.filler = scale, filler
        last = queries[:, :, -self.most :]
        if self.queries is not None and last.shape[2] < self.most:
            last = torch.cat([self.queries, last], dim=2)[:, :, -self.most :]
        # A part of the pass's queries would keep all of them alive.
        self.queries = last.clone()

    def of(self, keys: Tensor) -> Tensor:
        assert self.queries is not None
        return received(self.queries, keys, self.filler, self.scale) / self.queries.shape[2]

    def keep(self, kept: Tensor) -> None:
        self.filler = None

    def select(self, rows: Tensor) -> None:
        if self.queries is not None:
            self.queries = self.queries.index_select(0, rows.to(self.queries.device))

    @property
    def nbytes(self) -> int:
        return 0 if self.queries is None else self.queries.untyped_storage().nbytes()


class AttentionSums(Votes):
    """The attention that each entry has received since it came."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def observe(self, queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> None:
        found = received(queries, keys, filler, scale)
        if self.sums is not None:
            found[..., : self.sums.shape[2]] += self.sums
        self.sums = found

    def of(self, keys: Tensor) -> Tensor:
        assert self.sums is not None
        return self.sums

    def keep(self, kept: Tensor) -> None:
        assert self.sums is not None
        self.sums = self.sums.gather(2, kept)

    def select(self, rows: Tensor) -> None:
        if self.sums is not None:
            self.sums = self.sums.index_select(0, rows.to(self.sums.device))

    @property
    def nbytes(self) -> int:
        return 0 if self.sums is None else self.sums.untyped_storage().nbytes()
