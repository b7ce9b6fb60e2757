"""Tensors, arrays and bytes reachable from an object, with their paths."""

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig

SIMPLE = (types.NoneType, bool, int, float, str, torch.dtype, torch.device)
ENDS = (types.ModuleType, type, torch.nn.Module, PreTrainedConfig)
"""Types that hold no tensors of a cache."""

Buffer = np.ndarray | bytes | bytearray | memoryview
"""Memory outside torch."""


def reachable(value: Any, name: str = "", depth: int = 4) -> Iterator[tuple[str, Tensor | Buffer]]:
    """Tensors and other memory reachable from an object through containers, attributes and closures.

    Args:
        value: the object.
        name: its name, with which paths begin.
        depth: how many attributes deep to look.
    """
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            for part in value.__tensor_flatten__()[0]:
                yield from reachable(getattr(value, part), f"{name}.{part}", depth)
        else:
            yield name, value
        return
    if isinstance(value, Buffer):
        yield name, value
        return
    if not depth or isinstance(value, ENDS):
        return
    inside = depth if isinstance(value, dict | list | tuple | set) else depth - 1
    for part, inner in _parts(value):
        if type(inner) not in SIMPLE:
            yield from reachable(inner, f"{name}.{part}" if name else str(part), inside)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """Named parts of a container, a function or any other object."""
    match value:
        case dict():
            return value.items()
        case list() | tuple() | set():
            return enumerate(value)
        case functools.partial():
            return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
        case types.MethodType():
            return [("self", value.__self__)]
        case types.FunctionType():
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            return [(name, cell.cell_contents) for name, cell in cells if _filled(cell)]
    slots = {slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())}
    own = {slot: getattr(value, slot) for slot in sorted(slots - {"__dict__", "__weakref__"}) if hasattr(value, slot)}
    return {**own, **getattr(value, "__dict__", {})}.items()


def _filled(cell: types.CellType) -> bool:
    """Whether a closure's variable has a value."""
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
