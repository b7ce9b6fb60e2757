"""Oracle of correct results, from the stock model alone, without code of the package.

The model decodes with its own cache, ``eager`` attention and its own masks. Keys evicted by a press are masked with
minus infinity, per head, by wrapping ``eager_attention_forward`` of the model's file. The implementation is still
called ``eager``, so the model's code does not change its behaviour. Where attention is the model's own code, the
products that its modules pass to ``softmax`` are masked.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_NAME = "eager_attention_forward"


class Unreachable(Exception):  # noqa: N818  # it is an answer
    """The reason why a model's attention cannot be masked from outside."""


class Call(NamedTuple):
    """A call of a layer's attention: queries of a pass, all keys, and the factor of their products."""

    query: Tensor
    key: Tensor
    scale: float


def cache_name(model: Any) -> str | None:
    """Name of a model's cache as an argument and in its output."""
    names = inspect.signature(type(model).forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


@torch.no_grad()
def decode(model: Any, ids: Tensor, passes: Sequence[int], cache: Any = None) -> tuple[Tensor, Any]:
    """Logits ``[B, T, V]`` of a text fed in passes, with the model's own cache unless one is given; and the cache.

    Raises:
        Unreachable: if the model returns no cache.
    """
    name = cache_name(model)
    if name is None:
        raise Unreachable("the model takes no cache")
    logits, seen = [], 0
    for length in passes:
        given = {} if cache is None else {name: cache}
        output = model(ids[:, seen : seen + length], use_cache=True, **given)
        cache = getattr(output, name, None) or cache
        if cache is None:
            raise Unreachable("the model hands back no cache")
        logits.append(output.logits)
        seen += length
    return torch.cat(logits, dim=1), cache


def nll(logits: Tensor, ids: Tensor, prompt: int) -> Tensor:
    """NLL ``[B, T - prompt]`` of the tokens from ``prompt`` on, by the logits of their predecessors."""
    scores = logits[:, prompt - 1 : -1].double().log_softmax(dim=-1)
    return -scores.gather(2, ids[:, prompt:, None])[..., 0]


@contextmanager
def masked(
    model: Any, tables: Sequence[Tensor], reached: set[int], noted: dict[int, list[Call]] | None = None
) -> Iterator[None]:
    """Context in which query t of layer l attends to key j only if ``t < tables[l][b, k, j]``.

    Layers whose attention was masked are added to ``reached``, and the calls of layers with their own keys to
    ``noted``.
    """
    files: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        names = getattr(inspect.unwrap(type(module).forward), "__globals__", {})
        if _NAME in names:
            files[id(names)] = names
    before = {key: names[_NAME] for key, names in files.items()}
    read: dict[int, Tensor] = {}
    fed: list[Any] = [None]
    update = DynamicCache.update

    def updated(cache: Any, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        fed[0] = layer_idx
        return update(cache, keys, values, layer_idx, *args, **kwargs)

    def wrapped(own: Any) -> Any:
        def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(("attention_mask",), args, strict=False)), **kwargs}
            layer = getattr(module, "layer_idx", None)
            if hasattr(module, "layer_idx") and layer in (None, -1):
                # Modules with the weights of several layers are told their layer, and attend to what they fed last.
                layer = fed[0]
            if isinstance(layer, int):
                # A layer may read the keys of one before it.
                index, read[layer] = layer, key
                layer = next(one for one in sorted(read) if read[one].data_ptr() == key.data_ptr())
                if noted is not None and layer == index:
                    noted.setdefault(layer, []).append(Call(query, key, float(kwargs["scaling"])))
            if isinstance(layer, int) and 0 <= layer < len(tables) and key.shape[2] <= tables[layer].shape[2]:
                table = tables[layer][:, :, : key.shape[2]]
                given["attention_mask"] = _with(given.get("attention_mask"), table, query, key)
                reached.add(layer)
            return own(module, query, key, value, *args[1:], **given)

        return forward

    for key, names in files.items():
        names[_NAME] = wrapped(before[key])
    DynamicCache.update = updated  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        DynamicCache.update = update  # type: ignore[method-assign]
        for key, names in files.items():
            names[_NAME] = before[key]


