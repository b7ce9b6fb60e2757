"""fade-kv: ``create_tiered_cache(model, config=FadeConfig.safe())``, with tiers assigned after every pass."""

from typing import Any

from fade import FadeConfig, create_tiered_cache
from fade.policy import reassign_tiers_by_position

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, model: Any, dtype: Any, window: int = 64) -> Any:
    """The README's call; the window of 64 tokens is longer than many texts here."""
    config = FadeConfig.safe().with_overrides(recent_window=window)
    return create_tiered_cache(model, dtype=dtype, config=config)


declared(
    factory,
    # "FP16: first N_SINK tokens + last RECENT_WINDOW tokens; INT4: the bulk".
    lambda window: {
        **QUANTISES,
        "bits": 4,
        "sinks": 4,
        "residual": window,
        "after_pass": lambda cache: reassign_tiers_by_position(cache, len(cache)),
        "read": lambda cache, index: cache._materialize(index),
        "reports": {"bytes": lambda cache, _: cache.compressed_storage_bytes()},
    },
    {"window": [8, 64]},
)
