"""tiny-turboquant: ``TinyKVCache(compression="safe")``, and the same with a window shorter than the texts here."""

from typing import Any

from tiny_turboquant import TinyKVCache

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, window: int = 128) -> Any:
    """The README's call: 4 bits, the newest 128 tokens exact, blocks of 128."""
    short: dict[str, Any] = {} if window == 128 else {"residual_len": window, "block_size": window}
    return TinyKVCache(compression="safe", **short)


declared(
    factory,
    # "keys per-channel within a block of 128 tokens, values per-token, the most recent N tokens uncompressed".
    lambda window: {
        **QUANTISES,
        "bits": 4,
        "group": (window, None),
        "axis": ("channel", "token"),
        "residual": window,
        "read": lambda layer: layer._materialize_full(),
        "reports": {
            "bytes": lambda cache, _: sum(layer.memory_report()["total_storage_bytes"] for layer in cache.layers)
        },
    },
    {"window": [8, 128]},
)
