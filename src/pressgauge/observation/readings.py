"""What a cache of any kind stores, read from outside: entries per layer, and bytes.

Nothing is computed from keys or values, nothing is changed, and no device is synchronised.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import EncoderDecoderCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, StaticLayer

from pressgauge.cache import PressedCache, PressedLayer, WindowedLayer
from pressgauge.models import interface

UNREADABLE = -1
"""Entries of a layer whose layout is unknown."""

Values = list[Any] | Tensor
"""Integers of a tensor: a list, or a copy on the device until they are needed."""


def noted(tensor: Tensor) -> Values:
    """The values of a tensor, or a copy of it where reading them would synchronise a device."""
    values: Values = tensor.tolist() if tensor.is_cpu else tensor.clone()
    return values


def scalar(value: int | Tensor) -> int | Tensor:
    """An integer, or a copy of it on the device until it is needed."""
    return value.clone() if isinstance(value, Tensor) and not value.is_cpu else int(value)


def listed(values: Values) -> list[Any]:
    """Noted values as a list."""
    return list(values.tolist()) if isinstance(values, Tensor) else values


@dataclass(slots=True)
class Reading:
    """Contents of a cache at one moment.

    Attributes:
        held: per layer, slots in use; None for a layer without entries of its own, such as linear attention.
        sliding: indices of the layers that retain a sliding window by design.
        evicted: whether a press has evicted entries from such a layer.
        columns: columns fed, by the cache's own count if no eviction changes it, else None.
        pressed: indices of the layers without a window that a press evicts from.
        rows: entries of these layers per row, where rows are padded; else None.
    """

    held: list[int | None]
    sliding: tuple[int, ...] = ()
    evicted: bool = False
    columns: int | None = None
    pressed: tuple[int, ...] = ()
    rows: list[int] | None = None
    preallocated: tuple[tuple[int, int, int | Tensor], ...] = ()
    """Layers of preallocated slots, with the number of these and of those in use."""

    def complete(self) -> None:
        """Fill in what had to be read from a device."""
        for layer, size, count in self.preallocated:
            self.held[layer] = min(int(count), size)
        self.preallocated = ()

    @property
    def readable(self) -> bool:
        """Whether the layout of every layer is known."""
        return UNREADABLE not in self.held

    @property
    def most(self) -> int:
        """Entries of the layer that stores most."""
        return max((held for held in self.held if held is not None), default=0)

    @property
    def empty(self) -> bool:
        """Whether it is known that nothing is stored and nothing was fed."""
        return not self.columns and not any(self.held)


_FED = ("cumulative_length_int", "cumulative_length")
"""Counts of the columns fed to a sliding window, from which nothing that it drops is subtracted."""


def _length(keys: Tensor) -> int:
    """Entries in keys ``[B, K, N, D]``."""
    shape = keys.shape
    if len(shape) == 4:
        return shape[2]
    return UNREADABLE if keys.numel() else 0


def _plain(layer: Any) -> int | None:
    if layer.keys is None:
        # A layer that shares the keys of another stays empty.
        return UNREADABLE if layer.get_seq_length() else None
    return _length(layer.keys)


def _quantized(layer: Any) -> int | None:
    stored = getattr(layer, "_quantized_keys", None)
    if stored is None:
        return _plain(layer)
    shape = getattr(stored, "shape", None)
    if isinstance(stored, tuple):
        # HQQ keeps the shape with the scales, FP8 the tensor itself.
        shape = stored[1]["shape"] if isinstance(stored[1], Mapping) else stored[0].shape
    if shape is None or len(shape) != 4:
        return UNREADABLE
    return int(shape[2]) + _length(layer.keys)


class Reader:
    """Reads caches of one model.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        try:
            own = interface.layer_classes(config)
        except Exception:  # a model that decodes with a cache of its own, or with none
            own = []
        self.windows = [layer.sliding_window if getattr(layer, "is_sliding", False) else None for layer in own]
        """By layer, the sliding window of the model, the query's own token included; None if it attends to all."""
        self._without_keys = {type(layer) for layer in own if not interface.caches_keys(layer)}

    def read(self, cache: Any) -> Reading:
        """The contents of a cache."""
        if isinstance(cache, EncoderDecoderCache):
            cache = cache.self_attention_cache
        try:
            reading = self._read(cache)
            # Whatever its layout, a cache that was fed nothing lacks nothing.
            return Reading([]) if UNREADABLE in reading.held and not cache.get_seq_length() else reading
        except Exception:  # a cache of unknown layout may raise anything, and an observer must not
            return Reading([UNREADABLE])

    def _read(self, cache: Any) -> Reading:
        layers: Any = getattr(cache, "layers", None)
        if layers is None:
            keys: Any = getattr(cache, "key_cache", None)
            if keys is None and isinstance(cache, list | tuple):
                keys = [layer[0] for layer in cache]
            known = isinstance(keys, list | tuple)
            return Reading([_length(states) for states in keys] if known else [UNREADABLE])
        held: list[int | None] = []
        reading = Reading(held)
        for index, layer in enumerate(layers):
            # Most layers are of this kind, and this is done for each pass.
            keys = layer.keys if type(layer) is DynamicLayer else None
            if keys is not None and len(shape := keys.shape) == 4:
                held.append(shape[2])
            else:
                held.append(self._held(index, layer, reading))
        if isinstance(cache, PressedCache):
            reading.columns = cache.ledger.columns
            reading.rows = list(cache.ledger.held) if any(cache.ledger.padding) else None
        return reading

    def _held(self, index: int, layer: Any, reading: Reading) -> int | None:
        if isinstance(layer, WindowedLayer):
            reading.sliding += (index,)
            reading.evicted |= layer.compressed
            return layer.held_after_pass
        if isinstance(layer, PressedLayer):
            reading.pressed += (index,)
            # The last layer of a plain cache evicts once it is read, which an observer must not cause.
            return max(layer.ledger.held, default=0) if layer.pending else layer.used
        if not hasattr(layer, "keys"):
            return None if type(layer) in self._without_keys else UNREADABLE
        sliding = getattr(layer, "is_sliding", False)
        if sliding:
            reading.sliding += (index,)
        if isinstance(layer, StaticLayer):
            if not layer.is_initialized:
                return 0
            stored: Any = layer.keys
            reading.preallocated += ((index, stored.shape[2], scalar(layer.get_seq_length())),)
        if sliding:
            counts = [getattr(layer, name, None) for name in _FED]
            reading.columns = next((count for count in counts if isinstance(count, int)), reading.columns)
        if isinstance(layer, StaticLayer):
            return 0
        return _quantized(layer) if hasattr(layer, "_quantize") else _plain(layer)


def marked(cache: Any) -> tuple[int, int, int] | None:
    """Address, bytes and length of the keys of a cache's first layer; None if they are not at hand."""
    layers = getattr(cache, "layers", None)
    keys: Any = layers[0].keys if layers and type(layers[0]) is DynamicLayer else None
    if keys is None or keys.dim() != 4:
        return None
    return keys.data_ptr(), keys.untyped_storage().nbytes(), keys.shape[2]


_SCALARS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, type})


def nbytes(cache: Any) -> int:
    """Bytes of the storages of all tensors that can be reached from a cache."""
    storages: dict[int, int] = {}
    known: set[int] = set()
    waiting = [cache]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind in _SCALARS:
            continue
        if kind is Tensor:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif id(value) not in known:
            known.add(id(value))
            waiting += _parts(value)
    return sum(storages.values())


def _parts(value: Any) -> Iterable[Any]:
    """What an object refers to, without models and their configurations."""
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            return [getattr(value, name) for name in value.__tensor_flatten__()[0]]
        return (value.as_subclass(Tensor),)
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    return () if isinstance(value, nn.Module | PretrainedConfig) else getattr(value, "__dict__", {}).values()
