"""Likeness of keys to their mean direction during replay, for ``KeyDiffPress``.

Shapes: B batch, K KV heads, N slots, D head dimension.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pressgauge.history.held import AHEAD, Held
from pressgauge.presses.base import Press
from pressgauge.presses.keydiff import SHORTEST, KeyDiffPress, cosines, direction, units
from pressgauge.presses.ranking import last_of_lowest, surely_last_of_lowest
from pressgauge.storage import heavy, light

NOISE = 8
"""Units in the last place of 1 by which two ways to sum a product of unit vectors may differ."""


def compares(press: Press, keys: Tensor) -> bool:
    """Whether ``Likeness`` gives the scores of a press."""
    return type(press).score is KeyDiffPress.score and not press.needs_queries and keys.device.type == "cpu"


def _scores(likeness: Any, empty: Any) -> Any:
    """Scores that go by likeness: arrays ``[B * K, n]``, infinity where ``empty`` is True."""
    scores = -likeness
    scores[empty] = np.inf
    return scores


class Likeness:
    """Keys of unit length and their sum, kept from pass to pass.

    Args:
        held: retained entries.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self._units: Tensor | None = None
        """Those of the entries, of ones that were evicted, and of upcoming ones: ``[B * K, N, D]``."""
        self._array: Any
        """``_units`` as an array."""
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
        held, unit = self.held, self._units
        if unit is None or held.known > self._stop:
            unit = self._look()
        else:
            for slot in range(held.used - (held.known - self._known), held.used):
                self._sum += self._array[:, slot]
        self._known = held.known
        lengths = np.sqrt(np.einsum("ld,ld->l", self._sum, self._sum))
        if not np.isfinite(lengths).all():
            return None
        empty = held.vacant[:, :, candidates].reshape(len(held.lines), -1)
        chosen = None
        if lengths.min() > SHORTEST:
            # A product of matrices takes a third of the time, and rounds otherwise than the press.
            mean = (self._sum / lengths[:, None]).astype(self._array.dtype)
            scores = _scores((self._array[:, candidates] @ mean[:, :, None])[..., 0], empty)
            chosen = surely_last_of_lowest(scores, NOISE * float(np.finfo(scores.dtype).eps))
        if chosen is None:
            exact = cosines(unit[:, candidates], direction(heavy(self._sum)[:, None], unit.dtype))
            chosen = last_of_lowest(_scores(light(exact), empty))
        return chosen + candidates.start

    def _look(self) -> Tensor:
        held = self.held
        self._stop = min(held.known + AHEAD, held.source.shape[2])
        coming = held.source[:, :, held.known : self._stop]
        empty = torch.nn.functional.pad(held.empty, (0, coming.shape[2]))
        self._units = units(torch.cat([held.keys, coming], dim=2), empty).flatten(0, 1)
        self._array = light(self._units)
        self._sum = light(self._units[:, : held.used].sum(dim=1, dtype=torch.float64))
        return self._units

    def drop(self, slots: Any) -> None:
        """Evict the entry of each head at ``slots``, an array ``[B * K]``."""
        if self._units is not None:
            self._sum -= self._array[self.held.lines, slots]

    def keep(self, kept: Tensor) -> None:
        """Retain the entries at the indices ``[B, K, n]``."""
        self._units = None
