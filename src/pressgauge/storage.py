"""Entries of one layer in storage, for the live cache and for the replay of its evictions."""

import torch
from torch import Tensor


def writable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if it was made in inference mode and that is over."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def taken(states: Tensor, index: Tensor) -> Tensor:
    """``[B, K, n, D]``: the entries of ``[B, K, T, D]`` at the indices ``[B, K, n]``."""
    batch, heads, length, dimension = states.shape
    starts = torch.arange(batch * heads, device=states.device).view(batch, heads, 1) * length
    flat = states.reshape(-1, dimension).index_select(0, (index + starts).flatten())
    return flat.view(batch, heads, -1, dimension)


def _gathered(tensor: Tensor, index: Tensor) -> Tensor:
    """As ``taken``, for entries of any shape; with fewer operators, each of which is slower."""
    return tensor.gather(2, index if tensor.dim() == 3 else index[..., None].expand(-1, -1, -1, tensor.shape[3]))


class Storage(dict[str, Tensor]):
    """Tensors ``[B, K, n, ...]`` by name, one slot per entry in each, of which the first ``used`` slots count."""

    used = 0

    def held(self, name: str) -> Tensor:
        """The slots of a tensor that count."""
        return self[name][:, :, : self.used]

    def put(self, name: str, start: int, part: Tensor) -> None:
        """Write a part ``[B, K, n, ...]`` from a slot on."""
        self[name][:, :, start : start + part.shape[2]] = part

    def thaw(self) -> None:
        """Make storage that was filled in inference mode writable outside it."""
        for name, tensor in self.items():
            self[name] = writable(tensor)

    def reserve(self, slots: int, room: int) -> None:
        """Make room for ``slots`` entries; ``room`` is what tensors grow to that have to move anyway."""
        self.thaw()
        for name, tensor in self.items():
            if tensor.shape[2] < slots:
                larger = tensor.new_empty((*tensor.shape[:2], max(slots, room), *tensor.shape[3:]))
                larger[:, :, : self.used] = tensor[:, :, : self.used]
                self[name] = larger

    def trim(self, room: int) -> None:
        """Give back what exceeds ``room`` slots."""
        for name, tensor in self.items():
            if tensor.shape[2] > room:
                self[name] = self.held(name).clone()

    def take(self, index: Tensor, **known: Tensor) -> None:
        """Retain the entries at the indices ``[B, K, n]``, in this order; tensors whose entries are known are given."""
        for name, tensor in self.items():
            self[name] = known[name] if name in known else _gathered(tensor, index)
        self.used = index.shape[2]

    def zero(self, empty: Tensor) -> None:
        """Write zeros over keys and values where ``[B, K, used]`` says that a slot is empty."""
        for name in ("keys", "values"):
            if name in self:
                self.held(name).masked_fill_(empty[..., None], 0)

    def refill(self, slots: Tensor) -> None:
        """Evict the entries in the slots ``[B, K, n]``, ascending, and move the last entries into these slots."""
        count = slots.shape[2]
        left = self.used - count
        if count > 1:
            # The i-th evicted slot before `left` takes the i-th retained one after it; what is left over stays beyond.
            evicted = slots.new_zeros((*slots.shape[:2], self.used), dtype=torch.int8).scatter_(2, slots, 1)
            tail = left + evicted[..., left:].argsort(dim=-1, stable=True)
        for tensor in self.values():
            slot = slots if tensor.dim() == 3 else slots[..., None].expand(-1, -1, -1, tensor.shape[3])
            last = tensor[:, :, left : self.used].clone() if count == 1 else _gathered(tensor, tail)
            tensor.scatter_(2, slot, last)
        self.used = left

    def select(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        for name, tensor in self.items():
            self[name] = tensor.index_select(0, rows.to(tensor.device))

    def nbytes(self, *names: str) -> int:
        """Bytes of the storage of these tensors."""
        return sum(self[name].untyped_storage().nbytes() for name in names if name in self)
