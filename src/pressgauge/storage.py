"""Tensor storage of one layer's entries, for the live cache and for replay.

Shapes: B batch, K KV heads, T slots, n entries, D head dimension.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def light(tensor: Tensor) -> Any:
    """A tensor as an array that shares its memory: NumPy's on the CPU, else the tensor itself.

    An operator of NumPy takes a third of the time of torch's on a few thousand numbers.
    """
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def heavy(array: Any) -> Tensor:
    """The inverse of ``light``."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def writable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of an inference tensor outside inference mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def taken(states: Tensor, index: Tensor) -> Tensor:
    """Gather the entries of ``[B, K, T, D]`` at the indices ``[B, K, n]``: ``[B, K, n, D]``."""
    batch, heads, length, dimension = states.shape
    starts = torch.arange(batch * heads, device=states.device).view(batch, heads, 1) * length
    flat = states.reshape(-1, dimension).index_select(0, (index + starts).flatten())
    return flat.view(batch, heads, -1, dimension)


def _gathered(tensor: Tensor, index: Tensor) -> Tensor:
    """``taken`` for entries of any shape; fewer but slower operators."""
    return tensor.gather(2, index if tensor.dim() == 3 else index[..., None].expand(-1, -1, -1, tensor.shape[3]))


class Storage(dict[str, Tensor]):
    """Tensors ``[B, K, T, ...]`` by name, one slot per entry; the first ``used`` are in use."""

    used = 0

    def held(self, name: str) -> Tensor:
        """View of a tensor's slots in use: ``[B, K, used, ...]``."""
        return self[name][:, :, : self.used]

    def put(self, name: str, start: int, part: Tensor) -> None:
        """Write ``part``, ``[B, K, n, ...]``, to the slots from ``start`` on."""
        self[name][:, :, start : start + part.shape[2]] = part

    def thaw(self) -> None:
        """Make storage filled in inference mode writable outside it."""
        for name, tensor in self.items():
            self[name] = writable(tensor)

    def reserve(self, slots: int, room: int) -> None:
        """Ensure capacity for ``slots`` entries; tensors that must grow get ``room`` slots or more."""
        self.thaw()
        for name, tensor in self.items():
            if tensor.shape[2] < slots:
                larger = tensor.new_empty((*tensor.shape[:2], max(slots, room), *tensor.shape[3:]))
                larger[:, :, : self.used] = tensor[:, :, : self.used]
                self[name] = larger

    def trim(self, room: int) -> None:
        """Shrink tensors with more than ``room`` slots to the slots in use."""
        for name, tensor in self.items():
            if tensor.shape[2] > room:
                self[name] = self.held(name).clone()

    def take(self, index: Tensor, **known: Tensor) -> None:
        """Retain the entries at the indices ``[B, K, n]``, in this order.

        Args:
            index: the indices.
            known: tensors that were already gathered, by name.
        """
        for name, tensor in self.items():
            self[name] = known[name] if name in known else _gathered(tensor, index)
        self.used = index.shape[2]

    def drop_padding(self) -> Tensor:
        """Remove the slots that are padding in every row and head, which precede the entries.

        Returns:
            Indices of the other slots: ``[B, K, n]``.
        """
        positions = self.held("positions")
        empty = int((positions < 0).sum(dim=-1).min())
        kept = torch.arange(empty, self.used, device=positions.device).expand(*positions.shape[:2], -1)
        if empty:
            self.take(kept)
        return kept

    def zero(self, empty: Tensor) -> None:
        """Zero keys and values where ``empty``, ``[B, K, used]`` bool, is True."""
        for name in ("keys", "values"):
            if name in self:
                self.held(name).masked_fill_(empty[..., None], 0)

    def refill(self, slots: Tensor) -> None:
        """Evict the entries in ``slots`` and move the last entries into these slots.

        Args:
            slots: ``[B, K, n]``, ascending.
        """
        count = slots.shape[2]
        left = self.used - count
        if count > 1:
            # The i-th evicted slot before `left` takes the i-th retained entry from `left` on. Surplus pairs lie at
            # or beyond `left`, which is cut off.
            evicted = slots.new_zeros((*slots.shape[:2], self.used), dtype=torch.int8).scatter_(2, slots, 1)
            tail = left + evicted[..., left:].argsort(dim=-1, stable=True)
        for tensor in self.values():
            slot = slots if tensor.dim() == 3 else slots[..., None].expand(-1, -1, -1, tensor.shape[3])
            last = tensor[:, :, left : self.used].clone() if count == 1 else _gathered(tensor, tail)
            tensor.scatter_(2, slot, last)
        self.used = left

    def refilled(self, slots: Tensor) -> Tensor:
        """Indices of the entries after ``refill(slots)``, before it: ``[B, K, used - n]``."""
        order = torch.arange(self.used, device=slots.device).expand(*slots.shape[:2], self.used).clone()
        moved = Storage(order=order)
        moved.used = self.used
        moved.refill(slots)
        return moved.held("order")

    def select(self, rows: Tensor) -> None:
        """Reorder the batch: row i becomes the former row ``rows[i]``."""
        for name, tensor in self.items():
            self[name] = tensor.index_select(0, rows.to(tensor.device))

    def nbytes(self, *names: str) -> int:
        """Bytes of storage of the named tensors."""
        return sum(self[name].untyped_storage().nbytes() for name in names if name in self)
