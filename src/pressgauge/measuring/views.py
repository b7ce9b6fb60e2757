"""A compressor whose evicted entries stay in memory, for figures that must count them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pressgauge.conformance.versions import CACHE
from pressgauge.models.interface import query_length

SLOTS = 128
"""Slots of a layer, more than any text of the audit has tokens."""


class WindowLayer(DynamicLayer):
    """A layer that holds its newest entries as views of all its slots."""

    def __init__(self, keep_ratio: float) -> None:
        super().__init__()
        self.keep_ratio = keep_ratio
        self.start = self.end = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add entries, return all, and evict the oldest."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # A layer's attributes are what the meter walks through, so that the slots are no attributes.
            slots = [
                states.new_zeros(*states.shape[:2], SLOTS, states.shape[3]) for states in (key_states, value_states)
            ]
            self.slots = lambda: slots
        stop = self.end + key_states.shape[2]
        for slot, states in zip(self.slots(), (key_states, value_states), strict=True):
            slot[:, :, self.end : stop] = states
        keys, values = (slot[:, :, self.start : stop] for slot in self.slots())
        self.end, self.start = stop, stop - math.ceil(self.keep_ratio * stop)
        self.keys, self.values = (slot[:, :, self.start : stop] for slot in self.slots())
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.end

    def get_mask_sizes(self, query: int | Tensor) -> tuple[int, int]:
        """Length and offset of the keys of the next pass."""
        return self.end - self.start + query_length(query), self.start


@dataclass(frozen=True)
class Views:
    """A compressor that evicts by views: ``with views(model):``, or ``views.cache(config)``."""

    keep_ratio: float

    def cache(self, config: Any) -> DynamicCache:
        """An empty cache."""
        cache = DynamicCache(config=config)
        self._adopt(cache, config)
        return cache

    def _adopt(self, cache: Any, config: Any) -> None:
        if not any(isinstance(layer, WindowLayer) for layer in cache.layers):
            cache.layers = [WindowLayer(self.keep_ratio) for _ in range(config.num_hidden_layers)]

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """Attach to a model."""

        def give(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            if kwargs.get(CACHE) is None:
                kwargs[CACHE] = self.cache(model.config)
            self._adopt(kwargs[CACHE], model.config)
            return args, kwargs

        handle = model.get_decoder().register_forward_pre_hook(give, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
