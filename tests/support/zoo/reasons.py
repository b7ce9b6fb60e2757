"""Verification of the reasons in refusals, from the behaviour of the stock model, without code of the package.

The model decodes a text alone, and the arguments of each layer's attention and the results of its cache are recorded.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from support.zoo import oracle

LENGTH, PROMPT = 24, 12


@dataclass
class Layer:
    """Behaviour of a layer in the prompt's pass.

    Attributes:
        keys, values: inputs of its attention, by call.
        masks: masks of these calls.
        given: names of further arguments of these calls.
        cached_keys, cached_values: results of its cache; None if nothing was passed to it.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    cached_keys: Tensor | None = None
    cached_values: Tensor | None = None


@dataclass
class Facts:
    """Behaviour of the stock model.

    Attributes:
        model: the model.
        layers: behaviour of the layers in the prompt's pass, by index.
        own: the model's own cache after ``LENGTH`` tokens; None if it returns none.
    """

    model: Any
    layers: dict[int, Layer]
    own: Any

    def count(self) -> int:
        """Number of layers in the configuration."""
        return int(self.model.config.get_text_config(decoder=True).num_hidden_layers)

    def cache_layer(self, index: int) -> Any:
        """The layer of the model's own cache, of any class; None if there is none."""
        layers = getattr(getattr(self.own, "self_attention_cache", self.own), "layers", [])
        return layers[index] if index < len(layers) else None

    def held(self, index: int) -> int:
        """Number of keys that the model's own cache holds in a layer."""
        keys = getattr(self.cache_layer(index), "keys", None)
        return keys.shape[2] if isinstance(keys, Tensor) and keys.dim() == 4 else 0

    def states(self, index: int) -> list[str]:
        """States that a layer of the model's own cache keeps besides keys and values."""
        found = vars(self.cache_layer(index)) if self.cache_layer(index) is not None else {}
        return [name for name, value in found.items() if name not in ("keys", "values") and _has_tensor(value)]


def _has_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor) and value.dim() > 1


