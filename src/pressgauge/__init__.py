"""pressgauge: a bench for KV-cache compression.

Public names are imported on first use, since importing torch and transformers takes seconds.
"""

from typing import TYPE_CHECKING

from pressgauge import lazy, presses

if TYPE_CHECKING:
    from pressgauge.cache import PressedCache as PressedCache
    from pressgauge.decoder import Generation as Generation
    from pressgauge.decoder import generate as generate
    from pressgauge.history import replay as replay
    from pressgauge.likelihood import perplexity as perplexity
    from pressgauge.models.interface import cache_argument as cache_argument
    from pressgauge.observation import Seen as Seen
    from pressgauge.observation import watch as watch
    from pressgauge.presses import *  # noqa: F403  # the presses are listed there only
    from pressgauge.proof import VacuousWarning as VacuousWarning
    from pressgauge.uncompressed import Perplexity as Perplexity
    from pressgauge.uncompressed import Uncompressed as Uncompressed

_PUBLIC = {
    "Generation": "decoder",
    "Perplexity": "uncompressed",
    "PressedCache": "cache",
    "Seen": "observation",
    "Uncompressed": "uncompressed",
    "VacuousWarning": "proof",
    "cache_argument": "models.interface",
    "generate": "decoder",
    "perplexity": "likelihood",
    "replay": "history",
    "watch": "observation",
    **dict.fromkeys(presses.PUBLIC, "presses"),
}
"""Defining module of each public name."""

__all__ = sorted(_PUBLIC)

__getattr__ = lazy.attributes(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
