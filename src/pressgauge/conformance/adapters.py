"""Adapters for the conventions of compressors, one class each.

An adapter starts a compressor, applies it to a model, and passes it the entries of a pass. To add a convention, write
its class here and list it in ``ADAPTERS``.
"""

import functools
import types
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge.conformance.masked_attention import attend, attention

Layers = list[tuple[Tensor, Tensor]]
"""Keys ``[B, K, N, D]`` and values ``[B, K, N, D']`` of each layer."""


class Adapter(ABC):
    """A compressor applied to a model, independent of its convention.

    Args:
        compressor: result of a subject's factory.
        model: the model.
    """

    kind: ClassVar[str]
    """Name of the convention in ``declares``."""
    words: ClassVar[str]
    """Description of the convention."""
    schedule: ClassVar[str]
    """Schedule expected of a subject that declares none."""
    supplies_positions: ClassVar[bool] = False
    """Whether the caller supplies true positions."""
    exact: ClassVar[bool] = True
    """Whether attention is transformers' own.

    If so, an uncompressed run is bit-identical to one with a ``DynamicCache``.
    """
    between_passes: ClassVar[bool] = False
    """Whether the compressor is called between passes."""
    declines_batches: ClassVar[bool] = False
    """Whether it may decline batches of several rows, since it cannot see padding."""
    beyond: ClassVar[Mapping[str, str]] = {}
    """Features outside the convention, with reasons; laws about them are not applicable."""
    shared: ClassVar[str] = ""
    """Phrase for findings: what further sequences through one compressor share."""

    def __init__(self, compressor: Any, model: Any) -> None:
        self.compressor, self.model = compressor, model

    @staticmethod
    @abstractmethod
    def fits(compressor: object) -> bool:
        """Whether an object follows this convention and none listed before it."""

    def start(self) -> Any:
        """Create an empty cache."""
        return DynamicCache(config=self.model.config)

    def at_work(self) -> AbstractContextManager[Any]:
        """Context manager in which the model runs with the compressor."""
        return nullcontext()

    def compress(self, layers: Layers) -> Layers:
        """Compressed entries to store after a pass, for a convention called between passes.

        Raises:
            NotImplementedError: for other conventions.
        """
        raise NotImplementedError(f"{self.kind} is not called between passes")


class FunctionAdapter(Adapter):
    """A function ``compress(layers) -> layers``, called after every pass."""

    kind, words, schedule = "function", "a function over the whole cache", "step"
    supplies_positions, exact, between_passes = True, False, True
    beyond: ClassVar[Mapping[str, str]] = {
        "dtypes": "the harness's own attention drives a function, which rounds otherwise than transformers'",
        "generate": "model.generate does not know functions over a cache",
        "side by side": "a function keeps no cache of its own",
        "operations": "a function keeps no cache of its own, and is told of none of its operations",
        "padding": "a function over the cache receives no padding mask",
    }

    @staticmethod
    def fits(compressor: object) -> bool:
        kinds = types.FunctionType | types.MethodType | types.BuiltinFunctionType | functools.partial  # type: ignore[type-arg]
        return isinstance(compressor, kinds)

    def at_work(self) -> AbstractContextManager[Any]:
        return attention(self.model, _bottom_right)

    def compress(self, layers: Layers) -> Layers:
        return self.compressor(layers)  # type: ignore[no-any-return]  # third-party; validated by the session


class CacheAdapter(Adapter):
    """An object with ``.cache(config)``, which returns a transformers cache."""

    kind, words, schedule = "cache", "a transformers cache", "budget"
    declines_batches = True

    @staticmethod
    def fits(compressor: object) -> bool:
        return callable(getattr(compressor, "cache", None))

    def start(self) -> Any:
        return self.compressor.cache(self.model.config)


class ContextAdapter(Adapter):
    """An object used as ``with obj(model):``."""

    kind, words, schedule = "context", "a context manager around a model", "prefill"
    beyond: ClassVar[Mapping[str, str]] = {"side by side": "a context serves one model and one cache at a time"}
    shared = "in one context "

    @staticmethod
    def fits(compressor: object) -> bool:
        return callable(compressor)

    def at_work(self) -> AbstractContextManager[Any]:
        return self.compressor(self.model)  # type: ignore[no-any-return]  # third-party


ADAPTERS: dict[str, type[Adapter]] = {
    adapter.kind: adapter for adapter in (FunctionAdapter, CacheAdapter, ContextAdapter)
}
"""Adapters by kind; the first that fits is used."""


def adapter_of(compressor: object) -> type[Adapter]:
    """Adapter for a compressor.

    Raises:
        ValueError: if the object follows no known convention.
    """
    for adapter in ADAPTERS.values():
        if adapter.fits(compressor):
            return adapter
    raise ValueError(
        f"the factory returned a {type(compressor).__name__}: it has to return an object with .cache(config), one that "
        "is used as `with obj(model):`, or a function compress(layers) -> layers"
    )


def _bottom_right(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention to all retained entries and, causally, to the new ones.

    Works with different numbers of entries per layer. Zero entries, which pad heads with fewer entries than others, are
    masked.
    """
    new, total = query.shape[2], key.shape[2]
    sees = torch.ones((new, total), dtype=torch.bool, device=query.device).tril(total - new)
    there = (key != 0).any(dim=-1) | (value != 0).any(dim=-1)
    return attend(query, key, value, sees & there[:, :, None], scaling), None
