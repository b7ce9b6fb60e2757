"""randkv: ``RandKVCache(model_config=..., prompt_length=..., randkv_config=...)``."""

from typing import Any

from randkv import RandKVConfig
from randkv.transformers import RandKVCache

from peers.packages.adapt import NEITHER, declared

BUDGET = 64
BUFFER = 8


def factory(keep_ratio: float, model: Any, prompt_length: int) -> Any:
    """The README's call, with a budget shorter than the texts here: prompts longer than it are refused."""
    config = RandKVConfig(budget=BUDGET, buffer_size=BUFFER)
    return RandKVCache(model_config=model.config, prompt_length=prompt_length, randkv_config=config)


def target(seen: int, held: int) -> int:
    """ "Immediately after eviction K + r positions; between rounds it can grow to K + 2r - 1"."""
    first = seen == held and held > BUDGET + BUFFER
    return BUDGET + BUFFER if first or held >= BUDGET + 2 * BUFFER else held


# "Batch size one"; "every head receives an independent draw"; "a recent buffer is excluded from selection".
declared(factory, {**NEITHER, "target": target, "recent": BUFFER, "padding": None})
