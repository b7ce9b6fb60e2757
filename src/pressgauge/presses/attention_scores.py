"""Votes: what queries say of the entries of one layer, for presses whose scores come from attention.

Shapes: B batch, H query heads, K KV heads, N entries held, q queries, D head dimension. Query heads ``k * H / K`` to
``(k + 1) * H / K - 1`` read KV head k, and vote for it. No table of ``[T, T]`` is ever made.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

MOST = 1 << 22
"""Attention weights that are made at a time."""


def weights(queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> Tensor:
    """Attention of the last q entries' queries, each to the entries up to its own, in float32 or wider.

    Args:
        queries: ``[B, H, q, D]``.
        keys: ``[B, K, N, D]``, in order of position.
        filler: ``[B, K, N]``, where there is filler, which is given nothing; None for nowhere.
        scale: what products of queries and keys are multiplied by.

    Returns:
        ``[B, K, H / K, q, N]``; not a number for a query that sees nothing but filler.
    """
    rows, heads, seen, _ = keys.shape
    size = queries.shape[2]
    dtype = torch.promote_types(keys.dtype, torch.float32)
    queries = queries.to(dtype).mul(scale).view(rows, heads, -1, *queries.shape[2:])
    logits: Tensor = (queries.flatten(2, 3) @ keys.to(dtype).mT).unflatten(2, queries.shape[2:4])
    if size > 1:
        later = torch.ones((size, size), dtype=torch.bool, device=keys.device).triu(1)
        logits[..., seen - size :].masked_fill_(later, -torch.inf)
    if filler is not None:
        logits.masked_fill_(filler[:, :, None, None], -torch.inf)
    return logits.softmax(dim=-1)


class Attention:
    """What the queries of a pass see.

    Args:
        queries: ``[B, H, q, D]``, those of the last q entries: each sees the entries up to its own.
        keys: ``[B, K, N, D]``, in order of position.
        filler: ``[B, K, N]``, where there is filler, which neither votes nor is voted for; None for nowhere.
        scale: what products of queries and keys are multiplied by.
    """

    def __init__(self, queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> None:
        self.queries, self.keys, self.filler, self.scale = queries, keys, filler, scale

    def received(self) -> Tensor:
        """``[B, K, N]``, in float32 or wider: the attention that each entry receives, the sum over the queries and the
        mean over the query heads of its KV head."""
        rows, query_heads, count, _ = self.queries.shape
        heads, entries = self.keys.shape[1:3]
        keys = self.keys.to(torch.promote_types(self.keys.dtype, torch.float32))
        found = keys.new_zeros((rows, heads, entries))
        block = max(1, MOST // (rows * query_heads * entries))
        for start in range(0, count, block):
            stop = min(start + block, count)
            before, seen = entries - count + start, entries - count + stop
            filler = None if self.filler is None else self.filler[:, :, :seen]
            given = weights(self.queries[:, :, start:stop], keys[:, :, :seen], filler, self.scale)
            if filler is not None:
                # A query of padding sees nothing, and what nothing is divided by is no number.
                given.masked_fill_(filler[:, :, None, before:, None], 0)
            found[..., :seen] += given.sum(dim=(2, 3))
        return found * (heads / query_heads)

    def received_from(self, last: int) -> Tensor | None:
        """``[B, K, N]``: the same for the last queries, those of earlier passes included, for whoever knows it."""
        return None


class Votes(ABC):
    """What one layer remembers of the queries that it has seen."""

    @abstractmethod
    def observe(self, attention: Attention) -> None:
        """Take in a pass: its queries, and all entries that were held before it and its own; filler may stand where an
        entry was."""

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
        """Bytes that are remembered while a text is decoded."""


class LastQueries(Votes):
    """The last queries themselves, which vote anew whenever somebody asks.

    Args:
        most: how many. Their own entries have to be held still when they vote.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.scale = 1.0
        self.filler: Tensor | None = None
        self._parts: list[Tensor] = []
        """Queries ``[B, H, q, D]``, oldest first."""
        self._count = 0
        """How many these are."""
        self._received: Tensor | None = None
        """What they give, where that is known already."""

    def observe(self, attention: Attention) -> None:
        self.scale, self.filler = attention.scale, attention.filler
        # A part of the pass's queries would keep all of them alive.
        self._parts.append(attention.queries[:, :, -self.most :].clone())
        self._count += self._parts[-1].shape[2]
        while self._count - self._parts[0].shape[2] >= self.most:
            self._count -= self._parts.pop(0).shape[2]
        self._received = attention.received_from(self.most)

    @property
    def queries(self) -> Tensor:
        """``[B, H, q, D]``: the last ones."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts, dim=2)[:, :, -self.most :].clone()]
            self._count = self._parts[0].shape[2]
        return self._parts[0]

    def of(self, keys: Tensor) -> Tensor:
        found = self._received
        if found is None:
            found = Attention(self.queries, keys, self.filler, self.scale).received()
        return found / min(self.most, self._count)

    def keep(self, kept: Tensor) -> None:
        self.filler = self._received = None

    def select(self, rows: Tensor) -> None:
        self._parts = [part.index_select(0, rows.to(part.device)) for part in self._parts]

    @property
    def nbytes(self) -> int:
        return sum(part.untyped_storage().nbytes() for part in self._parts)


class AttentionSums(Votes):
    """The attention that each entry has received since it came."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def observe(self, attention: Attention) -> None:
        found = attention.received()
        if self.sums is not None:
            found[..., : self.sums.shape[2]] += self.sums
            if attention.filler is not None:
                found.masked_fill_(attention.filler, 0)
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
