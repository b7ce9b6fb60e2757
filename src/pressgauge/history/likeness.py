"""Likeness of keys to their mean direction during replay, for ``KeyDiffPress``.

Shapes: B batch, K KV heads, N slots, D head dimension.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pressgauge.history.held import AHEAD, Held
from pressgauge.presses.base import Press
from pressgauge.presses.keydiff import KeyDiffPress, units
from pressgauge.presses.ranking import last_of_lowest
from pressgauge.storage import light


def compares(press: Press, keys: Tensor) -> bool:
    """Whether ``Likeness`` gives the scores of a press."""
    return type(press).score is KeyDiffPress.score and keys.device.type == "cpu"


class Likeness:
    """Keys of unit length and their sum, kept from pass to pass.

    Args:
        held: retained entries.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self._units: Any = None
        """Those of the entries, of ones that were evicted, and of upcoming ones: array ``[B * K, N, D]``."""
        self._sum: Any
        """Sum of those of the entries: array ``[B * K, D]`` float64."""
        self._known: int
        """Tokens whose entries are in the sum."""
        self._stop: int
        """The token after the last upcoming one."""

    def followed(self, candidates: slice) -> Any:
        """Choose among candidates: array ``[B * K]``.

        Equals ``KeyDiffPress.score`` and ``last_choice``, in a fraction of the time. None if a key is not finite.

        Args:
            candidates: slots.
        """
        held = self.held
        if self._units is None or held.known > self._stop:
            self._look()
        else:
            came = held.known - self._known
            self._sum += self._units[:, held.used - came : held.used].sum(axis=1)
        self._known = held.known
        lengths = np.linalg.norm(self._sum, axis=-1, keepdims=True)
        if not np.isfinite(lengths).all():
            return None
        mean = (self._sum / np.maximum(lengths, 1e-12)).astype(self._units.dtype)
        scores = -(self._units[:, candidates] @ mean[:, :, None])[..., 0]
        scores[held.vacant[:, :, candidates].reshape(scores.shape)] = np.inf
        return last_of_lowest(scores) + candidates.start

    def _look(self) -> None:
        held = self.held
        self._stop = min(held.known + AHEAD, held.source.shape[2])
        coming = held.source[:, :, held.known : self._stop]
        empty = torch.nn.functional.pad(held.empty, (0, coming.shape[2]))
        self._units = light(units(torch.cat([held.keys, coming], dim=2), empty).flatten(0, 1))
        self._sum = self._units[:, : held.used].sum(axis=1, dtype=np.float64)

    def drop(self, slots: Any) -> None:
        """Evict the entry of each head at ``slots``, an array ``[B * K]``."""
        if self._units is not None:
            self._sum -= self._units[self.held.lines, slots]

    def keep(self, kept: Tensor) -> None:
        """Retain the entries at the indices ``[B, K, n]``."""
        self._units = None
