"""Storages that caches keep alive, layer by layer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig


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


SIMPLE = (NoneType, bool, int, float, str, torch.dtype, torch.device)
ENDS = (ModuleType, type, torch.nn.Module, PreTrainedConfig)
"""Types that hold no tensors of a cache."""


def _tensors(value: Any, name: str = "", depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """Tensors reachable from an object, each with its path of names."""
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            for part in value.__tensor_flatten__()[0]:
                yield from _tensors(getattr(value, part), f"{name}.{part}", depth)
        else:
            yield name, value
        return
    parts: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif not depth or isinstance(value, ENDS) or callable(value):
        return
    else:
        parts = vars(value).items() if hasattr(value, "__dict__") else ()
    for part, inner in parts:
        if type(inner) not in SIMPLE:
            yield from _tensors(inner, f"{name}.{part}", depth - 1)


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
            for name, tensor in _tensors(layer):
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
