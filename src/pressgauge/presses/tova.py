"""``TOVAPress``."""

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from pressgauge.models.heads import split_given_to
from pressgauge.presses.attention_scores import LastQueries, Votes
from pressgauge.presses.base import Press


@dataclass(frozen=True)
class TOVAPress(Press):
    """Retains the entries that the last token attends to.

    The score is the attention from the last query of the pass, averaged over all heads of the layer, so that all heads
    retain the same tokens (Oren et al. 2024, arXiv 2401.06104, section 4).

    As in the paper, the last token is a candidate for eviction like all others. kvpress never evicts it; ``recent=1``
    does the same here.
    """

    any_order: ClassVar[bool] = True
    needs_queries: ClassVar[bool] = True

    def votes(self) -> Votes:
        """Last query of the pass."""
        return LastQueries(1)

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Mean attention from the last query, equal for all KV heads: ``[B, K, N]``.

        In float32 or wider.
        """
        assert votes is not None
        received = votes.of(keys)
        split = split_given_to(self)
        mean = received.mean(dim=1, keepdim=True) if split is None else split.mean(received)
        return mean.expand_as(received)

    def pooled(self, received: NDArray[Any], empty: NDArray[Any]) -> NDArray[Any]:
        """Mean attention from the last query."""
        mean: NDArray[Any] = received.mean(axis=1, keepdims=True)
        return mean
