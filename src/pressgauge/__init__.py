"""pressgauge: a bench for KV-cache compression."""

from pressgauge.cache import PressedCache
from pressgauge.decoder import Generation, generate
from pressgauge.history import replay
from pressgauge.perplexity import Perplexity, perplexity
from pressgauge.press import KeyDiffPress, KnormPress, Press, RandomPress, StreamingLLMPress

__all__ = [
    "Generation",
    "KeyDiffPress",
    "KnormPress",
    "Perplexity",
    "Press",
    "PressedCache",
    "RandomPress",
    "StreamingLLMPress",
    "generate",
    "perplexity",
    "replay",
]
