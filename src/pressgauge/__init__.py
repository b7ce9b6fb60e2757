"""pressgauge: a bench for KV-cache compression."""

from pressgauge.cache import PressedCache
from pressgauge.decoder import Generation, generate
from pressgauge.history import replay
from pressgauge.interface import cache_argument
from pressgauge.perplexity import Perplexity, perplexity
from pressgauge.press import (
    H2OPress,
    KeyDiffPress,
    KnormPress,
    Press,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)

__all__ = [
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
