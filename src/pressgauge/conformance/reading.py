"""Entries read back from a cache of any kind."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pressgauge.conformance.outcomes import Unreadable
from pressgauge.models import interface

Entries = tuple[Tensor, Tensor]
"""Keys ``[B, K, N, D]`` and values ``[B, K, N, D']`` of one layer."""

Reader = Callable[[Any, int], Entries]
"""Function of a cache and the index of a layer."""


def layers_of(cache: Any) -> dict[int, Any]:
    """Layers of a cache by index; its ``layers`` may be a list or a dict."""
    layers = getattr(cache, "layers", None)
    if isinstance(layers, Mapping):
        return dict(sorted(layers.items()))
    return dict(enumerate(layers or ()))


def only_states(layer: Any) -> bool:
    """Whether a layer of transformers keeps the states of linear attention and no keys."""
    return hasattr(layer, "recurrent_states") and not interface.caches_keys(layer)


def reader_of(read: Any) -> Reader:
    """Reader for a declared function ``read(layer)`` or ``read(cache, index)``.

    Raises:
        ValueError: if it takes neither one nor two arguments.
    """
    if not callable(read):
        raise ValueError(f"declares read must be a function read(layer) or read(cache, index), got {read!r}")
    kinds = inspect.Parameter
    needed = [
        one
        for one in inspect.signature(read).parameters.values()
        if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD) and one.default is kinds.empty
    ]
    if len(needed) == 2:
        return read  # type: ignore[no-any-return]
    if len(needed) != 1:
        raise ValueError(f"declares read must take a layer, or a cache and an index; it takes {len(needed)} arguments")
    return lambda cache, index: read(layers_of(cache)[index])


def read_attributes(cache: Any, index: int) -> Entries:
    """Entries of a layer of transformers: its attributes ``keys`` and ``values``."""
    layer = layers_of(cache)[index]
    keys, values = layer.keys, layer.values
    if hasattr(layer, "_quantized_keys"):
        # In quantised layers these attributes hold only the newest entries; the others precede them.
        old = layer._dequantize(layer._quantized_keys), layer._dequantize(layer._quantized_values)
        # They are reordered by the next update only.
        old = getattr(layer, "_apply_pending_reorder", lambda *entries: entries)(*old)
        keys, values = (
            torch.cat([rest, *([newest] if newest.dim() == 4 else [])], dim=2)
            for rest, newest in zip(old, (keys, values), strict=True)
        )
    return keys, values


def entries_of(cache: Any, index: int, read: Reader | None) -> Entries:
    """Current entries of a layer, as declared or from its attributes.

    A layer without entries that says so, as those of transformers after a reset, holds ``[0, 0, 0, 0]``.

    Raises:
        Unreadable: if there are none of the shapes ``[B, K, N, D]`` and ``[B, K, N, D']``.
    """
    way = "declares read" if read else "the attributes keys and values"
    try:
        keys, values = (read or read_attributes)(cache, index)
    except Exception as error:
        if getattr(layers_of(cache).get(index), "is_initialized", True) is False:
            return torch.zeros(0, 0, 0, 0), torch.zeros(0, 0, 0, 0)
        raise Unreadable(_unreadable(cache, index, f"{way} raises {type(error).__name__}: {error}")) from error
    for name, tensor in (("keys", keys), ("values", values)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            found = f"{list(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
            raise Unreadable(_unreadable(cache, index, f"by {way} its {name} are {found}, and not [B, K, N, D]"))
    return keys, values


def _unreadable(cache: Any, index: int, reason: str) -> str:
    layer = layers_of(cache).get(index)
    what = f"a {type(layer).__name__} of a {type(cache).__name__}" if layer is not None else f"a {type(cache).__name__}"
    line = " ".join(reason.split())
    return (
        f"the entries of layer {index} ({what}) cannot be read: {line}; declare read, a function read(layer) or "
        "read(cache, index) that returns the keys and values of a layer, [B, K, N, D] each"
    )
