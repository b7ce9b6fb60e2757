"""adaptivekv: ``AdaptiveKVCache``, with the README's config and with eviction, as it is and with its masks mended."""

from typing import Any

import torch
from adaptivekv import AdaptiveKVConfig, AllocationConfig
from adaptivekv.cache import AdaptiveKVCache

from peers.packages.adapt import NEITHER, QUANTISES, declared


def read(cache: Any, index: int) -> Any:
    """What attention gets."""
    layer = cache.layers[index]
    return layer.retained_keys, layer.retained_values


class Mended(AdaptiveKVCache):  # type: ignore[misc]
    """What stops the laws is mended: masks count the tokens of the pass, and what is evicted is attended to before."""

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """What is held and what comes."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *given: Any, **named: Any) -> Any:
        """Evict, quantise, and return what was held before with what comes."""
        before = read(self, layer_idx) if layer_idx in self.layers else (keys[:, :, :0], values[:, :, :0])
        returned = super().update(keys, values, layer_idx, *given, **named)
        if not self.config.token_budget.enable_token_eviction:
            return returned
        return torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)


def quantising(keep_ratio: float, cache: type[AdaptiveKVCache] = AdaptiveKVCache) -> Any:
    """The README's example."""
    return cache(AdaptiveKVConfig(allocation=AllocationConfig(strategy="threshold", bits=(2, 3, 4))))


def evicting(keep_ratio: float, cache: type[AdaptiveKVCache] = AdaptiveKVCache, protected: int = 2) -> Any:
    """The class's example, with a window shorter than the texts here, and without quantisation."""
    return cache(
        enable_token_eviction=True,
        keep_ratio=keep_ratio,
        recent_window=protected,
        sink_tokens=protected,
        min_cache_tokens=1,
        enable_quantization=False,
    )


def quantising_mended(keep_ratio: float) -> Any:
    """The same, with masks mended."""
    return quantising(keep_ratio, Mended)


def evicting_mended(keep_ratio: float) -> Any:
    """The same, with masks mended, and without tokens protected beside the ratio."""
    return evicting(keep_ratio, Mended, protected=0)


for factory in (quantising, quantising_mended):
    reports = {"bytes": lambda cache, _: cache.total_compressed_size_bytes()}
    declared(factory, {**QUANTISES, "bits": 4, "read": read, "reports": reports})
declared(evicting, {**NEITHER, "sinks": 2, "recent": 2, "rounding": "floor", "read": read})
declared(evicting_mended, {**NEITHER, "rounding": lambda ratio, count: max(1, round(ratio * count)), "read": read})
