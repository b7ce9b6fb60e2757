"""A minimal press that needs queries."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pressgauge import Press
from pressgauge.presses.attention_scores import LastQueries, Votes


@dataclass(frozen=True)
class QueryPress(Press):
    """Scores an entry by the product of its key and the newest query."""

    fixed_scores: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = True

    def votes(self) -> Votes:
        return LastQueries(1)

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert isinstance(votes, LastQueries)
        return (keys * votes.queries[:, : keys.shape[1]]).sum(dim=-1)
