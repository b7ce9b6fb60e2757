"""``evicted_at``, the eviction history of a layer: one integer per (row, KV head, token).

It is the number of columns fed by the end of the pass that evicted the token, ``NEVER`` for a retained token, and 0 for
padding. So query t attends to key j if and only if ``j <= t < evicted_at[b, k, j]``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pressgauge.rules import Window
from pressgauge.storage import writable

NEVER = torch.iinfo(torch.int32).max


class History:
    """Record of the evictions of one layer.

    Args:
        rows, heads: B and K.
        device: device of the record.
    """

    def __init__(self, rows: int, heads: int, device: torch.device) -> None:
        self._evicted_at = torch.full((rows, heads, 1), NEVER, dtype=torch.int32, device=device)

    def record(
        self, positions: Tensor, padding: Sequence[int], seen: int | Sequence[int], *, partly: bool = False
    ) -> None:
        """Record evictions.

        Args:
            positions: ``[B, K, n]``, of the evicted entries; -1 for none.
            padding: columns of padding, per row.
            seen: columns fed by the end of the evicting pass, ascending if there is one for each of the n.
            partly: whether some positions are -1 although no row is padded.
        """
        self._evicted_at = writable(self._evicted_at)
        last = seen if isinstance(seen, int) else seen[-1]
        if last >= self._evicted_at.shape[-1]:
            # The last column is a dummy target for "none", so that no value has to be read back from the device.
            more = last + last // 2 + 64 - self._evicted_at.shape[-1]
            self._evicted_at[..., -1] = NEVER
            self._evicted_at = torch.nn.functional.pad(self._evicted_at, (0, more), value=NEVER)
        columns = positions.long()
        if any(padding):
            columns = columns + torch.tensor(padding, device=columns.device)[:, None, None]
        if partly or any(padding):
            columns = torch.where(positions < 0, self._evicted_at.shape[-1] - 1, columns)
        ends: Any = seen
        if not isinstance(seen, int):
            ends = torch.tensor(seen, dtype=torch.int32, device=columns.device).expand_as(columns)
        self._evicted_at.scatter_(2, columns, ends)

    def evicted_at(self, columns: int, padding: Sequence[int]) -> Tensor:
        """The eviction history of the first columns: ``[B, K, columns]`` int32."""
        rows, heads, known = self._evicted_at.shape
        table = self._evicted_at.new_full((rows, heads, columns), NEVER)
        known = min(known - 1, columns)
        table[..., :known] = self._evicted_at[..., :known]
        if any(padding):
            ends = torch.tensor(padding, device=table.device)[:, None, None]
            table.masked_fill_(torch.arange(columns, device=table.device) < ends, 0)
        return table

    def select(self, rows: Tensor) -> None:
        """Reorder the batch: row i becomes the former row ``rows[i]``."""
        self._evicted_at = self._evicted_at.index_select(0, rows.to(self._evicted_at.device))


def visible(evicted_at: Tensor, start: int, stop: int) -> Tensor:
    """Attention mask of queries ``start`` to ``stop - 1``: ``[B, K, stop - start, T]`` bool."""
    queries = torch.arange(start, stop, device=evicted_at.device)[:, None]
    keys = torch.arange(evicted_at.shape[-1], device=evicted_at.device)
    return (keys <= queries) & (queries < evicted_at[:, :, None, :])


def effective(evicted_at: Tensor, window: Window | None) -> Tensor:
    """``evicted_at`` with what leaves a window as evicted: query t sees key j iff ``j <= t < effective[b, k, j]``.

    Args:
        evicted_at: ``[B, K, T]``, without padding.
        window: the layer's window; None if it has none.
    """
    if window is None:
        return evicted_at
    return evicted_at.minimum(window.end(torch.arange(evicted_at.shape[-1], device=evicted_at.device)).int())


def retained(evicted_at: Tensor, window: Window | None, padding: Sequence[int]) -> int:
    """Entries that a layer holds after the last column, of the KV head and row that holds most.

    Args:
        evicted_at: ``[B, K, T]``.
        window: the layer's window; None if it has none.
        padding: columns of padding, per row.
    """
    held = evicted_at == NEVER
    columns = evicted_at.shape[-1]
    if window is not None and count_evictions([evicted_at]):
        pads = torch.tensor(padding, device=evicted_at.device)[:, None, None]
        held = held & (window.end(torch.arange(columns, device=evicted_at.device) - pads) > columns - pads)
    most = int(held.sum(dim=-1).max())
    return most if window is None else min(most, window.size - 1)


def count_evictions(tables: Iterable[Tensor]) -> int:
    """Number of evicted entries, neither retained nor padding, over the layers' ``evicted_at``."""
    return sum(int(((table > 0) & (table < NEVER)).sum()) for table in tables)


def first_evictions(tables: Iterable[Tensor]) -> Tensor:
    """Columns fed by the end of the pass that first evicted an entry of a row: ``[B]`` on the CPU, ``NEVER`` for none.

    Args:
        tables: ``evicted_at`` of each layer, ``[B, K, columns]``.
    """
    # 0 is padding.
    first = [table.masked_fill(table == 0, NEVER).flatten(1).amin(dim=1).cpu() for table in tables]
    return torch.stack(first).amin(dim=0)
