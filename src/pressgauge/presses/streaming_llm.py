"""``StreamingLLMPress``."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press


@dataclass(frozen=True)
class StreamingLLMPress(Press):
    """Retains the attention sinks and the most recent tokens.

    The score is the position (Xiao et al. 2023, arXiv 2309.17453). Unlike in the paper, keys keep their original
    positions; they are not re-rotated to their index in the cache.
    """

    fixed_scores: ClassVar[bool] = True
    sinks: int = 4

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Position of each entry: ``[B, K, N]``, integer."""
        return positions