def _with(mask: Tensor | None, table: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The model's mask, with minus infinity at evicted keys."""
    columns, new = key.shape[2], query.shape[2]
    gone = _gone(table, new, columns)
    heads = gone.shape[1]
    if key.shape[1] > heads > 1 and torch.equal(key[:, 0], key[:, heads]):
        # The model has repeated its KV heads for the query heads.
        gone = gone.repeat(1, key.shape[1] // heads, 1, 1)
    gone = gone.repeat_interleave(query.shape[1] // gone.shape[1], dim=1)
    bias = torch.zeros(gone.shape, dtype=query.dtype).masked_fill(gone, -torch.inf)
    if mask is None:
        later = torch.arange(columns) > torch.arange(columns - new, columns)[:, None]
        return bias.masked_fill(later, -torch.inf)
    own = mask if mask.is_floating_point() else torch.zeros_like(bias).masked_fill(~mask, -torch.inf)
    return own[..., :columns] + bias


def _gone(table: Tensor, new: int, columns: int) -> Tensor:
    """Evicted keys of the last ``new`` of ``columns`` queries: ``[B, K, new, columns]``."""
    return torch.arange(columns - new, columns)[:, None] >= table[:, :, None, :columns]


@contextmanager
def softened(model: Any, tables: Sequence[Tensor], reached: set[int]) -> Iterator[None]:
    """Context in which modules with attention code of their own lose keys by these tables before their softmax.

    Layers whose softmax was reached are added to ``reached``.
    """
    running: list[int] = []
    own, config = torch.nn.functional.softmax, model.config.get_text_config(decoder=True)
    implementation = config._attn_implementation

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if running and tables[running[-1]].shape[-1]:
            gone = _gone(tables[running[-1]], *scores.shape[-2:])
            # Some have flattened rows and heads.
            heads = scores.reshape(len(gone), -1, *scores.shape[-2:])
            scores = heads.masked_fill(gone, -torch.inf).reshape(scores.shape)
            reached.add(running[-1])
        return own(scores, *args, **kwargs)

    handles: list[Any] = []
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and 0 <= layer < len(tables):
            handles.append(module.register_forward_pre_hook(lambda *_, layer=layer: running.append(layer)))
            handles.append(module.register_forward_hook(lambda *_: (running.pop(), None)[1], always_call=True))
    config._attn_implementation = "eager"
    torch.nn.functional.softmax = softmax  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.functional.softmax = own
        config._attn_implementation = implementation
        for handle in handles:
            handle.remove()


def uncompressed(model: Any) -> Any:
    """A cache that keeps what leaves a window, so that keys lie in the columns of a table; None for the model's own."""
    cache = DynamicCache(config=model.config)
    if not any(type(layer) is DynamicSlidingWindowLayer for layer in cache.layers):
        return None
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    return cache


def expected(
    model: Any,
    ids: Tensor,
    passes: Sequence[int],
    tables: Sequence[Tensor],
    noted: dict[int, list[Call]] | None = None,
) -> Tensor:
    """Logits ``[B, T, V]`` of a model with evictions by these tables.

    Calls of attention are added to ``noted``, as in ``masked``.

    Raises:
        Unreachable: if not all layers with evictions could be masked.
    """
    losing = {layer for layer, table in enumerate(tables) if bool((table < ids.shape[1]).any())}
    some = [table if layer in losing else table[..., :0] for layer, table in enumerate(tables)]
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for masking in (partial(masked, noted=noted), softened):
            reached: set[int] = set()
            with masking(model, some, reached):
                logits, _ = decode(model, ids, passes, uncompressed(model))
            if not losing - reached:
                return logits
    finally:
        model.set_attn_implementation(implementation)
    raise Unreachable(f"layers {sorted(losing - reached)} attend neither by {_NAME} nor by a softmax")


@torch.no_grad()
def depends_on_slots(model: Any, ids: Tensor, prompt: int) -> float:
    """Change of the next token's logits when the entries of a prompt are permuted: 0 if attention uses positions
    only."""
    found = []
    for shuffled in (False, True):
        _, cache = decode(model, ids[:, :prompt], [prompt])
        if shuffled:
            order = torch.randperm(prompt, generator=torch.Generator().manual_seed(0))
            for layer in getattr(cache, "self_attention_cache", cache).layers:
                if getattr(layer, "keys", None) is not None and layer.keys.shape[2] == prompt:
                    layer.keys, layer.values = layer.keys[:, :, order].clone(), layer.values[:, :, order].clone()
        logits, _ = decode(model, ids[:, prompt : prompt + 1], [1], cache)
        found.append(logits)
    return float((found[0] - found[1]).abs().max())
