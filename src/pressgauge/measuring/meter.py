"""The meter: a scripted device with known memory, and a record of what a function did on it.

The device holds the model's weights and whatever caches hold. A pass needs ``ACTIVATIONS`` more for each token fed.
Caches are counted by the storages of their tensors, by weak reference: a storage counts as long as anything keeps it
alive. Tensors are on the CPU and say that they are on the device.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pressgauge.conformance.versions import CACHE_NAMES, returned_cache
from pressgauge.measuring.counters import CPU, CUDA, Device, OnDevice, replacements
from pressgauge.measuring.storages import State, Storages

ACTIVATIONS = 1_111
"""Bytes that a pass needs for each token of each row, beside weights and caches."""


@dataclass(eq=False)
class Run:
    """Passes that shared one cache.

    Attributes:
        cache: returns the cache as long as it lives; None for passes without one.
        cached: whether there was a cache.
        lengths: tokens fed to each row, pass by pass.
        states: different states of the cache, each with the number of passes before it.
        peak: most bytes allocated in a pass, or after one, for weights, this run's cache and the pass alone.
        shared_peak: the same with everything else that was alive.
        layers: layers of the cache as long as it lives, so that it can be looked at once more when it is freed.
    """

    cache: Callable[[], Any]
    cached: bool
    lengths: list[int] = field(default_factory=list)
    states: list[tuple[int, State]] = field(default_factory=list)
    peak: int = 0
    shared_peak: int = 0
    layers: list[Any] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Tokens fed to each row."""
        return sum(self.lengths)

    @property
    def state(self) -> State:
        """What the cache held at the end."""
        return self.states[-1][1] if self.states else ()

    def note(self, state: State) -> None:
        """Note what the cache holds now."""
        if not self.states or self.state != state:
            self.states.append((len(self.lengths), state))


class Meter:
    """The scripted device of one model, and the record. Use ``measuring`` around each call of a function.

    Args:
        model: the model.
        device: the device that its tensors say they are on, ``cuda`` or ``cpu``. With ``cpu`` there is no other.
    """

    def __init__(self, model: Any, device: str = "cuda") -> None:
        self.model = model
        self.storages = Storages()
        self.device = Device(model, device == "cuda", self.storages.live)
        self.runs: list[Run] = []
        self._busy = False

    def look(self) -> None:
        """Note what caches hold now, but not within a pass."""
        if self._busy:
            return
        self._busy = True
        for run in self.runs:
            cache = run.cache()
            if cache is not None:
                self._note(run, cache)
        if self.runs:
            self._use(self.runs[-1], 0)
        self._busy = False

    def _note(self, run: Run, cache: Any) -> None:
        run.note(self.storages.held(cache, run))
        layers = list(getattr(cache, "layers", ()))
        cyclic = any(value is cache for layer in layers for value in vars(layer).values())
        run.layers = [] if cyclic else layers

    def _freed(self, run: Run) -> None:
        """Look at a cache once more, which is freed."""
        if run.layers and not self._busy:
            self._busy = True
            state = self.storages.held(SimpleNamespace(layers=run.layers), run)
            # What the cache held beside its layers.
            run.note(state + run.state[len(state) :])
            self._busy = False
        run.layers = []

    def _use(self, run: Run, more: int) -> None:
        run.peak = max(run.peak, self.device.base + self.storages.live(run) + more)
        run.shared_peak = max(run.shared_peak, self.device.use(more))

    def _before(self, module: Any, args: Any, kwargs: Any) -> None:
        self.look()
        self._busy = True

    def _after(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        fed = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        rows, tokens = (args[0] if fed is None else fed).shape[:2]
        given = [*(kwargs.get(name) for name in CACHE_NAMES), returned_cache(output)]
        cache = next((value for value in given if value is not None), None)
        run = self._run_of(cache)
        run.lengths.append(tokens)
        self.device.passes += 1
        if cache is not None:
            self._note(run, cache)
        self._use(run, rows * tokens * ACTIVATIONS)
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
            weakref.finalize(cache, self._freed, run).atexit = False
        self.runs.append(run)
        return run

    @contextmanager
    def measuring(self, function: Callable[..., Any]) -> Iterator[None]:
        """While a function runs: counters are the device's, and passes are recorded as new runs."""
        self.runs = []
        self.device.begin(self.look)
        decoder = self.model.get_decoder()
        with ExitStack() as stack:
            for place, name, counter in replacements(self.device, function):
                stack.enter_context(mock.patch.object(place, name, counter))
            for handle in (
                decoder.register_forward_pre_hook(self._before, with_kwargs=True),
                decoder.register_forward_hook(self._after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
            with OnDevice(CUDA if self.device.there else CPU, self.look):
                try:
                    yield
                    self.look()
                finally:
                    self._busy = False
                    for run in self.runs:
                        run.layers = []
