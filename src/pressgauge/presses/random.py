"""``RandomPress``."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pressgauge.models.heads import split_given_to
from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press


def _signed(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True)
class RandomPress(Press):
    """Retains random entries.

    The score is a hash of (seed, layer, head, position in the row) and nothing else.

    Attributes:
        seed: seed of the hash.
    """

    fixed_scores: ClassVar[bool] = True
    seed: int = 0

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """26 bits of a 64-bit hash (MurmurHash3's finaliser): ``[B, K, N]`` int64."""
        split = split_given_to(self)
        first = 0 if split is None else split.first(keys.shape[1])
        heads = torch.arange(first, first + keys.shape[1], device=keys.device)[:, None]
        mixed = positions.long() * _signed(0x9E3779B97F4A7C15) + heads * _signed(0xC2B2AE3D27D4EB4F)
        mixed = mixed + _signed(layer * 0x165667B19E3779F9 + self.seed * 0x27D4EB2F165667C5)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * _signed(factor)
        return (mixed ^ (mixed >> 33)) & 0x3FFFFFF
