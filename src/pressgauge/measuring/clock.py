"""A scripted clock and the accelerator that it belongs to.

While a script runs, all clocks of the process show the time of one fake accelerator: ``time.perf_counter``, its twins,
and ``torch.cuda.Event``. Passes of a known model take known times, and nothing else takes any. A pass is queued; its
time elapses for those who wait for the device. Tensors say that they are on this device, and compute on the CPU.
"""

import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import Cache, PreTrainedModel
from transformers.utils.import_utils import is_torch_cuda_available

from pressgauge.models import interface

DEVICE = torch.device("cuda:0")
SECOND = 10**9

PASS, TOKEN, ROW, ENTRY = 4_000_000, 500_000, 700_000, 62_500
"""Nanoseconds of a pass: of any, per token fed to a row, per further row, per entry that the mean layer holds."""


@dataclass(frozen=True)
class Script:
    """What a device does with time.

    Attributes:
        cold_prompt, cold_step: nanoseconds that the first pass of several tokens and the first pass of one token take
            beyond their time when warm: kernels are chosen, memory is allocated.
        pace: thousandths of the usual time that passes take in the first run, the second, ...; a run begins with an
            empty cache.
        queued: nanoseconds of work that others have queued before.
        waits: whether every pass waits for the device, as if the code under audit always synchronised.
        cpu: whether the device is the CPU, which is said to be the only one and always waits.
    """

    cold_prompt: int = 0
    cold_step: int = 0
    pace: Callable[[int], int] = lambda run: 1000
    queued: int = 0
    waits: bool = False
    cpu: bool = False


@dataclass(frozen=True)
class Pass:
    """One pass of the model.

    Attributes:
        run: number of the run, that is of the cache, from 0.
        cached: whether the pass left its entries in a cache.
        rows, fed: rows, and tokens fed in each.
        seen, held: before the pass, tokens that the cache has seen, and the mean number of entries held by a layer.
        warm, cold: nanoseconds of the pass, and beyond it as the first of its kind.
    """

    run: int
    cached: bool
    rows: int
    fed: int
    seen: int
    held: float
    warm: int
    cold: int

    @property
    def compressed(self) -> bool:
        """Whether something was missing when the pass attended."""
        return self.held < self.seen

    @property
    def taken(self) -> int:
        """Nanoseconds in all."""
        return self.warm + self.cold


@dataclass
class Device:
    """The accelerator of a script.

    Attributes:
        script: what it does with time.
        now: nanoseconds on every clock.
        idle_at: when all queued work is done.
        passes: the passes so far.
        hasty: readings of a clock at which passes were still queued.
    """

    script: Script = field(default_factory=Script)
    now: int = SECOND
    idle_at: int = SECOND
    passes: list[Pass] = field(default_factory=list)
    hasty: int = 0
    _runs: int = 0
    _caches: dict[int, tuple[Any, int, int]] = field(default_factory=dict)
    """Per id of a cache: the cache, its run and the tokens seen."""

    def __post_init__(self) -> None:
        self.idle_at = self.now + self.script.queued

    def read(self) -> int:
        """Nanoseconds on the clock."""
        self.hasty += self.now < self.idle_at and bool(self.passes)
        return self.now

    def wait(self, *args: object, **kwargs: object) -> None:
        """Let time elapse until all queued work is done."""
        self.now = max(self.now, self.idle_at)

    def sleep(self, seconds: float) -> None:
        """Let time elapse."""
        self.now += round(seconds * SECOND)

    def run_of(self, cache: Any, held: float) -> tuple[int, int]:
        """Run of a cache, and the tokens that it has seen."""
        _, run, seen = self._caches.get(id(cache), (None, -1, 0))
        if run < 0 or not held:
            self._runs += 1
            run, seen = self._runs - 1, self._seen_by_another(held) if held else 0
        return run, seen

    def _seen_by_another(self, held: float) -> int:
        """Tokens seen by the cache that an unknown one with ``held`` entries was made of: an equal one, or the last."""
        known = [(cache, seen) for cache, _, seen in reversed(self._caches.values())]
        equal = [seen for cache, seen in known if held_in(cache) == held]
        return max(round(held), (equal or [seen for _, seen in known] or [0])[0])

    def add(self, run: int, seen: int, new: Any, rows: int, fed: int, held: float) -> None:
        """Queue a pass of a run that left its entries in the cache ``new``, None for none."""
        first = not any((one.fed > 1) == (fed > 1) for one in self.passes)
        cold = (self.script.cold_prompt if fed > 1 else self.script.cold_step) if first else 0
        cost = PASS + TOKEN * fed + ROW * (rows - 1) + round(ENTRY * held)
        warm = cost * self.script.pace(run) // 1000
        self.passes.append(Pass(run, new is not None, rows, fed, seen, held, warm, cold))
        if new is not None:
            self._caches[id(new)] = new, run, seen + fed
        self.idle_at = max(self.now, self.idle_at) + warm + cold
        if self.script.waits or self.script.cpu:
            self.wait()


