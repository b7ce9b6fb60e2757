"""``PressedCache``, a transformers ``DynamicCache`` whose layers evict."""

from pressgauge.cache.cache import ASSISTED, PressedCache
from pressgauge.cache.given import by_cache, pressed, unattached
from pressgauge.cache.layer import Handed, PressedLayer, held_tokens, storage_nbytes
from pressgauge.cache.windowed import WindowedLayer

__all__ = [
    "ASSISTED",
    "Handed",
    "PressedCache",
    "PressedLayer",
    "WindowedLayer",
    "by_cache",
    "held_tokens",
    "pressed",
    "storage_nbytes",
    "unattached",
]
