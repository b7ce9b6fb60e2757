"""Entries of one layer during replay with changing scores.

Shapes: B batch, K KV heads, T tokens, N slots, D head dimension.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pressgauge.storage import Storage, light, taken

AHEAD = 64
"""Number of upcoming tokens whose entries are stored, and whose attention is precomputed, in one batch."""


class Held:
    """Retained entries of one layer during replay, in order of position.

    An entry evicted alone leaves a hole, which is a padding slot.
    """

    def __init__(self, keys: Tensor, padding: Sequence[int]) -> None:
        self.source = keys
        rows, heads, tokens, _ = keys.shape
        offset = torch.tensor(padding, device=keys.device)[:, None, None]
        self._own = (torch.arange(tokens, device=keys.device) - offset).clamp(min=-1).expand(rows, heads, tokens)
        self.lines = light(torch.arange(rows * heads, device=keys.device))
        self._storage = Storage()
        self._storage.update(keys=keys[:, :, :0], positions=self._own[..., :0], empty=self._own[..., :0] < 0)
        self._arrays: list[Any] = []
        self._stored = 0
        """Number of columns in storage, which has some before they are known."""
        self.padded = any(padding)
        self.known = self.holes = 0

    @property
    def used(self) -> int:
        """Number of slots, holes included."""
        return self._storage.used

    @property
    def keys(self) -> Tensor:
        """``[B, K, N, D]``, zeros at padding slots."""
        return self._storage.held("keys")

    @property
    def positions(self) -> Tensor:
        """``[B, K, N]``, -1 at padding slots."""
        return self._storage.held("positions")

    @property
    def filler(self) -> Tensor | None:
        """``[B, K, N]`` bool, True at padding slots; None if there are none."""
        return self.empty if self.padded or self.holes else None

    @property
    def empty(self) -> Tensor:
        """``[B, K, N]`` bool, True at padding slots."""
        return self._storage.held("empty")

    @property
    def vacant(self) -> Any:
        """``empty`` as an array."""
        if not self._arrays:
            return light(self.empty)
        return self._arrays[2][:, : self.used].reshape(*self.source.shape[:2], -1)

    def add(self, columns: int) -> None:
        """Append the entries up to column ``columns``."""
        if columns > self._stored:
            self._store(min(columns + AHEAD, self.source.shape[2]))
        self._storage.used += columns - self.known
        self.known = columns

    def _store(self, columns: int) -> None:
        storage, new = self._storage, slice(self._stored, columns)
        start = storage.used + self._stored - self.known
        end = start + columns - self._stored
        if end > storage["keys"].shape[2]:
            used, storage.used = storage.used, start
            storage.reserve(end, min(end + end // 2, self.source.shape[2]))
            storage.used = used
        own = self._own[:, :, new]
        storage.put("keys", start, self.source[:, :, new])
        storage.put("positions", start, own)
        storage.put("empty", start, own < 0)
        if self.padded:
            storage["keys"][:, :, start:end].masked_fill_((own < 0)[..., None], 0)
        self._stored, self._arrays = columns, []

    def drop(self, slots: Any) -> Any:
        """Evict one entry of each head, and return their positions.

        Args:
            slots: array ``[B * K]``, as is the result.
        """
        if not self._arrays:
            keys, *others = (self._storage[name] for name in ("keys", "positions", "empty"))
            # NumPy has no bfloat16, and zero has no bits.
            tensors = [keys.view(torch.uint8), *others]
            self._arrays = [light(tensor).reshape(len(self.lines), *tensor.shape[2:]) for tensor in tensors]
        keys, positions, empty = self._arrays
        gone = positions[self.lines, slots]
        positions[self.lines, slots] = -1
        keys[self.lines, slots] = 0
        empty[self.lines, slots] = True
        self.holes += 1
        return gone

    def keep(self, kept: Tensor, positions: Tensor) -> None:
        """Retain the entries at the indices ``kept``, with their ``positions``: ``[B, K, n]``."""
        storage = self._storage
        # The upcoming entries in storage stay there.
        coming = torch.arange(self.used, self.used + self._stored - self.known, device=kept.device)
        index = torch.cat([kept, coming.expand(*kept.shape[:2], -1)], dim=2)
        positions = torch.cat([positions, self._own[:, :, self.known : self._stored]], dim=2)
        empty = positions < 0
        storage.take(index, keys=taken(storage["keys"], index), positions=positions, empty=empty)
        if self.padded:
            storage.zero(empty)
        storage.used = kept.shape[2]
        self.holes, self._arrays = 0, []
