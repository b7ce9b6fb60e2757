"""Bytes that a compressor keeps alive, whoever holds them: the cache, the compressor, a closure, a module.

Every storage that an operator creates or reads during a run is followed by weak reference. What is alive at the end,
with all results of the passes released, is kept by the compressor. Memory outside torch is found by walking from the
compressor and the cache.
"""

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel

from pressgauge.conformance.reachable import reachable
from pressgauge.conformance.session import Pass, Session
from pressgauge.conformance.subjects import Subject, subject_of


class Allocations(TorchDispatchMode):
    """Storages that operators create or read while the mode is active.

    Args:
        known: tensors that are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._followed: dict[int, StorageWeakRef] = {}
        self.peak: int | None = None
        """Most bytes alive after any operator since it was last set to a number; None: not asked."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for _, part in reachable([leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                if storage._cdata not in self._known:
                    self._followed.setdefault(storage._cdata, StorageWeakRef(storage))
        if self.peak is not None:
            self.peak = max(self.peak, self.alive())
        return result

    def alive(self) -> int:
        """Bytes of the followed storages that are alive."""
        total = 0
        for key, weak in list(self._followed.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(weak.cdata)
            if storage is None:
                del self._followed[key]
            else:
                total += storage.nbytes()
        return total


class Weighed(Session):
    """A session that records no tensors, so that only the compressor keeps any."""

    allocations: Allocations
    peak = 0
    """Most bytes alive within an update of the cache or a call of a function, in passes after the first."""

    def __enter__(self) -> "Weighed":
        super().__enter__()
        return self

    def _watch_cache(self) -> None:
        cache = self.cache

        def watched(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            self._arrived[layer] = []
            self._devices[layer] = keys.device
            return self._at_peak(lambda: type(cache).update(cache, keys, values, layer, *args, **kwargs))

        cache.update = watched

    def _at_peak(self, call: Callable[[], Any]) -> Any:
        """Result of a call in which the peak is taken."""
        if self.passes:
            self.allocations.peak = self.peak
        try:
            return call()
        finally:
            if self.allocations.peak is not None:
                self.peak, self.allocations.peak = self.allocations.peak, None

    def _finish(self, logits: Tensor, length: int) -> None:
        self._at_peak(self._between_passes)
        self._arrived.clear()
        self._positions = None
        self.passes.append(Pass(self.seen, length, logits[:, :0], {}, [], None))


@dataclass(frozen=True)
class Weight:
    """What a compressor keeps alive after a text.

    Attributes:
        alive: bytes.
        peak: most bytes alive within an update after the first pass, those of the pass included.
        parts: the largest parts by name, with their bytes, in descending order.
        held: entries that each layer holds.
        reported: what the package reports itself, by name.
    """

    alive: int
    peak: int
    parts: tuple[tuple[str, int], ...]
    held: tuple[int, ...]
    reported: dict[str, float]

    @property
    def named(self) -> str:
        """The largest parts in words."""
        return ", ".join(f"{name} {size:,}" for name, size in self.parts[:3])


def weigh(subject: Subject, model: PreTrainedModel, ids: Tensor, lengths: list[int], **options: Any) -> Weight:
    """Feed a text in passes, and weigh what is kept alive.

    Args:
        subject: the subject.
        model: the model, which must not be shared with other threads.
        ids: ``[B, T]``.
        lengths: lengths of the passes, which sum to T.
        options: options of the compressor.

    Raises:
        Refused: if the subject declines.
    """
    compressor = subject(model=model, prompt_length=lengths[0], **options)
    with Weighed(subject, compressor, model) as session:
        session.allocations = Allocations([*model.parameters(), *model.buffers(), ids])
        with session.allocations:
            for length in lengths:
                session.feed(ids[:, session.seen : session.seen + length])
        session.passes.clear()
        gc.collect()
        alive = session.allocations.alive()
        sizes = _sizes({"cache": session.cache, "compressor": compressor})
        outside = sum(size for size, is_tensor in sizes.values() if not is_tensor)
        parts = sorted(((name, size) for name, (size, _) in sizes.items()), key=lambda part: -part[1])
        held = tuple(keys.shape[2] for keys, _ in session.held())
        reported = {name: float(of(session.cache, compressor)) for name, of in subject.declares.reports.items()}
    return Weight(alive + outside, session.peak, tuple(parts), held, reported)


def _sizes(roots: dict[str, Any]) -> dict[str, tuple[int, bool]]:
    """Bytes of all memory reachable from objects, by path, and whether it is torch's; each storage once."""
    sizes: dict[str, tuple[int, bool]] = {}
    counted: set[int] = set()
    for name, part in reachable(roots):
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
        else:
            while isinstance(part, np.ndarray) and isinstance(part.base, np.ndarray):
                part = part.base
            key, size = id(part), part.nbytes if isinstance(part, np.ndarray | memoryview) else len(part)
        if key not in counted:
            counted.add(key)
            sizes[name] = size, isinstance(part, Tensor)
    return sizes


class _Uncompressed:
    """transformers' own cache."""

    def __init__(self, keep_ratio: float) -> None:
        pass

    def cache(self, config: Any) -> DynamicCache:
        return DynamicCache(config=config)


UNCOMPRESSED = subject_of(
    "DynamicCache",
    _Uncompressed,
    {"prune_after": None, "skip_layers": None, "target": lambda seen, held: held},
)
"""What every compressor is compared with."""
