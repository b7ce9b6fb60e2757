"""``KeyDiffPress``."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press
from pressgauge.presses.ranking import wide

SHORTEST = 2.0**-20
"""Length of a sum of unit keys up to which it has no direction: they cancel, and what is left is rounding noise."""


def units(keys: Tensor, empty: Tensor) -> Tensor:
    """Keys of unit length, in float32 or wider; zeros where ``empty``, ``[B, K, N]`` bool, is True."""
    keys = wide(keys)
    lengths: Tensor = keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return keys / lengths.masked_fill(empty[..., None], torch.inf)


def direction(total: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum of unit keys divided by its length; zeros for one that is too short.

    Args:
        total: ``[..., 1, D]``.
        dtype: that of the result.
    """
    length = total.norm(dim=-1, keepdim=True)
    return torch.where(length <= SHORTEST, 0, total / length).to(dtype)


def cosines(unit: Tensor, mean: Tensor) -> Tensor:
    """Cosine similarity of unit keys ``[..., N, D]`` to a direction ``[..., 1, D]``: ``[..., N]``.

    That of a key does not depend on the other keys, to the last bit.
    """
    return (unit * mean).sum(dim=-1)


@dataclass(frozen=True)
class KeyDiffPress(Press):
    """Retains the keys that differ most from the others.

    The score is the negative cosine similarity between a key and the mean of the normalised keys currently in the cache
    (Park et al. 2025, arXiv 2504.15364). Keys that cancel have no mean direction, and tie.
    """

    any_order: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Negative cosine similarity to the mean direction: ``[B, K, N]``, in float32 or wider."""
        # Padding slots add nothing to the mean.
        unit = units(keys, positions < 0)
        # In float64, which Apple's devices lack, its last bits do not depend on the order of the entries.
        dtype = unit.dtype if unit.device.type == "mps" else torch.float64
        return -cosines(unit, direction(unit.sum(dim=2, keepdim=True, dtype=dtype), unit.dtype))
