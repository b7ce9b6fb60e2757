"""Name of the cache in the installed transformers, detected from signatures."""

import inspect
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

_TAKEN = inspect.signature(LlamaForCausalLM.forward).parameters
CACHE_NAMES = ("cache", "past_key_values")
CACHE = next(name for name in CACHE_NAMES if name in _TAKEN)
"""Name of the argument, and of the field of outputs."""


def using(cache: Any) -> dict[str, Any]:
    """Keyword arguments that pass a cache to a model or its ``generate``."""
    return {CACHE: cache}


_BY_POSITIONS = "cache_position" in inspect.signature(DynamicLayer.get_mask_sizes).parameters


def mask_sizes(cache: Any, seen: int, tokens: int, layer: int, device: torch.device) -> tuple[int, int]:
    """Length and offset of the keys that a cache announces for a pass of ``tokens`` tokens after ``seen``."""
    query = torch.arange(seen, seen + tokens, device=device) if _BY_POSITIONS else tokens
    length, offset = cache.get_mask_sizes(query, layer)
    return int(length), int(offset)


def cache_of(output: Any) -> Any:
    """Cache in the output of a model or its ``generate``."""
    return getattr(output, CACHE)


def returned_cache(output: Any) -> Any:
    """Cache in the output of any model, under whichever name; None if there is none.

    Outputs are iterated, since to ask them for the deprecated name is logged.
    """
    found = output.items() if isinstance(output, dict) else ()
    return next((value for name, value in found if name in CACHE_NAMES and value is not None), None)
