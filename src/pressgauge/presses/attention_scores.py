"""Attention scores of one layer's entries, for presses that rank by attention.

Shapes: B batch, H query heads, K KV heads, N retained entries, q queries, D head dimension. Query heads ``k * H / K``
to ``(k + 1) * H / K - 1`` read KV head k and contribute to its scores. Attention weights of long texts are materialised
in blocks of queries, never as a whole ``[T, T]`` matrix.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pressgauge.softmax import PLAIN, Softmax

MOST = 1 << 22
"""Maximum number of attention weights materialised at a time, or those of a single query."""


def weights(
    queries: Tensor,
    keys: Tensor,
    filler: Tensor | None,
    scale: float,
    softmax: Softmax = PLAIN,
    until: Tensor | None = None,
) -> Tensor:
    """Causal attention weights of the last q queries, in float32 or wider.

    Args:
        queries: ``[B, H, q, D]``, those of the last q entries.
        keys: ``[B, K, N, D]``, in order of position.
        filler: ``[B, K, N]`` bool, True at padding slots, which get zero weight; None if there are none.
        scale: scaling factor of the query-key products.
        softmax: softmax of the layer.
        until: ``[B, K, N]``: the first of these queries whose window no longer has the entry; None without a window.

    Returns:
        ``[B, K, H / K, q, N]``; NaN for a query that attends to padding slots only, 0 if there are sinks.
    """
    rows, heads, seen, _ = keys.shape
    size = queries.shape[2]
    dtype = torch.promote_types(keys.dtype, torch.float32)
    queries = queries.to(dtype).mul(scale).view(rows, heads, -1, *queries.shape[2:])
    logits: Tensor = (queries.flatten(2, 3) @ keys.to(dtype).mT).unflatten(2, queries.shape[2:4])
    logits = softmax.capped(logits)
    if size > 1:
        later = torch.ones((size, size), dtype=torch.bool, device=keys.device).triu(1)
        logits[..., seen - size :].masked_fill_(later, -torch.inf)
    if filler is not None:
        logits.masked_fill_(filler[:, :, None, None], -torch.inf)
    if until is not None:
        beyond = torch.arange(size, device=keys.device)[:, None] >= until[:, :, None, None]
        logits.masked_fill_(beyond, -torch.inf)
    return softmax.weights(logits)


class Attention:
    """Inputs of the attention of one pass.

    Args:
        queries: ``[B, H, q, D]``, those of the last q entries. Each attends to the entries up to its own.
        keys: ``[B, K, N, D]``, in order of position.
        filler: ``[B, K, N]`` bool, True at padding slots, which neither give nor receive attention; None if there are
            none.
        scale: scaling factor of the query-key products.
        softmax: softmax of the layer.
        until: ``[B, K, N]``: the first of these queries whose window no longer has the entry; None without a window.
        reach: number of last queries, those of earlier passes included, whose own entries are among the keys where
            the layer has a window; None without a window.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        filler: Tensor | None,
        scale: float,
        softmax: Softmax = PLAIN,
        until: Tensor | None = None,
        reach: int | None = None,
    ) -> None:
        self.queries, self.keys, self.filler, self.scale, self.softmax = queries, keys, filler, scale, softmax
        self.until, self.reach = until, reach

    def received(self) -> Tensor:
        """Attention that each entry receives: ``[B, K, N]``, in float32 or wider.

        Summed over the queries and averaged over the query heads of the entry's KV head.
        """
        rows, query_heads, count, _ = self.queries.shape
        heads, entries = self.keys.shape[1:3]
        keys = self.keys.to(torch.promote_types(self.keys.dtype, torch.float32))
        found = keys.new_zeros((rows, heads, entries))
        block = max(1, MOST // (rows * query_heads * entries))
        for start in range(0, count, block):
            stop = min(start + block, count)
            before, seen = entries - count + start, entries - count + stop
            filler = None if self.filler is None else self.filler[:, :, :seen]
            until = None if self.until is None else self.until[:, :, :seen] - start
            given = weights(self.queries[:, :, start:stop], keys[:, :, :seen], filler, self.scale, self.softmax, until)
            if filler is not None:
                # A padding query attends to nothing, so its softmax is NaN.
                given.masked_fill_(filler[:, :, None, before:, None], 0)
            found[..., :seen] += given.sum(dim=(2, 3))
        return found * (heads / query_heads)

    def received_from(self, last: int) -> Tensor | None:
        """``received`` from the last queries, or None if not precomputed: ``[B, K, N]``.

        Args:
            last: number of queries, those of earlier passes included.
        """
        return None


class Votes(ABC):
    """Attention state of one layer: what it keeps of the queries seen so far."""

    @abstractmethod
    def observe(self, attention: Attention) -> None:
        """Update with a pass: its queries, all entries retained before it, and its own entries.

        A padding slot may have replaced an entry.
        """

    @abstractmethod
    def of(self, keys: Tensor) -> Tensor:
        """Attention scores of the entries of the last ``observe``: ``[B, K, N]``.

        Args:
            keys: ``[B, K, N, D]``, the keys of that ``observe``.
        """

    @abstractmethod
    def keep(self, kept: Tensor) -> None:
        """Retain only the entries at the indices ``[B, K, n]``."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Reorder the batch: row i becomes the former row ``rows[i]``."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the state kept while a text is decoded."""


class LastQueries(Votes):
    """A window of the last queries, from which attention scores are recomputed on demand.

    Args:
        most: size of the window. The window's own entries must still be retained when scores are computed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.scale = 1.0
        self.softmax: Softmax
        self.filler: Tensor | None = None
        self.until: Tensor | None = None
        """As in ``Attention``, counted from the first of the ``reach`` last queries."""
        self._reach: int | None = None
        self._parts: list[Tensor] = []
        """Queries ``[B, H, q, D]``, oldest first."""
        self._count = 0
        """Number of queries in ``_parts``."""
        self._received: Tensor | None = None
        """The attention they give, if precomputed."""

    def observe(self, attention: Attention) -> None:
        self.scale, self.softmax, self.filler = attention.scale, attention.softmax, attention.filler
        # A view would keep the storage of all the pass's queries alive.
        self._parts.append(attention.queries[:, :, -self.most :].clone())
        self._count += self._parts[-1].shape[2]
        while self._count - self._parts[0].shape[2] >= self.most:
            self._count -= self._parts.pop(0).shape[2]
        self._received = attention.received_from(self.most)
        if attention.until is not None and attention.reach is not None:
            self._reach = min(attention.reach, self._count, self.most)
            self.until = attention.until + (self._reach - attention.queries.shape[2])

    @property
    def queries(self) -> Tensor:
        """The last ``most`` queries, or all if fewer were seen: ``[B, H, q, D]``."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts, dim=2)[:, :, -self.most :].clone()]
            self._count = self._parts[0].shape[2]
        return self._parts[0]

    def of(self, keys: Tensor) -> Tensor:
        found = self._received
        if found is None:
            queries = self.queries if self._reach is None else self.queries[:, :, -self._reach :]
            found = Attention(queries, keys, self.filler, self.scale, self.softmax, self.until).received()
        return found / min(self.most, self._count)

    def keep(self, kept: Tensor) -> None:
        self.filler = self.until = self._received = None

    def select(self, rows: Tensor) -> None:
        self._parts = [part.index_select(0, rows.to(part.device)) for part in self._parts]

    @property
    def nbytes(self) -> int:
        return sum(part.untyped_storage().nbytes() for part in self._parts)


class AttentionSums(Votes):
    """Cumulative attention that each entry has received since it was added."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def observe(self, attention: Attention) -> None:
        found = attention.received()
        if self.sums is not None:
            found[..., : self.sums.shape[2]].add_(self.sums)
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