def held_in(cache: Any) -> float:
    """Mean number of entries held by a cache's layers; 0 without a cache."""
    layers = [] if cache is None else [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    # The storage of a static layer is longer than what it holds; a compressed layer has seen more than it holds.
    held = [min(layer.keys.shape[-2], int(layer.get_seq_length())) if layer.keys.numel() else 0 for layer in layers]
    return sum(held) / len(held) if held else 0


def _waits(thread: int) -> bool:
    """Whether a thread waits for another one, in a queue or a join."""
    frame = sys._current_frames()[thread]
    if frame.f_globals.get("__name__") != "threading":
        return False
    # Who has been notified is no waiter any more, and about to go on.
    return frame.f_code.co_name != "wait" or bool(getattr(frame.f_locals["self"], "_waiters", True))


def _take_turns(caller: int) -> None:
    """Wait until the thread that called the benchmark waits too, which has had time to read a clock."""
    for _ in range(2000):
        if threading.get_ident() == caller or _waits(caller):
            return
        # Real time, in which the other thread runs.
        threading.Event().wait(0.0005)


@contextmanager
def _recorded(device: Device, model: PreTrainedModel) -> Iterator[None]:
    """Passes of ``model`` and of its copies take their time on ``device``."""
    given: list[tuple[Any, float]] = []
    caller = threading.get_ident()

    def cache_in(values: Any) -> Any:
        return next((value for value in values if isinstance(value, Cache)), None)

    # Functions, not methods: a copy of the model has the same ones.
    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        _take_turns(caller)
        cache, now = cache_in((*args, *kwargs.values())), device.now
        given.append((cache, held_in(cache)))
        # Reading the cache may have waited for the device, which the code under audit did not.
        device.now = now

    def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache, held = given.pop()
        found = args[0] if args else kwargs.get("input_ids")
        shape = (kwargs["inputs_embeds"] if found is None else found).shape
        now = device.now
        run, seen = device.run_of(cache, held)
        device.now = now
        device.add(run, seen, cache_in(output.values()), shape[0], shape[1], held)

    decoder = interface.decoder_of(model)
    hooks = [
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


PROPERTIES = SimpleNamespace(name="scripted accelerator", major=8, minor=0, total_memory=2**34)
"""What the device says of itself."""

WAITS = {
    *(getattr(Tensor, name) for name in "item tolist numpy cpu equal allclose nonzero is_nonzero".split()),
    *(getattr(Tensor, f"__{name}__") for name in "bool int float index contains repr format array".split()),
    *(getattr(torch, name) for name in "equal allclose nonzero is_nonzero masked_select unique".split()),
}
"""Functions of torch that need what the device computes."""

_PROPERTIES: Any = vars(torch._C.TensorBase)
SAYS = {_PROPERTIES["device"].__get__: DEVICE, _PROPERTIES["is_cuda"].__get__: True}
"""What a tensor says of where it is."""

STAYS = (Tensor.cuda, Tensor.pin_memory)
"""Functions that move a tensor to the device, where it is."""


class _Elsewhere(TorchFunctionMode):
    """Tensors say that they are on the device, and what is made there is made on the CPU."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITS:
            self.device.wait()
        elif func in SAYS:
            return SAYS[func]
        elif func in STAYS:
            return args[0]
        elif func is Tensor.to:
            if _named((*args[1:], *kwargs.values()), "cpu"):
                self.device.wait()
            args = (args[0], *map(_here, args[1:]))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _here(kwargs["device"])}
        return func(*args, **kwargs)


def _named(values: tuple[Any, ...], kind: str) -> bool:
    """Whether one of the arguments of a call is a device of this kind."""
    return any(str(value).startswith(kind) for value in values if isinstance(value, str | torch.device))


def _here(value: Any) -> Any:
    """An argument of a call: where it is the device, the CPU."""
    return "cpu" if _named((value,), "cuda") or type(value) is int else value


class _Stream:
    """The only queue of the device."""

    def __init__(self, device: Device, *args: object, **kwargs: object) -> None:
        self.synchronize = device.wait
        self.wait_stream = self.wait_event = lambda other: None


def _event(device: Device) -> type:
    """The class of events of a device, with the interface of ``torch.cuda.Event``."""

    class Event:
        def __init__(self, *args: object, enable_timing: bool = False, **kwargs: object) -> None:
            self.timing = enable_timing
            self.at: int | None = None

        def record(self, stream: object = None) -> None:
            self.at = max(device.now, device.idle_at)

        def query(self) -> bool:
            return self.at is None or self.at <= device.now

        def synchronize(self) -> None:
            device.now = max(device.now, self.at or 0)

        def wait(self, stream: object = None) -> None:
            pass

        def elapsed_time(self, end: Any) -> float:
            if self.at is None or end.at is None or not (self.timing and end.timing):
                raise ValueError("both events must be recorded, with enable_timing=True")
            if not (self.query() and end.query()):
                raise RuntimeError("CUDA error: device not ready")
            return float((end.at - self.at) / 10**6)

    return Event


def _replaced(device: Device) -> dict[Any, Callable[..., Any]]:
    """The functions of ``time`` that read a clock or sleep, and their scripts."""
    names = ("perf_counter", "monotonic", "time", "process_time")
    found: dict[Any, Callable[..., Any]] = {}
    for name in names:
        found[getattr(time, name)] = lambda: device.read() / SECOND
        found[getattr(time, f"{name}_ns")] = device.read
    return {**found, time.sleep: device.sleep}


def _namespaces() -> list[dict[str, Any]]:
    """Names of loaded modules that may hold a clock: not of the standard library, whose locks need it."""
    kept = ("time", "timeit")
    modules = [
        module
        for name, module in list(sys.modules.items())
        if module is not None and (name in kept or name.partition(".")[0] not in sys.stdlib_module_names)
    ]
    return [vars(module) for module in modules]


def _functions(names: dict[str, Any]) -> Iterator[FunctionType]:
    """Functions of a module and methods of its classes."""
    for value in list(names.values()):
        of_class = list(vars(value).values()) if isinstance(value, type) else [value]
        yield from (one for one in of_class if isinstance(one, FunctionType) and one.__globals__ is names)


def _patch_clocks(patch: pytest.MonkeyPatch, device: Device, own: dict[str, Any]) -> None:
    """Replace the clocks wherever a module holds one, also as a default argument in ``timeit`` and ``own``."""
    replaced = _replaced(device)
    scripts = {id(function): script for function, script in replaced.items()}
    for names in {id(names): names for names in (*_namespaces(), own)}.values():
        for name, value in list(names.items()):
            if id(value) in scripts:
                patch.setitem(names, name, scripts[id(value)])
    for function in (*_functions(vars(timeit)), *_functions(own)):
        defaults = function.__defaults__ or ()
        if any(id(value) in scripts for value in defaults):
            patch.setattr(function, "__defaults__", tuple(scripts.get(id(one), one) for one in defaults))
        named = function.__kwdefaults__ or {}
        for name, value in list(named.items()):
            if id(value) in scripts:
                patch.setitem(named, name, scripts[id(value)])


def _patch_torch(patch: pytest.MonkeyPatch, device: Device) -> None:
    """Replace what torch says and does about accelerators."""

    def none(*args: object, **kwargs: object) -> None:
        pass

    def zero(*args: object, **kwargs: object) -> int:
        return 0

    def replace(owner: Any, **names: Any) -> None:
        for name, value in names.items():
            patch.setattr(owner, name, value, raising=False)

    def stream(*args: object) -> _Stream:
        return _Stream(device)

    counters = dict.fromkeys(
        ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), zero
    )
    shared = {
        **counters,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": device.wait,
        "current_stream": stream,
        "empty_cache": none,
        "reset_peak_memory_stats": none,
    }
    replace(
        torch.cuda,
        **shared,
        Event=_event(device),
        Stream=partial(_Stream, device),
        default_stream=stream,
        current_device=zero,
        set_device=none,
        get_device_name=lambda *args: PROPERTIES.name,
        get_device_properties=lambda *args: PROPERTIES,
        get_device_capability=lambda *args: (PROPERTIES.major, PROPERTIES.minor),
        device=lambda *args: nullcontext(),
        stream=lambda *args: nullcontext(),
        mem_get_info=lambda *args: (PROPERTIES.total_memory, PROPERTIES.total_memory),
        init=none,
        ipc_collect=none,
        reset_max_memory_allocated=none,
        is_current_stream_capturing=lambda: False,
    )
    replace(
        torch.accelerator,
        **shared,
        current_accelerator=lambda *args, **kwargs: torch.device("cuda"),
        current_device_index=zero,
    )
    # The first pass takes its time on this device, whoever compiles it.
    replace(torch, Event=_event(device), compile=lambda model=None, **options: model or (lambda one: one))


@contextmanager
def _forgotten() -> Iterator[None]:
    """transformers remembers whether there is a GPU; what it learns here is forgotten."""
    forget = is_torch_cuda_available.cache_clear
    forget()
    try:
        yield
    finally:
        forget()


@contextmanager
def scripted(device: Device, model: PreTrainedModel, own: dict[str, Any] | None = None) -> Iterator[Device]:
    """All clocks show the time of ``device``, and the passes of ``model`` run on it.

    Args:
        device: the device.
        model: the model, on the CPU.
        own: names of the module of the code under audit.
    """
    mode: Any = nullcontext() if device.script.cpu else _Elsewhere(device)
    run = threading.Thread.run

    def run_there(self: threading.Thread) -> None:
        # Modes of torch belong to a thread.
        with mode:
            run(self)

    with pytest.MonkeyPatch.context() as patch, _recorded(device, model), _forgotten():
        _patch_clocks(patch, device, {} if own is None else own)
        if not device.script.cpu:
            _patch_torch(patch, device)
        patch.setattr(threading.Thread, "run", run_there)
        with mode:
            yield device
