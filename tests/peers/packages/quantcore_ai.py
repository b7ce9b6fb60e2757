"""quantcore-ai: ``make_turboquant_cache(model.config, bits=...)``, the cache of ``optimize_model``."""

from typing import Any

from turboquant.hf_integration import make_turboquant_cache

from peers.packages.adapt import NEITHER, QUANTISES, declared

WINDOW = 16


def read(layer: Any) -> Any:
    """Keys as they are dequantised for attention, and values as stored."""
    packed = layer._k_packed
    keys = layer._tq_keys.decompress(packed.reshape(-1, packed.shape[-1]), layer._k_norms.reshape(-1))
    return keys.reshape(*packed.shape[:3], layer.head_dim).to(layer.dtype), layer.values


def held_bytes(cache: Any, _: Any) -> int:
    """What the package reports."""
    return sum(layer.memory_bytes()["compressed"] for layer in cache.layers)


def factory(keep_ratio: float, model: Any, bits: int = 4) -> Any:
    """Modes ``fast`` and ``balanced``."""
    return make_turboquant_cache(model.config, bits=bits, verbose=False)


def window(keep_ratio: float, model: Any) -> Any:
    """With ``max_cache_len``: "evicts oldest tokens when cache exceeds max_cache_len"."""
    return make_turboquant_cache(model.config, bits=4, verbose=False, max_cache_len=WINDOW)


# Values are not compressed by default, which is said in the docstring.
declared(
    factory,
    lambda bits: {**QUANTISES, "bits": (bits, 16), "residual": 0, "read": read,
                  "reports": {"bytes": held_bytes}},
    {"bits": [4, 3]},
)  # fmt: skip
declared(
    window,
    {**NEITHER, "entries": "quantised", "bits": (4, 16), "read": read,
     "target": lambda seen, held: min(held, WINDOW), "score": "position", "recent": WINDOW},
)  # fmt: skip
