"""``KeyDiffPress``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press
from pressgauge.presses.ranking import wide


@dataclass(frozen=True)
class KeyDiffPress(Press):
    """Retains the keys that differ most from the others.

    The score is the negative cosine similarity between a key and the mean of the normalised keys currently in the cache
    (Park et al. 2025, arXiv 2504.15364).
    """

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Negative cosine similarity to the mean direction: ``[B, K, N]``, in float32 or wider."""
        keys = wide(keys)
        # Padding slots are divided by infinity, and add nothing to the mean.
        lengths: Tensor = keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        lengths = lengths.masked_fill((positions < 0)[..., None], torch.inf)
        unit = keys / lengths
        mean = unit.sum(dim=2, keepdim=True)
        return -(unit * torch.nn.functional.normalize(mean, dim=-1)).sum(dim=-1)
