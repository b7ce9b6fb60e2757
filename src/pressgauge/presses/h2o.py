"""``H2OPress``."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from pressgauge.presses.attention_scores import AttentionSums, Votes
from pressgauge.presses.base import Press
from pressgauge.rules import as_written, exact_floor


@dataclass(frozen=True)
class H2OPress(Press):
    """Retains heavy hitters and recent tokens.

    The score is the cumulative attention that an entry has received from all queries since it was added (Zhang et al.
    2023, arXiv 2306.14048, section 4.2 and algorithm 1: ``F_score(T)`` is the sum of the normalised attention given to
    T, and the recent tokens take half of the budget).

    The sum favours old entries, which more queries attended to, as in the paper. In the paper every head has its own
    entries. With grouped queries, the heads that share a KV head are averaged, which gives the same ranking as their
    sum. The authors' code takes two ratios of the prompt length, one for heavy hitters and one for recent tokens, equal
    in the paper.

    Attributes:
        recent_share: share of the retained entries reserved for the newest tokens, rounded down; at least ``recent``
            tokens.

    Raises:
        TypeError: if ``recent_share`` is not a number.
        ValueError: if ``recent_share`` is outside [0, 1].
    """

    any_order: ClassVar[bool] = True
    needs_queries: ClassVar[bool] = True
    recent_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.recent_share, bool) or not isinstance(self.recent_share, Real):
            raise TypeError(f"recent_share must be a number in [0, 1], got {self.recent_share!r}")
        if not 0 <= float(self.recent_share) <= 1:
            raise ValueError(f"recent_share must be in [0, 1], got {self.recent_share}")

    @cached_property
    def _exact_share(self) -> Fraction:
        """``recent_share`` as the decimal value written."""
        return as_written(self.recent_share)

    def newest(self, kept: int) -> int:
        """Number of protected newest tokens: ``recent_share`` of ``kept``, or what the sinks leave."""
        return max(self.recent, min(exact_floor(self._exact_share, kept), kept - self.sinks))

    def votes(self) -> Votes:
        """Cumulative attention."""
        return AttentionSums()

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Cumulative attention received: ``[B, K, N]``, in float32 or wider."""
        assert votes is not None
        return votes.of(keys)

    def pooled(self, received: NDArray[Any], empty: NDArray[Any]) -> NDArray[Any]:
        """Cumulative attention received."""
        return received
