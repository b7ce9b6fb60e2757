"""Votes: what queries say of the entries of one layer, for presses whose scores come from attention.

Shapes: B batch, H query heads, K KV heads, N entries held, q queries, D head dimension. Query heads ``k * H / K`` to
``(k + 1) * H / K - 1`` read KV head k, and vote for it. No table of ``[T, T]`` is ever made.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

_MOST = 1 << 22
"""Attention weights that are made at a time."""
_LEAST = 1e-20
"""Of what a query gave: below this float32 runs out of digits."""


def _wide(queries: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries by KV head, ``[B, K, H / K, q, D]`` and scaled, and keys ``[B, K, N, D]``, in float32 or wider."""
    dtype = torch.promote_types(keys.dtype, torch.float32)
    rows, heads = keys.shape[:2]
    return queries.to(dtype).mul(scale).view(rows, heads, -1, *queries.shape[2:]), keys.to(dtype)


def _logits(queries: Tensor, keys: Tensor, filler: Tensor | None) -> Tensor:
    """``[B, K, H / K, q, N]`` of queries ``[B, K, H / K, q, D]`` at the last q of ``[B, K, N, D]`` entries: minus
    infinity for what is later or filler."""
    size, seen = queries.shape[3], keys.shape[2]
    logits: Tensor = (queries.flatten(2, 3) @ keys.mT).unflatten(2, queries.shape[2:4])
    if size > 1:
        later = torch.ones((size, size), dtype=torch.bool, device=keys.device).triu(1)
        logits[..., seen - size :].masked_fill_(later, -torch.inf)
    if filler is not None:
        logits.masked_fill_(filler[:, :, None, None, :seen], -torch.inf)
    return logits


def _weights(queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> Tensor:
    """``[B, K, H / K, q, N]``: attention of the last entries' queries ``[B, H, q, D]``."""
    return _logits(*_wide(queries, keys, scale), filler).softmax(dim=-1)


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
    rows, query_heads, count, _ = queries.shape
    heads, entries = keys.shape[1:3]
    queries, keys = _wide(queries, keys, scale)
    found = keys.new_zeros((rows, heads, entries))
    block = max(1, _MOST // (rows * query_heads * entries))
    for start in range(0, count, block):
        stop = min(start + block, count)
        before, seen = entries - count + start, entries - count + stop
        weights = _logits(queries[:, :, :, start:stop], keys[:, :, :seen], filler).softmax(dim=-1)
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
    def drop(self, slots: Tensor) -> None:
        """Go on without the entry of each head at the index ``[B, K, 1]``, which becomes filler where it stands."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are remembered while a text is decoded."""


class LastQueries(Votes):
    """The last queries themselves, which vote anew whenever somebody asks.

    Once single entries are dropped in place, as where a whole history is replayed, the attention of several queries is
    kept as well, unless it is too large: a query that is new adds a row, and an entry that goes empties a column.

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
        self._dropping = False
        self._weights: Tensor | None = None
        """``[B, K, H / K, rows, room]``: what is left of what each row gave; zeros beyond what is held."""
        self._row = 0
        """The row of the oldest query."""

    def observe(self, queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> None:
        self.scale, self.filler = scale, filler
        # A part of the pass's queries would keep all of them alive.
        self._parts.append(queries[:, :, -self.most :].clone())
        self._count += self._parts[-1].shape[2]
        while self._count - self._parts[0].shape[2] >= self.most:
            self._count -= self._parts.pop(0).shape[2]
        if self._weights is None:
            return
        new, held = queries.shape[2], keys.shape[2]
        if new >= self.most or held > self._weights.shape[4] or self._weights.shape[3] < self.most:
            self._weights = None
            return
        found = _weights(queries, keys, filler, scale)
        for query in range(new):
            self._weights[..., self._row, :held] = found[..., query, :]
            self._row = (self._row + 1) % self.most

    @property
    def queries(self) -> Tensor:
        """``[B, H, q, D]``: the last ones."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts, dim=2)[:, :, -self.most :].clone()]
            self._count = self._parts[0].shape[2]
        return self._parts[0]

    def of(self, keys: Tensor) -> Tensor:
        if not self._dropping or self.most * self._parts[0][:, :, 0, 0].numel() * keys.shape[2] > _MOST:
            return received(self.queries, keys, self.filler, self.scale) / self.queries.shape[2]
        if self._weights is None:
            self._weights = self._fresh(keys)
        totals = self._weights.sum(dim=-1)
        if not float(totals.min()) >= _LEAST:
            # What weighed most has gone and what is left has lost its digits, or something is no number.
            self._weights = self._fresh(keys)
            totals = self._weights.sum(dim=-1)
        # The heads that read a KV head vote together.
        found = totals.reciprocal().flatten(2)[:, :, None] @ self._weights.flatten(2, 3)
        return found[:, :, 0, : keys.shape[2]] / totals[0, 0].numel()

    def _fresh(self, keys: Tensor) -> Tensor:
        self._row = 0
        found = _weights(self.queries, keys, self.filler, self.scale)
        return torch.nn.functional.pad(found, (0, found.shape[4] // 4))

    def drop(self, slots: Tensor) -> None:
        self._dropping = self.most > 1
        if self._weights is not None:
            index = slots[:, :, None, None].expand(*self._weights.shape[:4], 1)
            self._weights.scatter_(4, index, 0)

    def keep(self, kept: Tensor) -> None:
        self.filler = self._weights = None

    def select(self, rows: Tensor) -> None:
        self._parts = [part.index_select(0, rows.to(part.device)) for part in self._parts]

    @property
    def nbytes(self) -> int:
        return sum(part.untyped_storage().nbytes() for part in self._parts)


class AttentionSums(Votes):
    """The attention that each entry has received since it came."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def observe(self, queries: Tensor, keys: Tensor, filler: Tensor | None, scale: float) -> None:
        found = received(queries, keys, filler, scale)
        if self.sums is not None:
            found[..., : self.sums.shape[2]] += self.sums
            if filler is not None:
                found.masked_fill_(filler, 0)
        self.sums = found

    def of(self, keys: Tensor) -> Tensor:
        assert self.sums is not None
        return self.sums

    def drop(self, slots: Tensor) -> None:
        """The next pass finds filler there, and takes away what it received."""

    def keep(self, kept: Tensor) -> None:
        assert self.sums is not None
        self.sums = self.sums.gather(2, kept)

    def select(self, rows: Tensor) -> None:
        if self.sums is not None:
            self.sums = self.sums.index_select(0, rows.to(self.sums.device))

    @property
    def nbytes(self) -> int:
        return 0 if self.sums is None else self.sums.untyped_storage().nbytes()
