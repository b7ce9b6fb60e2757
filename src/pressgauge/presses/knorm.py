"""``KnormPress``."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press
from pressgauge.presses.ranking import wide


@dataclass(frozen=True)
class KnormPress(Press):
    """Retains the keys with the lowest L2 norm.

    The score is ``-||key||`` (Devoto et al. 2024, arXiv 2406.11430).
    """

    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Negative key norm: ``[B, K, N]``, computed in float32 or wider."""
        norm: Tensor = torch.linalg.vector_norm(wide(keys), dim=-1)
        return -norm
