"""nexusquant-kv: ``with nexusquant(model):``, and ``E8QuantizedCache.from_model(model)``."""

from functools import partial
from typing import Any

from nexusquant import E8QuantizedCache, nexusquant

from peers.packages.adapt import QUANTISES, declared


def documented(keep_ratio: float) -> Any:
    """The README's call, which prints."""
    return nexusquant


def context(keep_ratio: float, bits: int = 3) -> Any:
    """The same without messages."""
    return partial(nexusquant, bits=bits, verbose=False)


def cache(keep_ratio: float, model: Any) -> Any:
    """The drop-in cache: the prompt is quantised, single tokens are not."""
    return E8QuantizedCache.from_model(model)


declared(documented, {**QUANTISES, "kind": "context", "bits": 3})
declared(context, lambda bits: {**QUANTISES, "kind": "context", "bits": bits}, {"bits": [3, 4]})
declared(cache, {**QUANTISES, "bits": (3, 2)})
