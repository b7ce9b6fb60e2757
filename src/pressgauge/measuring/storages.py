"""Storages that caches keep alive, layer by layer."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pressgauge.conformance.reachable import reachable


@dataclass(frozen=True)
class Held:
    """What one layer of a cache holds, in bytes.

    Attributes:
        storage: of the storages of keys and values.
        numbers: of the elements of keys and values; less than ``storage`` if tensors are views.
        other: of the storages of everything else, such as positions, scores, and scales kept apart.
    """

    storage: int
    numbers: int
    other: int


State = tuple[Held, ...]
"""What each layer of a cache holds."""


def _is_entry(name: str) -> bool:
    """Whether a path of names says keys or values."""
    parts = name.lower().split(".")
    return any("key" in part or "value" in part or part in ("k", "v") for part in parts)


class Storages:
    """Storages that were reachable from a cache, by weak reference."""

    def __init__(self) -> None:
        self._alive: dict[int, tuple[StorageWeakRef, int, object]] = {}

    def held(self, cache: Any, owner: object) -> State:
        """What a cache holds, layer by layer; its storages are counted from now on, under their first owner."""
        layers: list[Any] = list(getattr(cache, "layers", ()))
        own = {name: value for name, value in vars(cache).items() if name != "layers"}
        counted: set[int] = set()
        state = []
        for layer in [*layers, own]:
            entries: dict[int, int] = {}
            views: dict[int, int] = {}
            other = 0
            for name, tensor in reachable(layer):
                if not isinstance(tensor, Tensor):
                    continue
                storage = tensor.untyped_storage()
                key, size, numbers = storage._cdata, storage.nbytes(), tensor.numel() * tensor.itemsize
                if _is_entry(name) and numbers < size:
                    views[key] = views.get(key, 0) + numbers
                if not size or key in counted:
                    continue
                counted.add(key)
                if _is_entry(name):
                    entries[key] = size
                else:
                    other += size
                if key not in self._alive:
                    self._alive[key] = StorageWeakRef(storage), size, owner
            if layer is not own or entries or other:
                shown = sum(min(size, views.get(key, size)) for key, size in entries.items())
                state.append(Held(sum(entries.values()), shown, other))
        return tuple(state)

    def live(self, owner: object = None) -> int:
        """Bytes of storages that are still alive, of one owner or of all."""
        for key in [key for key, (storage, _, _) in self._alive.items() if storage.expired()]:
            del self._alive[key]
        return sum(size for _, size, first in self._alive.values() if owner is None or first is owner)
