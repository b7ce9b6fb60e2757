"""A simulated accelerator, to test device handling without one.

Its tensors report torch's meta device, and compute on the CPU. As on a GPU, an operation on one of them and a CPU
tensor fails, except for single numbers, indices and copies, and conversion to NumPy fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
ANYWHERE = ("aten::copy_", "aten::index.Tensor", "aten::index_put_")
"""Operations that accept CPU tensors: copies and indexing."""


class Away(Tensor):
    """A tensor on the accelerator, wrapping a CPU tensor."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> "Away":
        """Wrap ``elem``."""
        make: Any = torch.Tensor._make_wrapper_subclass
        away: Away = make(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=DEVICE,
        )
        away.elem = elem
        return away

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Away({self.elem!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.untyped_storage):
            return func(args[0].elem)
        if func is Tensor.numpy:
            raise TypeError("a tensor of the accelerator cannot become an array: copy it to the CPU first")
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            # A list becomes an index on the tensor's device, since torch would place it elsewhere.
            index = tree_map(_listed, args[1], is_leaf=lambda part: isinstance(part, list))
            args = (args[0], index, *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch says less of it than it passes
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _listed(index: Any) -> Any:
    return torch.tensor(index) if isinstance(index, list) else index


def _inside(value: Any) -> Any:
    return value.elem if isinstance(value, Away) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, with its result on the device of a real accelerator's."""
    name = func.name()
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = [tensor for tensor in given if isinstance(tensor, Away)]
    here = [tensor for tensor in given if not isinstance(tensor, Away)]
    if any(tensor.is_meta for tensor in here):
        raise RuntimeError(f"{name}: a tensor was made on the accelerator behind its back")
    if away and any(tensor.dim() for tensor in here) and name not in ANYWHERE:
        raise RuntimeError(f"{name}: one tensor is on the accelerator and one on the CPU")
    device = kwargs.get("device")
    there = bool(away) if device is None else torch.device(device) == DEVICE
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
    known = {id(tensor.elem): tensor for tensor in away}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        # In-place operations return the same tensor.
        return known[id(value)] if id(value) in known else Away(value)

    return tree_map(placed, result)


class _Dispatched(TorchDispatchMode):
    """Mode for tensors created on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Given(TorchFunctionMode):
    """Mode for tensors created from numbers, which torch places where dispatch modes do not apply."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == DEVICE:
            return Away(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """Context manager that provides the device; models are moved by ``model.to(device)``."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Given(), _Dispatched():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@contextmanager
def noted(logits: Tensor, *, apple: bool) -> Iterator[tuple[Any, torch.device, list[tuple[int, torch.device]]]]:
    """Context manager with logits of Apple's device, or of the simulated one; the device on which they are to be
    copied, and the copies: how many tokens, and where."""
    copied: list[tuple[int, torch.device]] = []
    with accelerator() as device:
        if apple:
            yield Noted(logits, SimpleNamespace(type="mps"), copied), torch.device("cpu"), copied
        else:
            yield Noted(logits.to(device), device, copied), device, copied


class Noted:
    """Logits that state a device, and note how many tokens are copied where."""

    def __init__(self, logits: Tensor, device: Any, copied: list[tuple[int, torch.device]]) -> None:
        self.logits, self.dtype, self.shape, self.device = logits, logits.dtype, logits.shape, device
        self.copied = copied

    def __getitem__(self, index: Any) -> "Noted":
        return Noted(self.logits[index], self.device, self.copied)

    def to(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The logits on the device, in the dtype."""
        self.copied.append((self.logits.shape[0], device))
        return self.logits.to(device, dtype)
