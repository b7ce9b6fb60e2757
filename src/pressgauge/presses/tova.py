"""``TOVAPress``."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pressgauge.presses.attention_scores import LastQueries, Votes
from pressgauge.presses.base import Press


@dataclass(frozen=True)
class TOVAPress(Press):
    """Keeps what the last token looks at: the score is the attention of the last query of the pass, averaged over all
    heads of the layer, which therefore all keep the same tokens (Oren et al. 2024, arXiv 2401.06104, section 4).

    As in the paper the last token is a candidate like all others; kvpress never evicts it, as ``recent=1`` does here.
    """

    needs_queries: ClassVar[bool] = True

    def votes(self) -> Votes:
        """The last query."""
        return LastQueries(1)

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the last query's attention, the same for all KV heads, in float32 or wider."""
        assert votes is not None
        received = votes.of(keys)
        return received.mean(dim=1, keepdim=True).expand_as(received)
