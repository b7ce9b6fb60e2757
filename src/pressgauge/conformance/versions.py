"""What differs between releases of transformers, told by signatures: how a model takes a cache, and gives it back."""

import inspect
from typing import Any

from transformers import LlamaForCausalLM

_TAKEN = inspect.signature(LlamaForCausalLM.forward).parameters
CACHE_NAMES = ("cache", "past_key_values")
CACHE = next(name for name in CACHE_NAMES if name in _TAKEN)
"""The name of the argument, and of the field of outputs."""


def using(cache: Any) -> dict[str, Any]:
    """The arguments with which a model, or its ``generate``, is given a cache."""
    return {CACHE: cache}


def cache_of(output: Any) -> Any:
    """The cache in what a model, or its ``generate``, returned."""
    return getattr(output, CACHE)
