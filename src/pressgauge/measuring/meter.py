"""The meter: a scripted device whose memory counters have known values, and a record of what a function did with it.

The device holds the model's weights and whatever caches hold. A pass needs ``ACTIVATIONS`` more for each token fed.
Caches are counted by the storages of their tensors, by weak reference: a storage counts as long as anything keeps it
alive. Tensors are on the CPU and say that they are on the device.
"""

import gc
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pressgauge.conformance.versions import CACHE_NAMES
from pressgauge.measuring.storages import State, Storages

ACTIVATIONS = 1_111
"""Bytes that a pass needs for each token of each row, beside weights and caches."""
SEGMENT = 1 << 21
"""Bytes of a segment, in which the allocator of the device reserves memory."""
TOTAL = 1 << 33
"""Bytes of the device."""
HOST = 700 << 20
"""Bytes of a process, beside tensors on the CPU."""

LOOKS = frozenset(
    getattr(Tensor, name) if callable(getattr(Tensor, name)) else getattr(Tensor, name).__get__
    for name in ("nbytes", "itemsize", "shape", "size", "numel", "nelement", "element_size", "untyped_storage", "storage")
)
"""Functions by which somebody who counts bytes looks at a tensor."""

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@dataclass
class Run:
    """Passes that shared one cache; ``cache`` returns None for passes without a cache."""

    cache: Callable[[], Any]
    cached: bool
    lengths: list[int] = field(default_factory=list)
    """Tokens fed to each row, pass by pass."""
    rows: int = 0
    states: list[tuple[int, State]] = field(default_factory=list)
    """Different states of the cache, each with the number of passes before it."""
    peak: int = 0
    """Most bytes allocated in a pass, or after one, by weights, this run's cache and the pass alone."""
    layers: list[Any] = field(default_factory=list)
    """Layers of the cache as long as it lives, so that it can be looked at once more when it is freed."""
    shared_peak: int = 0
    """The same with everything else that was alive."""

    @property
    def seen(self) -> int:
        """Tokens fed to each row."""
        return sum(self.lengths)

    @property
    def state(self) -> State:
        """What the cache held at the end."""
        return self.states[-1][1] if self.states else ()


@dataclass(frozen=True)
class Read:
    """A reading of a counter: its name, its value, passes before it in all runs, and whether the peak was reset."""

    name: str
    value: int
    passes: int
    reset: bool


class _OnDevice(TorchFunctionMode):
    """Tensors say that they are on the device, and what is moved or made there is on the CPU."""

    def __init__(self, device: torch.device, look: Callable[[], None]) -> None:
        super().__init__()
        self.device = device
        self.look = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.device == CUDA:
            if func == Tensor.device.__get__:  # type: ignore[attr-defined]
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


