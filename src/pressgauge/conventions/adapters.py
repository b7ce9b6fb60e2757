"""Adapters for the conventions of compressors, one class each, and their recognition.

An adapter starts a compressor, applies it to a model, and passes it the entries of a pass. To add a convention, write
its class here and list it in ``ADAPTERS``.
"""

import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache, LlamaConfig, LlamaForCausalLM

from pressgauge.conventions.adapter import Adapter, Layers
from pressgauge.conventions.attention import attend, attention, registrations_undone

ALONE = {"side by side": "it serves one model and one cache at a time"}


class InstanceAdapter(Adapter):
    """A ``transformers.Cache``; the factory is called anew for each sequence."""

    kind, words, schedule = "instance", "a transformers cache made by the factory", "budget"
    declines_batches, made_anew = True, True

    @staticmethod
    def fits(compressor: object) -> bool:
        return isinstance(compressor, Cache)

    def start(self) -> Any:
        return self.compressor()


class MakerAdapter(Adapter):
    """A function of the model that makes a transformers cache, or an object with ``.cache(model)``."""

    kind, words, schedule = "maker", "a function of the model that makes a transformers cache", "budget"
    declines_batches = True

    @staticmethod
    def fits(compressor: object) -> bool:
        own = getattr(compressor, "cache", None)
        return _parameters(own)[:1] == ["model"] if callable(own) else _makes(compressor) == "cache"

    def start(self) -> Any:
        make = getattr(self.compressor, "cache", self.compressor)
        return make(self.model)


class CacheAdapter(Adapter):
    """An object with ``.cache(config)``, which returns a transformers cache."""

    kind, words, schedule = "cache", "a transformers cache", "budget"
    declines_batches = True

    @staticmethod
    def fits(compressor: object) -> bool:
        return callable(getattr(compressor, "cache", None))

    def start(self) -> Any:
        return self.compressor.cache(self.model.config)


class GenerateAdapter(Adapter):
    """A function ``generate(model, input_ids, max_new_tokens=...) -> tokens``, which shows no cache."""

    kind, words, schedule = "generate", "a function that generates tokens", "budget"
    declines_batches, sees_model = True, True
    opaque = "a function that generates shows its tokens only"

    @staticmethod
    def fits(compressor: object) -> bool:
        return "max_new_tokens" in _parameters(compressor)


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
        return (
            isinstance(compressor, kinds) and not _is_context(compressor) and _parameters(compressor)[:1] != ["model"]
        )

    def at_work(self) -> AbstractContextManager[Any]:
        return attention(self.model, bottom_right)

    def compress(self, layers: Layers) -> Layers:
        return self.compressor(layers)  # type: ignore[no-any-return]  # third-party; validated by the session


class PatchAdapter(Adapter):
    """A patch of a model in place: ``obj(model)`` or ``obj.patch(model)``, and an undo.

    The undo is what the patch returns, a function or an object with ``undo``, ``remove`` or ``restore``, or such a
    method of ``obj`` itself.
    """

    kind, words, schedule = "patch", "a patch of a model", "prefill"
    sees_model = True
    beyond: ClassVar[Mapping[str, str]] = ALONE
    shared = "in one patch "

    @staticmethod
    def fits(compressor: object) -> bool:
        return callable(getattr(compressor, "patch", None)) or _makes(compressor) == "undo"

    @contextmanager
    def at_work(self) -> Iterator[None]:
        undo = _undo(getattr(self.compressor, "patch", self.compressor)(self.model), self.compressor, self.model)
        if undo is None:
            raise ValueError(f"the patch returns nothing that undoes it, and has none of {', '.join(UNDO)}")
        try:
            yield
        finally:
            undo()


class ContextAdapter(Adapter):
    """An object, or a function made by ``contextlib.contextmanager``, used as ``with obj(model):``."""

    kind, words, schedule = "context", "a context manager around a model", "prefill"
    sees_model = True
    beyond: ClassVar[Mapping[str, str]] = ALONE
    shared = "in one context "

    @staticmethod
    def fits(compressor: object) -> bool:
        return callable(compressor)

    def at_work(self) -> AbstractContextManager[Any]:
        return self.compressor(self.model)  # type: ignore[no-any-return]  # third-party


ADAPTERS: dict[str, type[Adapter]] = {
    adapter.kind: adapter
    for adapter in (
        InstanceAdapter,
        MakerAdapter,
        CacheAdapter,
        GenerateAdapter,
        FunctionAdapter,
        PatchAdapter,
        ContextAdapter,
    )
}
"""Adapters by kind; the first that fits is used."""

UNDO = ("undo", "remove", "restore")
"""Methods that undo a patch."""


def adapter_of(compressor: object) -> type[Adapter]:
    """Adapter for a compressor.

    Raises:
        ValueError: if the object follows no known convention.
    """
    for adapter in ADAPTERS.values():
        if adapter.fits(compressor):
            return adapter
    raise ValueError(
        f"the factory returned a {type(compressor).__name__}: it has to return a transformers cache, an object with "
        ".cache(config) or .cache(model), one that is used as `with obj(model):`, a patch obj(model) that returns its "
        "undo, or a function compress(layers) -> layers or generate(model, input_ids, max_new_tokens)"
    )


def _parameters(function: Any) -> list[str]:
    """Names of the parameters of a callable, without ``self``; none if they are unknown."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _is_context(compressor: object) -> bool:
    """Whether it is made by ``contextlib.contextmanager``: a generator in a wrapper."""
    while isinstance(compressor, functools.partial):
        compressor = compressor.func
    wrapped: Any = compressor if hasattr(compressor, "__wrapped__") else type(compressor).__call__
    return hasattr(wrapped, "__wrapped__") and inspect.isgeneratorfunction(inspect.unwrap(wrapped))


def _makes(compressor: Any) -> str:
    """What a callable returns for a model: ``cache``, ``undo``, or nothing of the two; tried on a model of its own."""
    if not callable(compressor) or _is_context(compressor) or _parameters(compressor)[:1] != ["model"]:
        return ""
    model = throwaway()
    with registrations_undone():
        try:
            made = compressor(model)
        except Exception:
            # A law reports it.
            return ""
        if isinstance(made, Cache):
            return "cache"
        if hasattr(made, "__enter__") or not (undo := _undo(made, compressor, model)):
            return ""
        undo()
    return "undo"


def throwaway() -> Any:
    """A tiny random model, on which a function of a model is tried."""
    settings = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        return LlamaForCausalLM(settings).double().eval()


def _undo(made: Any, compressor: Any, model: Any) -> Any:
    """Function that undoes a patch which returned ``made``; None if there is none."""
    if isinstance(made, types.FunctionType | types.MethodType | functools.partial):
        return made
    if isinstance(made, list | tuple) and made and all(hasattr(handle, "remove") for handle in made):
        return lambda: [handle.remove() for handle in made]
    for owner in (made, compressor):
        for name in UNDO:
            if callable(method := getattr(owner, name, None)):
                return functools.partial(method, model) if _parameters(method)[:1] == ["model"] else method
    return made if callable(made) else None


def bottom_right(
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
