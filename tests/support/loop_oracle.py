"""Decoding with evictions in a plain loop: the stock model, its own masks and cache, and lists of entries.

Imports nothing of the product: evictions follow ``pressgauge.conformance.oracle``, the plain-Python oracle. Attention
weights are the model's own: its attention function is called with the unit matrix for values, so that whatever it does
to logits, with sinks or a softcap, is in the output. Keys are those of the model's cache; of latents, the key is the
latent followed by the rotary key.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressgauge.conformance.oracle import NEVER, Rules, counts, retained

Weights = list[list[list[float]]]
"""Per KV head, query of a pass and column: attention, averaged over the query heads of the KV head."""


@dataclass
class Layer:
    """State of a layer: per KV head, the present tokens, the scores of attention, and ``evicted_at``; and whether it
    caches latents, which are not what it attends to."""

    held: list[list[int]]
    sums: list[dict[int, float]]
    table: Tensor
    weights: Weights
    latent: bool


@dataclass(frozen=True)
class Rule:
    """A press for the loop.

    Attributes:
        rules: when it evicts, and how many entries.
        score: ``norm``, ``sum``, ``window`` or ``last``.
        skipped: layers that it skips.
    """

    rules: Rules
    score: str
    skipped: tuple[int, ...] = ()


@contextmanager
def _replaced(model: Any, attend: Callable[..., Any]) -> Iterator[None]:
    """Context in which attention runs ``attend(own, module, query, key, value, mask, **kwargs)``."""
    name = model.config._attn_implementation
    tables: list[tuple[Any, str]] = [(ALL_ATTENTION_FUNCTIONS._global_mapping, name)]
    if name == "eager":
        spaces = [getattr(inspect.unwrap(type(part).forward), "__globals__", {}) for part in model.modules()]
        own = "eager_attention_forward"
        tables = [(space, own) for space in {id(space): space for space in spaces if own in space}.values()]
    before = [table[key] for table, key in tables]

    def wrapped(own: Any) -> Any:
        return lambda module, *args, **kwargs: attend(own, module, *args, **kwargs)

    for (table, key), function in zip(tables, before, strict=True):
        table[key] = wrapped(function)
    try:
        yield
    finally:
        for (table, key), function in zip(tables, before, strict=True):
            table[key] = function


def _means(weights: Tensor, heads: int) -> Weights:
    """``[1, q, H, N]`` averaged over the query heads of each KV head."""
    found: Weights = weights[0].unflatten(1, (heads, -1)).mean(dim=2).transpose(0, 1).tolist()
    return found


@torch.no_grad()
def decode(model: Any, ids: Tensor, passes: Sequence[int], method: Rule) -> tuple[Tensor, list[Tensor]]:
    """Logits ``[1, T, V]`` of a text fed in passes, and ``evicted_at`` of each layer, ``[1, K, T]``."""
    cache: Any = DynamicCache(config=model.config)
    layers: dict[int, Layer] = {}
    heads: dict[int, int] = {}
    total = sum(passes)
    name = next(one for one in ("cache", "past_key_values") if one in inspect.signature(type(model).forward).parameters)

    def attend(own: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        index = module.layer_idx
        if index in method.skipped:
            return own(module, query, key, value, mask, **kwargs)
        heads[index] = cache.layers[index].keys.shape[1]
        columns, new = key.shape[2], query.shape[2]
        time = torch.arange(columns - new, columns)
        sees = (torch.arange(columns) <= time[:, None])[None, None]
        if index in layers:
            table = layers[index].table[..., :columns].repeat_interleave(query.shape[1] // heads[index], dim=1)
            sees = sees & (time[:, None] < table[:, :, None])
        bias = torch.zeros(sees.shape, dtype=query.dtype).masked_fill(~sees, -torch.inf)
        unit = torch.eye(columns, dtype=value.dtype).expand(*value.shape[:2], -1, -1)
        given, _ = own(module, query, key, unit, bias, **kwargs)
        latent = cache.layers[index].keys.shape[1::2] != key.shape[1::2]
        layer = layers.setdefault(index, _layer(heads[index], total, latent))
        layer.weights = _means(given, heads[index])
        return own(module, query, key, value, bias, **kwargs)

    logits, seen = [], 0
    with _replaced(model, attend):
        for tokens, size in zip(passes, counts(method.rules, passes), strict=True):
            start, seen = seen, seen + tokens
            logits.append(model(ids[:, start:seen], use_cache=True, **{name: cache}).logits)
            for index, layer in layers.items():
                for head in range(heads[index]):
                    layer.held[head] += range(start, seen)
                    scores = _scores(method, layer, head, cache.layers[index], start, seen)
                    kept = retained(method.rules, layer.held[head], scores, size, seen)
                    for token in set(layer.held[head]) - set(kept):
                        layer.table[0, head, token] = seen
                    layer.held[head] = kept
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    return torch.cat(logits, dim=1), [layers[index].table for index in range(count) if index in layers]


def _layer(heads: int, total: int, latent: bool) -> Layer:
    return Layer(
        [[] for _ in range(heads)],
        [{} for _ in range(heads)],
        torch.full((1, heads, total), NEVER, dtype=torch.int32),
        [],
        latent,
    )


def _scores(method: Rule, layer: Layer, head: int, cached: Any, start: int, end: int) -> list[float]:
    """Scores of the present tokens of a head, after the pass of the tokens ``start`` to ``end - 1``."""
    held = layer.held[head]
    if method.score == "norm":
        keys = cached.keys[0, head].tolist()
        if layer.latent:
            keys = [key + value for key, value in zip(keys, cached.values[0, head].tolist(), strict=True)]
        return [-math.sqrt(math.fsum(x * x for x in keys[token])) for token in held]
    if method.score == "last":
        return [math.fsum(weights[-1][token] for weights in layer.weights) for token in held]
    given = layer.weights[head]
    if method.score == "sum":
        sums = layer.sums[head]
        for row in given:
            for token in held:
                sums[token] = sums.get(token, 0.0) + row[token]
        return [sums[token] for token in held]
    assert method.score == "window"
    if method.rules.schedule == "prefill" and start:
        return [0.0] * len(held)
    assert end - start >= method.rules.recent, "queries of earlier passes are not known here"
    first = end - method.rules.recent
    votes = [math.fsum(row[token] for row in given[first - start :]) if token < first else 0.0 for token in held]
    return [math.fsum(votes[max(0, i - 2) : i + 3]) for i in range(len(votes))]
