"""turboquantdc: ``TurboQuantCache(bits=4, mse_only=True)``, its "drop-in KV cache for HuggingFace"."""

from typing import Any

from turboquantdc.hf_integration import TurboQuantCache

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, bits: int = 4) -> Any:
    """The README's call."""
    return TurboQuantCache(bits=bits, mse_only=True)


def read(cache: Any, index: int) -> Any:
    """The cache has no ``layers``; it can be indexed."""
    return cache[index]


declared(
    factory,
    lambda bits: {**QUANTISES, "kind": "instance", "bits": bits, "read": read},
    {"bits": [4, 3]},
)
