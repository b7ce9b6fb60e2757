"""``StreamingLLMPress``."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press


@dataclass(frozen=True)
class StreamingLLMPress(Press):
    """Keeps the first tokens and the newest: the score is the position (Xiao et al. 2023, arXiv 2309.17453).

    Unlike in the paper, keys keep the positions that they were given; they are not rotated anew to their place in
    the cache.
    """

    fixed_scores: ClassVar[bool] = True
    sinks: int = 4

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the position, an integer."""
        return positions
