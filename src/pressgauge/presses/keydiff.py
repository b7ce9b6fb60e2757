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


def _sums(units: Tensor) -> Tensor:
    """Sums of the ``_units`` over dim -2, in steps: ``[..., 1 or 2, D]`` int64.

    Integers, so that no digit depends on the order of the entries. In float64, a second row sums what is left of each
    number after its steps, in ``_STEPS`` steps per step.
    """
    whole = units.long()
    parts = [whole] if units.dtype == torch.float32 else [whole, ((units - whole) * _STEPS).long()]
    return torch.stack([part.sum(dim=-2) for part in parts], dim=-2)


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
        sums = _sums(units.masked_fill(((positions < 0) | ~finite)[..., None], 0))
        return -(units * _direction(sums, units.dtype)).sum(dim=-1)

    def follower(self, keys: Tensor, empty: Tensor, used: int) -> Follower | None:
        """The mean as entries come and go."""
        if type(self).score is not KeyDiffPress.score:
            return None
        units, finite = _units(keys)
        return _Mean(units.flatten(0, 1), empty.flatten(0, 1), used) if bool(finite.all()) else None


_POOL = 64
"""Number of the lowest-ranked entries that are scored while no other can rank lower."""
_MARGIN = 2**-8
"""Difference of scores beyond which entries rank by them, rounded as they are."""


class _Mean(Follower):
    """Choices of ``KeyDiffPress`` among few entries: the others cannot have moved further than the mean direction.

    Args:
        units: ``[L, S, D]``, one line per row and head, also of entries to come.
        empty: ``[L, S]`` bool, True at slots without an entry.
        used: number of slots before those of entries to come.
    """

    def __init__(self, units: Tensor, empty: Tensor, used: int) -> None:
        self.units, self.known = units.numpy(), used
        self.lines = np.arange(len(units))[:, None]
        self.sums = _sums(units[:, :used].masked_fill(empty[:, :used, None], 0))
        self.shut = np.where(empty.numpy(), np.inf, 0).astype(self.units.dtype)
        """Infinity at slots without an entry, 0 at others."""
        self.pool = np.empty((len(units), 0), dtype=np.int64)
        """Slots ``[L, P]``, ascending, those of entries to come included."""
        self.few: Tensor
        """Their units ``[L, P, D]``."""
        self.then: Tensor
        """``_direction`` when the pool was chosen."""
        self.rest: NDArray[Any]
        """Lowest score outside the pool then, or less: ``[L]``."""

    def choose(self, used: int, candidates: slice) -> NDArray[Any]:
        if used > self.known:
            self.sums += _sums(torch.from_numpy(self.units[:, self.known : used]))
            self.known = used
        slots = self._chosen(candidates)
        self.sums -= _sums(torch.from_numpy(self.units[self.lines, slots[:, None]]))
        self.shut[self.lines[:, 0], slots] = np.inf
        return slots

    def _chosen(self, candidates: slice) -> NDArray[Any]:
        units = torch.from_numpy(self.units)
        direction = _direction(self.sums, units.dtype)
        if self.pool.shape[1]:
            scores = -(self.few * direction).sum(dim=-1).numpy() + self.shut[self.lines, self.pool]
            scores[self.pool >= candidates.stop] = np.inf
            moved = torch.linalg.vector_norm((direction - self.then) * _STEPS, dim=-1)[:, 0].numpy()
            if (scores.min(axis=1) < self.rest - moved - _MARGIN).all():
                return self.pool[self.lines[:, 0], last_of_lowest(scores)]
        scores = -(units[:, : self.known] * direction).sum(dim=-1).numpy() + self.shut[:, : self.known]
        first = candidates.start
        size = min(_POOL, self.known - first)
        lowest = first + scores[:, first:].argpartition(size - 1, axis=1)[:, :size]
        self.rest = scores[self.lines, lowest].max(axis=1)
        lowest.sort(axis=1)
        coming = np.arange(self.known, self.units.shape[1])
        self.pool = np.concatenate([lowest, np.broadcast_to(coming, (len(lowest), len(coming)))], axis=1)
        self.few, self.then = torch.from_numpy(self.units[self.lines, self.pool]), direction
        return last_of_lowest(scores[:, candidates]) + first