@contextmanager
def _noted(model: Any, layers: dict[int, Layer]) -> Iterator[None]:
    """Context that records calls of attention and of caches."""
    name = "eager_attention_forward"
    spaces = [getattr(inspect.unwrap(type(module).forward), "__globals__", {}) for module in model.modules()]
    files = {id(space): space for space in spaces if name in space}
    before = {key: space[name] for key, space in files.items()}
    update = DynamicCache.update

    def noting(own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            output, weights = own(module, query, key, value, *args, **kwargs)
            index = getattr(module, "layer_idx", None)
            if isinstance(index, int):
                layer = layers.setdefault(index, Layer())
                layer.keys.append(key)
                layer.values.append(value)
                layer.masks.append(args[0] if args else kwargs.get("attention_mask"))
                layer.given |= {name for name, value in kwargs.items() if value is not None}
                if isinstance(weights, Tensor) and weights.dim() == 4 and _leak(weights):
                    layer.given.add("sinks")
            return output, weights

        return forward

    def updated(self: Any, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        returned = update(self, keys, values, layer_idx, *args, **kwargs)
        layer = layers.setdefault(layer_idx, Layer())
        layer.cached_keys, layer.cached_values = returned[0], returned[1]
        return returned

    for key, space in files.items():
        space[name] = noting(before[key])
    DynamicCache.update = updated  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        DynamicCache.update = update  # type: ignore[method-assign]
        for key, space in files.items():
            space[name] = before[key]


def facts(model: Any, ids: Tensor) -> Facts:
    """Facts about a model run on ``[1, LENGTH]`` tokens or more, alone, with eager attention."""
    layers: dict[int, Layer] = {}
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with _noted(model, layers), torch.no_grad():
            model(ids[:, :PROMPT], use_cache=True)
        try:
            _, own = oracle.decode(model, ids[:, :LENGTH], [PROMPT, *[1] * (LENGTH - PROMPT)])
        except oracle.Unreachable:
            own = None
    finally:
        model.set_attn_implementation(implementation)
    return Facts(model, layers, own)


def _leak(weights: Tensor) -> bool:
    """Whether the attention weights of a query do not sum to 1."""
    return bool(((weights.sum(dim=-1) - 1).abs() > 1e-4).any())


def _windowed(known: Facts, layer: int, width: int) -> bool:
    return 0 < known.held(layer) <= width < LENGTH or any(map(_not_causal, known.layers.get(layer, Layer()).masks))


def _not_causal(mask: Tensor | None) -> bool:
    if mask is None:
        return False
    rows, columns = mask.shape[-2:]
    later = torch.ones(rows, columns, dtype=torch.bool).triu(columns - rows + 1)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    plain = mask.dtype == torch.bool or bool(((mask == 0) | ~seen).all())
    return mask.shape[1] != 1 or not plain or bool((seen != ~later).any())


def _differs(read: list[Tensor], cached: Tensor | None) -> bool:
    return cached is not None and not all(tensor.shape == cached.shape and tensor.equal(cached) for tensor in read)


def _in_turns(read: list[Tensor], cached: Tensor | None) -> bool:
    heads = 0 if cached is None else cached.shape[1]
    return any(key.shape[1] > heads > 1 and torch.equal(key[:, 0], key[:, heads]) for key in read)


def _masks_all_seen(known: Facts, ids: Tensor) -> bool:
    _, cache = oracle.decode(known.model, ids[:, :PROMPT], [PROMPT])
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
    cache.get_seq_length = lambda *_: PROMPT
    try:
        oracle.decode(known.model, ids[:, PROMPT : PROMPT + 1], [1], cache)
    except RuntimeError as error:
        return "must match the size" in str(error)
    return False


def _outside(known: Facts, layer: int | None) -> bool:
    layers = known.layers.values() if layer is None else [known.layers.get(layer, Layer())]
    return not any(one.keys for one in layers)


def _by_slots(known: Facts, ids: Tensor) -> bool:
    return oracle.depends_on_slots(known.model, ids, PROMPT) > 1e-9


def _singly(model: Any, ids: Tensor) -> Tensor:
    """Logits of tokens fed singly, from an empty cache."""
    return oracle.decode(model, ids, [1] * ids.shape[1], DynamicCache(config=model.config))[0]


LAYERS: dict[str, Callable[[Facts, int, re.Match[str]], bool]] = {
    r"(?:hybrid )?(?:sliding|chunked)(?: attention)? of (\d+)": lambda known, layer, found: _windowed(
        known, layer, int(found[1])
    ),
    r"local attention of \d+ slots, whatever their positions": lambda known, layer, found: _outside(known, layer),
    r"[\w ]+, which caches no keys": lambda known, layer, found: not known.held(layer),
    r"[\w ]*(?:hybrid|indexed|compressed|sparse)[\w ]*": lambda known, layer, found: (
        bool(known.states(layer)) or any(map(_not_causal, known.layers[layer].masks))
    ),
    r"attention with softcap [\d.]+": lambda known, layer, found: "softcap" in known.layers[layer].given,
    r"attention with (?:sinks|s_aux)": lambda known, layer, found: bool(known.layers[layer].given & {"sinks", "s_aux"}),
    r"keys cached as .*|attention to keys that .*": lambda known, layer, found: _differs(
        known.layers[layer].keys, known.layers[layer].cached_keys
    ),
    r"values cached as .*|attention to values that .*": lambda known, layer, found: _differs(
        known.layers[layer].values, known.layers[layer].cached_values
    ),
    r"a second attention call in a pass": lambda known, layer, found: len(known.layers[layer].keys) > 1,
    r"a mask (?:of its own|that is not|with values).*": lambda known, layer, found: any(
        map(_not_causal, known.layers[layer].masks)
    ),
    r"attention beyond (?:a window|chunks) of (\d+)": lambda known, layer, found: (
        known.held(layer) < int(found[1]) and not any(map(_not_causal, known.layers[layer].masks))
    ),
    r"tokens of the pass that never reached the cache .*": lambda known, layer, found: (
        known.layers.get(layer, Layer()).cached_keys is None
    ),
    r"no module of its own that attends through .*": lambda known, layer, found: _outside(known, layer),
}
"""Checks of reasons about a layer, by their text."""

WHOLE: dict[str, Callable[[Facts, Tensor], bool]] = {
    r"does not go through transformers' attention interface": lambda known, ids: _outside(known, None),
    r"adds (?:ALiBi )?biases by the slot": _by_slots,
    r"has one mask for all layers, and some have local attention of \d+ slots": lambda known, ids: (
        _outside(known, None) and _by_slots(known, ids)
    ),
    r"makes masks of as many columns as it has seen tokens": _masks_all_seen,
    r"read KV heads in turns": lambda known, ids: any(
        _in_turns(layer.keys, layer.cached_keys) for layer in known.layers.values()
    ),
    r"keeps no key-value cache": lambda known, ids: oracle.cache_name(known.model) is None,
    r"has no layer that caches keys": lambda known, ids: not any(map(known.held, range(100))),
    r"decodes with a cache of its own": lambda known, ids: type(known.own) is not DynamicCache,
    r"joins the values of several heads": lambda known, ids: any(
        _differs(layer.values, layer.cached_values) for layer in known.layers.values()
    ),
    r"makes masks of its own": lambda known, ids: any(
        _not_causal(mask) for layer in known.layers.values() for mask in layer.masks
    ),
    r"keeps recurrent states in its modules": lambda known, ids: (
        not torch.equal(*(_singly(known.model, ids[:, :PROMPT]) for _ in range(2)))
    ),
    r"attends beyond the window that its cache keeps": lambda known, ids: any(
        0 < known.held(index) < PROMPT and not any(map(_not_causal, layer.masks))
        for index, layer in known.layers.items()
    ),
    r"adds layers to the cache": lambda known, ids: known.cache_layer(known.count()) is not None,
    r"is not known to attend through": lambda known, ids: not known.model._can_set_attn_implementation(),
    r"made it one of": lambda known, ids: known.cache_layer(known.count()) is not None,
    r"attends by modules whose layer_idx is -?\d+": lambda known, ids: any(
        getattr(module, "layer_idx", 0) not in range(known.count()) for module in known.model.modules()
    ),
    r"is an encoder-decoder": lambda known, ids: bool(known.model.config.is_encoder_decoder),
}
"""Checks of reasons about a model, by their text."""


def claims(sentence: str) -> Iterator[tuple[list[int], str]]:
    """Reasons about layers in a refusal: indices and reason."""
    _, _, rest = sentence.partition("a press does not support ")
    for spans, reason in re.findall(
        r"layers? ([\d, -]+) \(((?:[^()]|\([^()]*\))*)\)", rest.partition("; that leaves")[0]
    ):
        ends = [span.split("-") for span in spans.split(", ")]
        yield [index for end in ends for index in range(int(end[0]), int(end[-1]) + 1)], reason


def unfounded(model: Any, ids: Tensor, sentence: str) -> str | None:
    """A reason in a refusal that is false or has no check; None if all are true.

    Args:
        model: the refused model.
        ids: ``[1, LENGTH]`` tokens or more.
        sentence: message of the refusal.
    """
    known = facts(model, ids)
    said = list(claims(sentence))
    for layers, reason in said:
        check = next(((LAYERS[one], found) for one in LAYERS if (found := re.fullmatch(one, reason))), None)
        if check is None:
            return f"nobody checks whether a layer has {reason}"
        for layer in layers:
            if layer not in known.layers and layer >= known.count():
                return f"the model has no layer {layer}"
            if not check[0](known, layer, check[1]):
                return f"layer {layer} has no {reason}"
    if said:
        return None
    whole = next((WHOLE[one] for one in WHOLE if re.search(one, sentence)), None)
    if whole is None:
        return "nobody checks this reason"
    return None if whole(known, ids) else "it is not so"
