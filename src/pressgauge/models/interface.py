"""transformers' interfaces, and all differences between its versions.

Versions are told apart by signatures, never by version numbers.
"""

import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PLAIN = "measure it without a press and without a cache (press=None, method='plain')"
VERSION = f"transformers {transformers.__version__}"

CACHE_NAMES = ("cache", "past_key_values")
"""Names of the cache argument: the first since transformers 5.24, the second before."""

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""Attention function of transformers.

``(module, query, key, value, mask, **kwargs)`` returns output and weights.
"""


def decoder_of(model: PreTrainedModel) -> Any:
    """The module of a causal model that runs the layers and takes the cache."""
    found = model.get_decoder()
    # In some models, `decoder` is the output layer.
    return found if isinstance(found, PreTrainedModel) else model.base_model


@lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def parameters(decoder: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a decoder's forward call, in order."""
    return _parameters(type(decoder).forward)


def named(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a module's forward call, all by name."""
    return {**dict(zip(parameters(module), args, strict=False)), **kwargs}


def cache_name(kind: type[nn.Module]) -> str | None:
    """Name of a model class's cache argument; None if it has none with a known name."""
    return next((name for name in CACHE_NAMES if name in _parameters(kind.forward)), None)


def cache_argument(model: PreTrainedModel) -> str:
    """Name of the cache argument of a model and its ``generate`` in the installed transformers.

    ``cache`` since 5.24, ``past_key_values`` before.

    Raises:
        ValueError: if the model takes no ``DynamicCache`` under these names.
    """
    name = cache_name(type(decoder_of(model)))
    if name is None:
        raise ValueError(
            f"{type(model).__name__} takes no key-value cache under a name that pressgauge knows "
            f"({' or '.join(CACHE_NAMES)}; {VERSION}): {PLAIN}"
        )
    if not takes_dynamic_cache(type(model)):
        raise ValueError(f"{type(model).__name__} ({VERSION}) decodes with a cache of its own: {PLAIN}")
    return name


def feed(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Mapping[str, Cache],
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Logits ``[B, q, V]`` of one pass.

    ``cache`` is ``{cache_argument(model): cache}``, or empty for no cache. Without padding, neither mask nor positions
    are passed, so that the model builds both as usual.
    """
    given: dict[str, Any] = {"use_cache": bool(cache), **cache}
    if attention_mask is not None:
        given["attention_mask"] = attention_mask
    if position_ids is not None:
        given["position_ids"] = position_ids
    logits: Tensor = model(input_ids, **given).logits
    return logits


def pop_caches(kwargs: MutableMapping[str, Any]) -> list[Any]:
    """Remove the caches from a forward call's arguments, whatever their names, and return them."""
    names = [name for name, value in kwargs.items() if name in CACHE_NAMES or isinstance(value, Cache)]
    found = [kwargs.pop(name) for name in names]
    return [cache for cache in found if cache is not None]


def query_length(query: int | Tensor) -> int:
    """Number of tokens of a pass, from the argument of ``get_mask_sizes``.

    In transformers 5.2, that argument is the tokens' positions.
    """
    return query if isinstance(query, int) else query.shape[0]


_KEEPS_KEYS_AND_STATES = (
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "DummyLayer",
)


def selects_keys(layer: Any) -> bool:
    """Whether a cache layer indexes, compresses or selects keys.

    For such layers, attention over a text in one pass differs from decoding.
    """
    return type(layer).__name__ not in _KEEPS_KEYS_AND_STATES


def takes_dynamic_cache(kind: Any) -> bool:
    """Whether a model class decodes with a ``DynamicCache``, not with its own cache or none."""
    supported = getattr(kind, "_supports_default_dynamic_cache", None)
    return supported is None or bool(supported()) or "lfm2" in kind.__name__.lower()


def layer_classes(config: PretrainedConfig) -> list[Any]:
    """Empty layers of the model's own cache."""
    return list(DynamicCache(config=config).layers)


def cached_layer(cache: Cache, index: int) -> Any:
    """A layer of a cache; None if missing, as for a layer that shares the keys of another."""
    return cache.layers[index] if index < len(cache.layers) else None


def caches_keys(layer: Any) -> bool:
    """Whether a cache layer stores keys and values, unlike linear attention or state spaces."""
    return isinstance(layer, CacheLayerMixin)


def keeps_states(layer: Any) -> bool:
    """Whether a cache layer keeps states of linear attention, besides keys or alone."""
    return hasattr(layer, "recurrent_states")


def keeps_both(layer: Any) -> bool:
    """Whether a cache layer keeps the keys of all tokens, and states of linear attention."""
    return type(layer).__name__ == "LinearAttentionAndFullAttentionLayer"


def tokens_seen(cache: DynamicCache) -> int | None:
    """Number of tokens fed to a cache; None if no layer caches keys."""
    layers: list[Any] = cache.layers
    return max((layer.get_seq_length() for layer in layers if caches_keys(layer)), default=None)


def model_class(config: PretrainedConfig) -> Any:
    """transformers' causal model class for a configuration; None if there is none."""
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return mapping.get(type(config), None)


def goes_through_interface(kind: Any) -> bool:
    """Whether the layers of a model class use transformers' attention interface."""
    return bool(kind._can_set_attn_implementation())


def checkpoints_gradients(decoder: Any) -> bool:
    """Whether a model trains with gradient checkpointing, which disables the layers' cache."""
    return any(module.training and getattr(module, "gradient_checkpointing", False) for module in decoder.modules())


def in_assisted_decoding() -> bool:
    """Whether the caller is assisted decoding, which only the call stack tells a cache."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_assisted_decoding":
            return True
    return False


def takes_positions(decoder: nn.Module) -> bool:
    """Whether a model accepts the positions of padded rows.

    RoBERTa derives positions from the tokens, and BART counts padding.
    """
    own = any(hasattr(module, "create_position_ids_from_input_ids") for module in decoder.modules())
    return "position_ids" in parameters(decoder) and not own


def layer_indices(decoder: nn.Module) -> dict[int, int]:
    """Layer index by the ``id`` of each module with a ``layer_idx``.

    Where layers share weights (Zamba), it is None or -1, and that of the layer, unless another of its class has it.
    """
    named = [(name, module, getattr(module, "layer_idx", False)) for name, module in decoder.named_modules()]
    own = [(module, index) for _, module, index in named if type(index) is int]
    found = {id(module): index for module, index in own}
    for name, module, index in named:
        part = re.match(r"layers\.(\d+)\.", name) if index in (None, -1) else None
        if part and not any(isinstance(other, type(module)) and at == int(part[1]) for other, at in own):
            found[id(module)] = int(part[1])
    return found


def scaling(key: Tensor, kwargs: Mapping[str, Any]) -> float:
    """Scaling factor of the query-key products of an attention call."""
    scale = kwargs.get("scaling")
    return float(key.shape[-1] ** -0.5 if scale is None else scale)


def eager_attention(module: nn.Module) -> Attention:
    """The model's own attention function under ``eager``."""
    names = _namespace(type(module))
    switch = _SWITCHES.get((id(names), _EAGER))
    return names[_EAGER] if switch is None else switch.own


def _namespace(kind: type[nn.Module]) -> dict[str, Any]:
    """Globals of the code of a module class's forward."""
    return getattr(inspect.unwrap(kind.forward), "__globals__", {})


_EAGER = "eager_attention_forward"

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""``(own, module, query, key, value, mask, **kwargs)``; ``own`` is the replaced function."""

_ROUTES: dict[int, Attend] = {}
"""Replacement of the attention function, by the ``id`` of a module."""
_LOCK = threading.Lock()


class _Switch:
    """Entry in a table of attention functions that dispatches calls by module."""

    def __init__(self, table: MutableMapping[str, Any], name: str) -> None:
        self.table, self.name, self.users = table, name, 0
        self.own: Attention = table[name]

        def switch(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            route = _ROUTES.get(id(module))
            return self.own(module, *args, **kwargs) if route is None else route(self.own, module, *args, **kwargs)

        self.function = switch

    def enter(self) -> None:
        if not self.users:
            self.table[self.name] = self.function
        self.users += 1

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            self.table[self.name] = self.own
            del _SWITCHES[id(self.table), self.name]


_SWITCHES: dict[tuple[int, str], _Switch] = {}


def _tables(decoder: nn.Module, implementation: str) -> dict[int, tuple[MutableMapping[str, Any], str]]:
    """Tables in which a decoder's modules look up their attention function, with its name."""
    tables: list[tuple[MutableMapping[str, Any], str]] = []
    # There are many modules, but few classes.
    spaces = [_namespace(kind) for kind in {type(module) for module in decoder.modules()}]
    if implementation == "eager":
        tables = [(names, _EAGER) for names in spaces if _EAGER in names]
    else:
        tables.append((ALL_ATTENTION_FUNCTIONS._global_mapping, implementation))
        # Some models have a table of their own.
        own = (getattr(names.get("ALL_ATTENTION_FUNCTIONS"), "_local_mapping", {}) for names in spaces)
        tables += [(table, implementation) for table in own if implementation in table]
    return {id(table): (table, name) for table, name in tables}


def carries_a_press(decoder: nn.Module) -> bool:
    """Whether the attention of a decoder is already routed."""
    return any(id(module) in _ROUTES for module in decoder.modules())


@contextmanager
def routed(decoder: Any, attend: Attend) -> Iterator[None]:
    """Route the attention of every module of a decoder to ``attend`` while the context is open.

    The name of the model's implementation does not change, so that code that branches on it behaves as usual. Other
    models are not affected.
    """
    modules = [id(module) for module in decoder.modules()]
    switches: list[_Switch] = []
    with _LOCK:
        for table, name in _tables(decoder, decoder.config._attn_implementation).values():
            switch = _SWITCHES.get((id(table), name)) or _Switch(table, name)
            _SWITCHES[id(table), name] = switch
            switch.enter()
            switches.append(switch)
        _ROUTES.update(dict.fromkeys(modules, attend))
    try:
        yield
    finally:
        with _LOCK:
            for module in modules:
                _ROUTES.pop(module, None)
            for switch in switches:
                switch.leave()