class Meter:
    """The scripted device of one model. Use ``measuring`` around each call of a function.

    Args:
        model: the model.
        device: the device that its tensors say they are on, ``cuda`` or ``cpu``. Without ``cuda`` there is no device,
            and its counters read 0.
    """

    def __init__(self, model: Any, device: str = "cuda") -> None:
        self.model = model
        self.there = device == "cuda"
        self.weights = sum(tensor.nbytes for tensor in model.parameters())
        self.buffers = sum(tensor.nbytes for tensor in model.buffers())
        # What was there before: a model is loaded in another dtype, and copied.
        self.peak = self.peak_before = 3 * self.weights
        self.reserved = self.max_reserved = self.ever = self.peak
        self.passes = 0
        self.runs: list[Run] = []
        self.reads: list[Read] = []
        self._reset = False
        self.storages = Storages()
        self._busy = False

    # The record

    def allocated(self) -> int:
        """Bytes that are allocated now."""
        return self.weights + self.buffers + self.storages.live()

    def look(self) -> None:
        """Note what caches hold now, but not within a pass."""
        if self._busy:
            return
        self._busy = True
        for run in self.runs:
            cache = run.cache()
            if cache is None:
                continue
            self._note(run, cache)
        if self.runs:
            self._peaks(self.runs[-1], 0)
        self._busy = False

    def _note(self, run: Run, cache: Any) -> None:
        state = self.storages.held(cache, run)
        if not run.states or run.state != state:
            run.states.append((len(run.lengths), state))
        layers = list(getattr(cache, "layers", ()))
        cyclic = any(value is cache for layer in layers for value in vars(layer).values())
        run.layers = [] if cyclic else layers

    def _freed(self, run: Run) -> None:
        """A cache is freed: look at it once more."""
        if run.layers and not self._busy:
            self._busy = True
            state = self.storages.held(SimpleNamespace(layers=run.layers), run)
            # What the cache held beside its layers did not change since.
            state += run.state[len(state) :]
            if run.state != state:
                run.states.append((len(run.lengths), state))
            self._busy = False
        run.layers = []

    def _peaks(self, run: Run, more: int) -> None:
        base = self.weights + self.buffers + more
        now = base + self.storages.live()
        run.peak = max(run.peak, base + self.storages.live(run))
        run.shared_peak = max(run.shared_peak, now)
        self.peak = max(self.peak, now)
        self.reserved = max(self.reserved, now)
        self.max_reserved = max(self.max_reserved, self.reserved)
        self.ever = max(self.ever, now)

    def _before(self, module: Any, args: Any, kwargs: Any) -> None:
        self.look()
        self._busy = True

    def _after(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        fed = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        fed = args[0] if fed is None else fed
        given = [kwargs.get(name) for name in CACHE_NAMES] + [getattr(output, name, None) for name in CACHE_NAMES]
        cache = next((value for value in given if value is not None), None)
        run = self._run_of(cache)
        run.rows, tokens = fed.shape[:2]
        run.lengths.append(tokens)
        self.passes += 1
        if cache is not None:
            self._note(run, cache)
        self._peaks(run, fed.shape[0] * tokens * ACTIVATIONS)
        self._busy = False

    def _run_of(self, cache: Any) -> Run:
        for run in self.runs[::-1]:
            if run.cache() is cache and run.cached is (cache is not None):
                return run
        if self.storages.live():
            # Caches in reference cycles are freed at an uncertain time; none of them belongs to this run.
            gc.collect()
        run = Run((lambda: None) if cache is None else weakref.ref(cache), cache is not None)
        if cache is not None:
            weakref.finalize(cache, self._freed, run)
        self.runs.append(run)
        return run

    # The counters

    def _says(self, name: str, value: Callable[[], int]) -> Callable[..., int]:
        def counter(*args: Any, **kwargs: Any) -> int:
            self.look()
            read = Read(name, value(), self.passes, self._reset)
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
        self.peak, self.max_reserved, self._reset = self.allocated(), self.reserved, True

    def empty(self, *args: Any, **kwargs: Any) -> None:
        """Return unused segments."""
        self.reserved = self.allocated()

    def _counters(self) -> dict[str, Callable[..., Any]]:
        """Counters of the device by name, as ``torch.cuda`` and ``torch.accelerator`` have them."""

        def segments(count: int) -> int:
            return -(-count // SEGMENT) * SEGMENT

        def of(count: Callable[[], int]) -> Callable[[], int]:
            return lambda: count() if self.there else 0

        values = {
            "memory_allocated": of(self.allocated),
            "max_memory_allocated": of(lambda: self.peak),
            "memory_reserved": of(lambda: segments(self.reserved)),
            "max_memory_reserved": of(lambda: segments(self.max_reserved)),
        }
        said = {name: self._says(name, value) for name, value in values.items()}

        def stats(*args: Any, **kwargs: Any) -> dict[str, int]:
            names = [f"{kind}_bytes.all.{which}" for kind in ("allocated", "reserved") for which in ("current", "peak")]
            return {name: counter() for name, counter in zip(names, said.values(), strict=True)}

        def free(*args: Any, **kwargs: Any) -> tuple[int, int]:
            return TOTAL - said["memory_reserved"](), TOTAL

        resets = dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated"), self.reset)
        others = {"empty_cache": self.empty, "memory_stats": stats, "mem_get_info": free, "get_memory_info": free}
        device: dict[str, Callable[..., Any]] = {
            "synchronize": self.wait,
            "is_available": lambda: self.there,
            "device_count": lambda: int(self.there),
            "current_device": lambda: 0,
        }
        return {**said, **resets, **others, **device}

    def _resident(self) -> int:
        """Resident memory of the process, which the allocator never returns."""
        return HOST + (0 if self.there else self.ever // 1024 * 1024)

    def _names(self, function: Callable[..., Any]) -> Iterator[tuple[Any, str, Any]]:
        """Attributes to replace, each with its replacement."""
        counters = self._counters()
        places: list[tuple[Any, str, Any]] = [
            (place, name, counter)
            for place in (torch.cuda, torch.cuda.memory, torch.accelerator, getattr(torch.accelerator, "memory", None))
            for name, counter in counters.items()
            if hasattr(place, name)
        ]
        unit = 1 if sys.platform == "darwin" else 1024
        most = self._says("ru_maxrss", self._resident)
        places.append((resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=most() // unit)))
        if "psutil" in sys.modules:
            resident = self._says("rss", self._resident)
            process = sys.modules["psutil"].Process
            info = lambda self_: SimpleNamespace(rss=resident(), vms=HOST)  # noqa: E731
            places += [(process, "memory_info", info), (process, "memory_full_info", info)]
        yield from places
        # Names that the function's own package imported.
        package = str(getattr(function, "__module__", "")).partition(".")[0]
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == package and package not in ("torch", "transformers"):
                for own, value in list(vars(module).items()):
                    for place, attribute, counter in places:
                        if value is getattr(place, attribute) and callable(value):
                            yield module, own, counter

    @contextmanager
    def measuring(self, function: Callable[..., Any]) -> Iterator[None]:
        """While a function runs: counters are the device's, and passes are recorded as new runs."""
        self.runs, self.reads, self.passes, self._reset = [], [], 0, False
        self.peak_before = self.peak
        decoder = self.model.get_decoder()
        with ExitStack() as stack:
            for place, name, counter in list(self._names(function)):
                stack.enter_context(mock.patch.object(place, name, counter))
            for handle in (
                decoder.register_forward_pre_hook(self._before, with_kwargs=True),
                decoder.register_forward_hook(self._after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
            with _OnDevice(CUDA if self.there else CPU, self.look):
                try:
                    yield
                    self.look()
                finally:
                    self._busy = False
                    for run in self.runs:
                        run.layers = []
