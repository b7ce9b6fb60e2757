"""adaptivekv: ``AdaptiveKVCache``, with the README's config and with eviction."""

from typing import Any

from adaptivekv import AdaptiveKVConfig, AllocationConfig
from adaptivekv.cache import AdaptiveKVCache

from peers.packages.adapt import NEITHER, QUANTISES, declared


def read(cache: Any, index: int) -> Any:
    """What attention gets."""
    layer = cache.layers[index]
    return layer.retained_keys, layer.retained_values


def quantising(keep_ratio: float) -> Any:
    """The README's example."""
    config = AdaptiveKVConfig(allocation=AllocationConfig(strategy="threshold", bits=(2, 3, 4)))
    return AdaptiveKVCache(config)


def evicting(keep_ratio: float) -> Any:
    """The class's example, with a window shorter than the texts here, and without quantisation."""
    return AdaptiveKVCache(
        enable_token_eviction=True,
        keep_ratio=keep_ratio,
        recent_window=2,
        sink_tokens=2,
        min_cache_tokens=1,
        enable_quantization=False,
    )


declared(
    quantising,
    {
        **QUANTISES,
        "bits": 4,
        "read": read,
        "reports": {"bytes": lambda cache, _: cache.total_compressed_size_bytes()},
    },
)
declared(evicting, {**NEITHER, "sinks": 2, "recent": 2, "rounding": "floor", "read": read})
