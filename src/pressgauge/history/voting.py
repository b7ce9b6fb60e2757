"""Attention scores during replay.

Shapes: B batch, H query heads, K KV heads, T tokens, N slots, q queries, D head dimension.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pressgauge.history.held import AHEAD, Held
from pressgauge.models.heads import split_given_to
from pressgauge.presses.attention_scores import MOST, Attention, AttentionSums, LastQueries, Votes, weights
from pressgauge.presses.base import Press, together
from pressgauge.presses.ranking import last_of_lowest
from pressgauge.softmax import PLAIN, Softmax
from pressgauge.storage import heavy, light

_LEAST = 1 / 8
"""Minimum share of a query's attention on retained entries.

Renormalising a smaller share would lose too many digits of float32.
"""


def follows(press: Press, votes: Votes) -> bool:
    """Whether ``Press.pooled`` gives the scores of a press."""
    own = together(press, "pooled", "score", "votes")
    return own and type(votes) in (AttentionSums, LastQueries) and split_given_to(press) is None


class Voting:
    """Attention scores during replay.

    For passes that each evict one entry, the attention from the queries of a stretch of tokens to the retained entries
    and to each other is computed in one batch, since pass by pass it is expensive. After an eviction, the weights of
    the remaining entries are renormalised.

    Args:
        votes: attention state of the layer.
        queries: ``[B, H, T, D]``, of the whole text.
        held: retained entries.
        scale: scaling factor of the query-key products.
        softmax: softmax of the layer.
        follows: whether ``Press.pooled`` may be used.
    """

    def __init__(
        self,
        votes: Votes,
        queries: Tensor,
        held: Held,
        scale: float,
        softmax: Softmax = PLAIN,
        *,
        follows: bool = False,
    ) -> None:
        self.votes, self.queries, self.held, self.scale, self.softmax = votes, queries, held, scale, softmax
        self.group = queries.shape[1] // held.source.shape[1]
        self._follows = follows and queries.device.type == "cpu"
        self._behind = False
        """Whether ``votes`` lack the last queries."""
        self._sound: bool
        """Whether the weights of the stretch, and sums of attention before it, are finite."""
        self._shut: Any
        """Infinity at padding slots of the stretch, 0 at others: array ``[B, K, N]``."""
        self._weights: Any = None
        """Attention of the stretch's queries, 0 on evicted entries: array ``[B * K, q * H / K, N]``."""
        self._left: Any
        """Array ``[B * K, q * H / K]``: sum of these weights and that of the sinks, 1 before any eviction."""
        self._first: int
        self._stop: int
        """First token of the stretch, and the token after its last."""

    def observe(self, known: int, stretch: bool) -> None:
        """Update the attention state with the pass that begins with token ``known``.

        Args:
            known: tokens fed before the pass.
            stretch: whether to take the attention from that of a stretch.
        """
        held = self.held
        if self._behind and isinstance(self.votes, LastQueries):
            known = max(0, known - self.votes.most)
        self._behind = False
        queries = self.queries[:, :, known : held.known]
        attention = Attention(queries, held.keys, held.filler, self.scale, self.softmax)
        self.votes.observe(_Foreseen(attention, self) if stretch else attention)

    def followed(self, press: Press, known: int, candidates: slice) -> Any:
        """Update the attention state, and choose among candidates: array ``[B * K]``.

        Equals ``observe``, ``Press.score`` and ``last_choice``, in a fraction of the time. None if there is no such
        shortcut.

        Args:
            press: the press.
            known: tokens fed before the pass.
            candidates: slots.
        """
        votes, held = self.votes, self.held
        if not self._follows:
            return None
        since = max(0, held.known - votes.most) if isinstance(votes, LastQueries) else known
        found = self.received(since)
        if found is None or not self._sound:
            return None
        if isinstance(votes, LastQueries):
            found /= held.known - since
            self._behind = True
        else:
            assert isinstance(votes, AttentionSums)
            if votes.sums is not None:
                found[..., : votes.sums.shape[2]] += light(votes.sums)
            votes.sums = heavy(found)
        scores = press.pooled(found, held.vacant)[..., candidates] + self._shut[..., candidates]
        return last_of_lowest(scores.reshape(len(held.lines), -1)) + candidates.start

    def received(self, since: int) -> Any:
        """``Attention.received`` of the queries from token ``since`` on: array ``[B, K, N]``.

        None if the weights exceed the memory limit.
        """
        if self._weights is None or not self._lasts(since):
            self._look(since)
        if self._weights is None:
            return None
        rows = self._rows(since)
        # Averages the query heads that share a KV head.
        shares = 1 / (self._left[:, None, rows] * self.group)
        given = self._weights[:, rows, : self.held.used]
        found = shares * given if given.shape[1] == 1 else shares @ given
        return found.reshape(*self.queries.shape[:1], -1, self.held.used)

    def _rows(self, since: int) -> slice:
        return slice((since - self._first) * self.group, (self.held.known - self._first) * self.group)

    def _lasts(self, since: int) -> bool:
        if since < self._first or self.held.known > self._stop:
            return False
        # False for NaN as well.
        return float(self._left[:, self._rows(since)].min()) >= _LEAST

    def _look(self, since: int) -> None:
        held = self.held
        lines, past = self.queries.shape[0] * self.queries.shape[1], held.known - since
        ahead = min(AHEAD, self.queries.shape[2] - held.known)
        self._weights = None
        if lines * past * held.used > MOST:
            return
        while lines * (past + ahead) * (held.used + ahead) > MOST:
            ahead //= 2
        self._first, self._stop = since, held.known + ahead
        queries, coming = self.queries[:, :, since : self._stop], held.source[:, :, held.known : self._stop]
        filler = held.filler
        if filler is not None:
            filler = torch.nn.functional.pad(filler, (0, ahead))
        given = weights(queries, torch.cat([held.keys, coming], dim=2), filler, self.scale, self.softmax)
        flat = given.transpose(2, 3).flatten(2, 3).flatten(0, 1)
        self._weights, self._left = light(flat), light(flat.new_ones(flat.shape[:2]))
        if self._follows:
            sums = self.votes.sums if isinstance(self.votes, AttentionSums) else None
            self._sound = bool(np.isfinite(self._weights.sum() + (0 if sums is None else float(sums.sum()))))
            self._shut = np.zeros(given.shape[:2] + given.shape[4:], dtype=self._weights.dtype)
            self._shut[..., : held.used][light(held.empty)] = np.inf

    def drop(self, slots: Any) -> None:
        """Evict the entry of each head at ``slots``, an array ``[B * K]``."""
        if self._weights is not None and self.held.known <= self._stop:
            lines = self.held.lines
            self._left -= self._weights[lines, :, slots]
            self._weights[lines, :, slots] = 0
            if self._follows:
                self._shut.reshape(len(lines), -1)[lines, slots] = np.inf

    def keep(self, kept: Tensor) -> None:
        """Retain the entries at the indices ``[B, K, n]``."""
        self.votes.keep(kept)
        self._weights = None


class _Foreseen(Attention):
    """Attention of a pass, taken from the precomputed attention of a stretch."""

    def __init__(self, attention: Attention, voting: Voting) -> None:
        super().__init__(attention.queries, attention.keys, attention.filler, attention.scale, attention.softmax)
        self.voting = voting

    def received(self) -> Tensor:
        found = self.received_from(self.queries.shape[2])
        return super().received() if found is None else found

    def received_from(self, last: int) -> Tensor | None:
        found = self.voting.received(max(0, self.voting.held.known - last))
        return None if found is None else heavy(found)
