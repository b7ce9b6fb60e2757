"""A press that looks at queries: the smallest there is."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pressgauge import Press


@dataclass(frozen=True)
class QueryPress(Press):
    """Scores an entry by its key's product with the newest query."""

    needs_queries: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, queries: Tensor | None = None) -> Tensor:
        assert queries is not None
        return (keys * queries[:, : keys.shape[1], -1:]).sum(dim=-1)
