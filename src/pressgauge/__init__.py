"""pressgauge: a bench for KV-cache compression.

What is public is imported when it is first used, since torch and transformers take seconds.
"""

from typing import TYPE_CHECKING

from pressgauge import lazy
from pressgauge.presses import PRESS_CLASSES

if TYPE_CHECKING:
    from pressgauge.cache import PressedCache
    from pressgauge.decoder import Generation, generate
    from pressgauge.history import replay
    from pressgauge.likelihood import Perplexity, perplexity
    from pressgauge.models.interface import cache_argument
    from pressgauge.presses.base import Press
    from pressgauge.presses.h2o import H2OPress
    from pressgauge.presses.keydiff import KeyDiffPress
    from pressgauge.presses.knorm import KnormPress
    from pressgauge.presses.random import RandomPress
    from pressgauge.presses.snapkv import SnapKVPress
    from pressgauge.presses.streaming_llm import StreamingLLMPress
    from pressgauge.presses.tova import TOVAPress

_PUBLIC = {
    "Generation": "decoder",
    "Perplexity": "likelihood",
    "Press": "presses.base",
    "PressedCache": "cache",
    "cache_argument": "models.interface",
    "generate": "decoder",
    "perplexity": "likelihood",
    "replay": "history",
    **{kind: f"presses.{module}" for module, kind in PRESS_CLASSES.values()},
}
"""Where each public name is defined."""

__all__ = [  # what is computed cannot be sorted
    "Generation",
    "H2OPress",
    "KeyDiffPress",
    "KnormPress",
    "Perplexity",
    "Press",
    "PressedCache",
    "RandomPress",
    "SnapKVPress",
    "StreamingLLMPress",
    "TOVAPress",
    "cache_argument",
    "generate",
    "perplexity",
    "replay",
]

__getattr__ = lazy.attributes(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
