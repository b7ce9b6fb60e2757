"""A scripted device: its memory, the counters by which code reads it, and tensors that say they are on it."""

import resource
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SEGMENT = 1 << 21
"""Bytes of a segment, in which the allocator of the device reserves memory."""
TOTAL = 1 << 33
"""Bytes of the device."""
HOST = 700 << 20
"""Bytes of a process, beside tensors on the CPU."""
PYTHON = 5 << 20, 6 << 20
"""Bytes of Python's own objects, now and at most: all that ``tracemalloc`` sees."""

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

LOOKS = frozenset(
    getattr(Tensor, name) if callable(getattr(Tensor, name)) else getattr(Tensor, name).__get__
    for name in (
        "nbytes",
        "itemsize",
        "shape",
        "size",
        "numel",
        "nelement",
        "element_size",
        "untyped_storage",
        "storage",
    )
)
"""Functions by which somebody who counts bytes looks at a tensor."""


@dataclass(frozen=True)
class Read:
    """A reading of a counter: its name, its value, passes before it in all runs, and whether the peak was reset."""

    name: str
    value: int
    passes: int
    reset: bool


class Device:
    """Memory of a device, or of a process without one.

    Args:
        model: the model on the device.
        there: whether there is a device; without one, its counters read 0.
        live: bytes that caches hold now.
    """

    def __init__(self, model: Any, there: bool, live: Callable[[], int]) -> None:
        self.there = there
        self.weights: int = sum(tensor.nbytes for tensor in model.parameters())
        self.buffers: int = sum(tensor.nbytes for tensor in model.buffers())
        self.live = live
        # What was there before: a model is loaded in another dtype, and copied.
        self.peak = self.peak_before = 3 * self.weights
        self.reserved = self.max_reserved = self.ever = self.peak
        self.begin(lambda: None)

    def begin(self, look: Callable[[], None]) -> None:
        """Begin a call of a function; ``look`` runs before each reading."""
        self.look = look
        self.reads: list[Read] = []
        self.passes = 0
        self.was_reset = False
        self.peak_before = self.peak

    @property
    def base(self) -> int:
        """Bytes of the model."""
        return self.weights + self.buffers

    @property
    def allocated(self) -> int:
        """Bytes that are allocated now."""
        return self.base + self.live()

    def use(self, more: int = 0) -> int:
        """Use so many bytes more for a moment, and return how many were allocated then."""
        now = self.allocated + more
        self.peak = max(self.peak, now)
        self.reserved = max(self.reserved, now)
        self.max_reserved = max(self.max_reserved, self.reserved)
        self.ever = max(self.ever, now)
        return now

    def says(self, name: str, value: Callable[[], int]) -> Callable[..., int]:
        """A counter that notes its readings."""

        def counter(*args: Any, **kwargs: Any) -> int:
            self.look()
            read = Read(name, value(), self.passes, self.was_reset)
            self.reads.append(read)
            return read.value

        return counter

    def wait(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the device.

        Raises:
            RuntimeError: if there is none, as in torch.
        """
        if not self.there:
            raise RuntimeError("there is no device")

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Reset the peak. Raises as ``wait``."""
        self.wait()
        self.look()
        self.peak, self.max_reserved, self.was_reset = self.allocated, self.reserved, True

    def empty(self, *args: Any, **kwargs: Any) -> None:
        """Return unused segments."""
        self.look()
        self.reserved = self.allocated

    def resident(self) -> int:
        """Resident memory of the process, which the allocator never returns."""
        return HOST + (0 if self.there else self.ever // 1024 * 1024)


class OnDevice(TorchFunctionMode):
    """Tensors say that they are on the device, and what is moved or made there is on the CPU."""

    def __init__(self, device: torch.device, look: Callable[[], None]) -> None:
        super().__init__()
        self.device = device
        self.look = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.device == CUDA:
            if func == Tensor.device.__get__:
                return self.device
            if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
                return True
            if func == Tensor.cuda:
                return args[0]
        if func in LOOKS:
            self.look()
        args = tuple(_here(value) for value in args)
        return func(*args, **{name: _here(value) for name, value in (kwargs or {}).items()})


def _here(value: Any) -> Any:
    there = (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.partition(":")[0] == "cuda"
    )
    return CPU if there else value


def _segments(count: int) -> int:
    return -(-count // SEGMENT) * SEGMENT


def _of_device(device: Device) -> dict[str, Callable[..., Any]]:
    """What ``torch.cuda`` and ``torch.accelerator`` say of the device, by name. Without one, counters read 0."""

    def counter(name: str, count: Callable[[], int]) -> Callable[..., int]:
        return device.says(name, lambda: count() if device.there else 0)

    values = {
        "memory_allocated": lambda: device.allocated,
        "max_memory_allocated": lambda: device.peak,
        "memory_reserved": lambda: _segments(device.reserved),
        "max_memory_reserved": lambda: _segments(device.max_reserved),
    }
    counters = {name: counter(name, count) for name, count in values.items()}

    def statistics(*args: Any, **kwargs: Any) -> dict[str, int]:
        names = [f"{kind}_bytes.all.{which}" for kind in ("allocated", "reserved") for which in ("current", "peak")]
        return {name: counter() for name, counter in zip(names, counters.values(), strict=True)}

    def free(*args: Any, **kwargs: Any) -> tuple[int, int]:
        return TOTAL - counters["memory_reserved"](), TOTAL

    return {
        **counters,
        "memory_stats": statistics,
        "mem_get_info": free,
        "get_memory_info": free,
        "reset_peak_memory_stats": device.reset,
        "reset_max_memory_allocated": device.reset,
        "empty_cache": device.empty,
        "synchronize": device.wait,
        "is_available": lambda: device.there,
        "device_count": lambda: int(device.there),
        "current_device": lambda: 0,
        "current_accelerator": lambda *args, **kwargs: CUDA if device.there else None,
    }


def replacements(device: Device, function: Callable[..., Any]) -> list[tuple[Any, str, Any]]:
    """Attributes to replace while a function runs, each with its replacement: also names that its package imported."""
    places: list[tuple[Any, str, Any]] = [
        (place, name, counter)
        for place in (torch.cuda, torch.cuda.memory, torch.accelerator, getattr(torch.accelerator, "memory", None))
        for name, counter in _of_device(device).items()
        if hasattr(place, name)
    ]
    # Compiled code, as for static caches on a device, would be code for the device.
    places.append((torch, "compile", lambda model=None, **options: (lambda f: f) if model is None else model))
    most = device.says("ru_maxrss", device.resident)
    unit = 1 if sys.platform == "darwin" else 1024
    places.append((resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=most() // unit)))
    now, traced = (device.says("get_traced_memory", lambda size=size: size) for size in PYTHON)  # type: ignore[misc]
    places.append((tracemalloc, "get_traced_memory", lambda: (now(), traced())))
    if "psutil" in sys.modules:
        resident = device.says("rss", device.resident)

        def info(process: Any) -> SimpleNamespace:
            return SimpleNamespace(rss=resident(), vms=device.resident())

        places.append((sys.modules["psutil"].Process, "memory_info", info))
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    own = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package and package not in ("torch", "transformers")
    ]
    originals = {id(value): counter for place, name, counter in places if callable(value := getattr(place, name))}
    imported = [
        (module, name, originals[id(value)])
        for module in own
        for name, value in list(vars(module).items())
        if id(value) in originals
    ]
    return places + imported
