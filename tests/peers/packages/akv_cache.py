"""akv-cache: ``AKVCache(preset="balanced")``, and the same with fewer unquantised tokens."""

from typing import Any

from akv import AKVCache

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, hot_budget: int = 128) -> Any:
    """The README's call: 3 bits, and 128 tokens that are not quantised."""
    given: dict[str, Any] = {"preset": "balanced"} if hot_budget == 128 else {"warm_bits": 3, "hot_budget": hot_budget}
    return AKVCache(**given)


declared(
    factory,
    {
        **QUANTISES,
        "bits": 3,
        # "KIVI-style per-channel K / per-token V scaling".
        "axis": ("channel", "token"),
        "reports": {"bytes": lambda cache, _: cache.memory_report()["compressed_bytes"]},
    },
    {"hot_budget": [8, 128]},
)
