"""transformers' own caches, as compressors that take a ratio and do what they do anyhow."""

from typing import Any

from transformers import Cache, DynamicCache, QuantizedCache
from transformers.cache_utils import DynamicSlidingWindowLayer

WINDOW = 7


class Dynamic:
    """Evicts nothing."""

    def __init__(self, keep_ratio: float) -> None:
        pass

    def cache(self, config: Any) -> Cache:
        return DynamicCache(config=config)


class SlidingWindow:
    """Layers that keep the newest ``WINDOW - 1``, whatever the model."""

    def __init__(self, keep_ratio: float) -> None:
        self.keep_ratio = keep_ratio

    def cache(self, config: Any) -> Cache:
        cache = DynamicCache(config=config)
        if self.keep_ratio < 1:
            cache.layers = [DynamicSlidingWindowLayer(WINDOW) for _ in cache.layers]
        return cache


class Quantized:
    """Four bits per number, by optimum-quanto; the newest few stay as they are until they are 8."""

    def __init__(self, keep_ratio: float) -> None:
        pass

    def cache(self, config: Any) -> Cache:
        return QuantizedCache("quanto", config, nbits=4, q_group_size=4, residual_length=8)
