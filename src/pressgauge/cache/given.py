"""The pressed cache of a run: the one that it was given, or a new one."""

from typing import Any

from transformers import DynamicCache, PretrainedConfig

from pressgauge.cache.cache import PressedCache
from pressgauge.models.support import of_config
from pressgauge.presses.base import Press


def pressed(cache: Any, press: Press, config: PretrainedConfig, prompt_length: int | None) -> PressedCache:
    """The pressed cache of a pass: the given one, an empty one converted in place, or a new one for None.

    Raises:
        ValueError: if the given one belongs to another press, is not empty, or is of another class.
    """
    if cache is None:
        return PressedCache(press, config, prompt_length=prompt_length)
    if isinstance(cache, PressedCache):
        if cache.press != press:
            raise ValueError(f"the cache belongs to {cache.press}, but the model carries {press}")
        return cache
    if isinstance(cache, DynamicCache):
        return PressedCache.adopt(cache, press, config, prompt_length=prompt_length)
    raise ValueError(f"a press cannot compress a {type(cache).__name__}: pass a DynamicCache, or none at all")


def by_cache(press: Press | None, config: PretrainedConfig) -> bool:
    """Whether a press serves a model by a plain cache, since it cannot be attached to it."""
    return press is not None and not press.needs_queries and of_config(config).by_cache


def unattached(cache: Any, press: Press, config: PretrainedConfig, prompt_length: int) -> PressedCache:
    """The pressed cache of a run by a plain cache, whose rows have no padding; arguments are those of ``pressed``."""
    found = pressed(cache, of_config(config).resolve(press), config, prompt_length)
    found.unpadded = True
    return found
