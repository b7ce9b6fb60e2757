"""Name of the cache in the installed transformers, detected from signatures."""

import inspect
from typing import Any

from transformers import LlamaForCausalLM

_TAKEN = inspect.signature(LlamaForCausalLM.forward).parameters
CACHE_NAMES = ("cache", "past_key_values")
CACHE = next(name for name in CACHE_NAMES if name in _TAKEN)
"""Name of the argument, and of the field of outputs."""


def using(cache: Any) -> dict[str, Any]:
    """Keyword arguments that pass a cache to a model or its ``generate``."""
    return {CACHE: cache}


def cache_of(output: Any) -> Any:
    """Cache in the output of a model or its ``generate``."""
    return getattr(output, CACHE)
