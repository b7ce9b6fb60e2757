"""``H2OPress``."""

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from torch import Tensor

from pressgauge.presses.attention_scores import AttentionSums, Votes
from pressgauge.presses.base import Press
from pressgauge.rules import exact_floor


@dataclass(frozen=True)
class H2OPress(Press):
    """Keeps the heavy hitters and the newest: the score is the attention that an entry has received, summed over all
    queries since it came (Zhang et al. 2023, arXiv 2306.14048, section 4.2 and algorithm 1: ``F_score(T)`` is the sum
    of the normalised attention that T is given, and the recent tokens take half of the budget).

    The sum favours old entries, which more queries have seen; so does the paper's. There every head keeps its own
    entries; with grouped queries the heads that read one KV head are averaged, which ranks as their sum does. The
    authors' code takes two shares of the prompt's length, for heavy hitters and for recent tokens, equal in the paper.

    Attributes:
        recent_share: the share of what stays that is the newest tokens, rounded down; ``recent`` of them at least.
    """

    needs_queries: ClassVar[bool] = True
    recent_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.recent_share, bool) or not isinstance(self.recent_share, Real):
            raise TypeError(f"recent_share must be a number in [0, 1], got {self.recent_share!r}")
        if not 0 <= float(self.recent_share) <= 1:
            raise ValueError(f"recent_share must be in [0, 1], got {self.recent_share}")

    def newest(self, kept: int) -> int:
        """A share of what stays, as far as the first tokens leave room for it."""
        return max(self.recent, min(exact_floor(self.recent_share, kept), kept - self.sinks))

    def votes(self) -> Votes:
        """Sums of attention."""
        return AttentionSums()

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the attention received so far, in float32 or wider."""
        assert votes is not None
        return votes.of(keys)
