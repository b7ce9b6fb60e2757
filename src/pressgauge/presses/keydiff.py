"""``KeyDiffPress``."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Follower, Press
from pressgauge.presses.ranking import last_of_lowest, wide

_STEPS = 2.0**30
"""Steps per 1 of a number that is summed."""


def _units(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised keys times ``_STEPS``, ``[..., D]`` in float32 or wider, and whether they are finite, ``[...]``."""
    keys = wide(keys)
    norm = torch.linalg.vector_norm(keys, dim=-1, keepdim=True)
    # Scaling by a power of two changes no digit.
    return keys / (norm.clamp(min=1e-12) / _STEPS), norm[..., 0].isfinite()


def _parts(units: Tensor) -> Tensor:
    """Numbers of ``[..., D]`` as integers, so that no digit of a sum depends on the order: ``[..., 1 or 2, D]`` int64.

    In float64, what is left of a number after its steps is in a second row, in ``_STEPS`` steps per step.
    """
    whole = units.long()
    parts = [whole] if units.dtype == torch.float32 else [whole, ((units - whole) * _STEPS).long()]
    return torch.stack(parts, dim=-2)


def _direction(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalised sum divided by ``_STEPS``: ``[..., 1, D]``."""
    total = sums[..., :1, :].to(dtype)
    if sums.shape[-2] > 1:
        total = total + sums[..., 1:, :].to(dtype) / _STEPS
    return normalize(total / _STEPS, dim=-1) / _STEPS


@dataclass(frozen=True)
class KeyDiffPress(Press):
    """Retains the keys that differ most from the others.

    The score is the negative cosine similarity between a key and the mean of the normalised keys currently in the cache
    (Park et al. 2025, arXiv 2504.15364). Keys that are not finite are left out of the mean.
    """

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Negative cosine similarity to the mean direction: ``[B, K, N]``, in float32 or wider."""
        units, finite = _units(keys)
        sums = _parts(units.masked_fill(((positions < 0) | ~finite)[..., None], 0)).sum(dim=-3)
        return -(units * _direction(sums, units.dtype)).sum(dim=-1)

    def follower(self, keys: Tensor, empty: Tensor, used: int) -> Follower | None:
        """The mean as entries come and go."""
        if type(self).score is not KeyDiffPress.score:
            return None
        units, finite = _units(keys)
        return _Mean(units.flatten(0, 1), empty.flatten(0, 1), used) if bool(finite.all()) else None


_MARGIN = 2**-8
"""Difference of scores beyond which entries rank by them, rounded as they are, and summed in any order."""


class _Mean(Follower):
    """Choices of ``KeyDiffPress``, among the entries with the lowest products from a faster kernel.

    Args:
        units: ``[L, S, D]``, one line per row and head, also of entries to come.
        empty: ``[L, S]`` bool, True at slots without an entry.
        used: number of slots before those of entries to come.
    """

    def __init__(self, units: Tensor, empty: Tensor, used: int) -> None:
        self.units, self.parts, self.known = units.numpy(), _parts(units).numpy(), used
        self.lines = np.arange(len(units))
        self.sums = _parts(units.masked_fill(empty[..., None], 0))[:, :used].sum(dim=1).numpy()
        self.shut = np.where(empty.numpy(), np.inf, 0).astype(self.units.dtype)
        """Infinity at slots without an entry, 0 at others."""

    def choose(self, used: int, candidates: slice) -> NDArray[Any]:
        self.sums += self.parts[:, self.known : used].sum(axis=1)
        self.known = used
        direction = -_direction(torch.from_numpy(self.sums), torch.from_numpy(self.units).dtype)
        scores = (self.units[:, candidates] @ direction.mT.numpy())[..., 0] + self.shut[:, candidates]
        line, slot = np.nonzero(scores <= scores.min(axis=1, keepdims=True) + _MARGIN)
        exact = torch.from_numpy(self.units[line, slot + candidates.start]) * direction[torch.from_numpy(line), 0]
        scores.fill(np.inf)
        scores[line, slot] = exact.sum(dim=-1).numpy()
        slots = last_of_lowest(scores) + candidates.start
        self.sums -= self.parts[self.lines, slots]
        self.shut[self.lines, slots] = np.inf
        return slots
