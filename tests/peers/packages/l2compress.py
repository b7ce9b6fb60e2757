"""l2compress's published rule as a function over the whole cache.

Source: Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression" (EMNLP 2024), and its
code.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from peers.packages.adapt import declared

Layers = list[tuple[Tensor, Tensor]]


def factory(keep_ratio: float, prune_after: int = 2048, skip_layers: tuple[int, ...] = ()) -> Callable[[Layers], Any]:
    """A function called after every pass: a layer with ``prune_after`` entries or more is sorted by norm, and the first
    ``ceil(keep_ratio * held)`` are retained, in that order."""

    def compress(layers: Layers) -> Layers:
        return [
            layer if index in skip_layers or layer[0].shape[2] < prune_after else _shortest(*layer, keep_ratio)
            for index, layer in enumerate(layers)
        ]

    return compress


def _shortest(keys: Tensor, values: Tensor, keep_ratio: float) -> tuple[Tensor, Tensor]:
    left = math.ceil(keep_ratio * keys.shape[2])
    order = keys.norm(dim=-1).argsort(dim=-1)[..., None]
    # A slice of the sorted entries: a view, as in the published code.
    return (
        keys.gather(2, order.expand_as(keys))[:, :, :left],
        values.gather(2, order.expand_as(values))[:, :, :left],
    )


declared(factory, {"score": "knorm", "ties": "any", "boundary": ">="})
