"""``KeyDiffPress``."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press
from pressgauge.presses.ranking import wide


def units(keys: Tensor, empty: Tensor) -> Tensor:
    """Keys of unit length, in float32 or wider; zeros where ``empty``, ``[B, K, N]`` bool, is True."""
    keys = wide(keys)
    lengths: Tensor = keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return keys / lengths.masked_fill(empty[..., None], torch.inf)


@dataclass(frozen=True)
class KeyDiffPress(Press):
    """Retains the keys that differ most from the others.

    The score is the negative cosine similarity between a key and the mean of the normalised keys currently in the cache
    (Park et al. 2025, arXiv 2504.15364).
    """

    any_order: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Negative cosine similarity to the mean direction: ``[B, K, N]``, in float32 or wider."""
        # Padding slots add nothing to the mean.
        unit = units(keys, positions < 0)
        mean = unit.sum(dim=2, keepdim=True)
        return -(unit * torch.nn.functional.normalize(mean, dim=-1)).sum(dim=-1)
