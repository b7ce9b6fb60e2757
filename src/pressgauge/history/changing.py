"""Replay of evictions with changing scores, pass by pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pressgauge.history.record import History
from pressgauge.models.heads import split_given_to
from pressgauge.presses.attention_scores import MOST, Attention, AttentionSums, LastQueries, Votes, weights
from pressgauge.presses.base import Follower, Press, rank_entries, score_entries
from pressgauge.presses.ranking import choose, last_choice, last_of_lowest, spare
from pressgauge.rules import Ledger
from pressgauge.softmax import PLAIN, Softmax
from pressgauge.storage import Storage, heavy, light, taken

_AHEAD = 64
"""Number of upcoming tokens whose attention is precomputed in one batch."""

_LEAST = 1 / 8
"""Minimum share of a query's attention on retained entries.

Renormalising a smaller share would lose too many digits of float32.
"""


class _Held:
    """Retained entries of one layer during replay, in order of position.

    An entry evicted alone leaves a hole, which is a padding slot.
    """

    def __init__(self, keys: Tensor, padding: Sequence[int]) -> None:
        self.source = keys
        rows, heads, tokens, _ = keys.shape
        offset = torch.tensor(padding, device=keys.device)[:, None, None]
        self._own = (torch.arange(tokens, device=keys.device) - offset).clamp(min=-1).expand(rows, heads, tokens)
        self.lines = light(torch.arange(rows * heads, device=keys.device))
        self._storage = Storage()
        self._storage.update(keys=keys[:, :, :0], positions=self._own[..., :0], empty=self._own[..., :0] < 0)
        self._arrays: list[Any] = []
        self._stored = 0
        """Number of columns in storage, which has some before they are known."""
        self.padded = any(padding)
        self.known = self.holes = 0
        self.moved = 0
        """How often entries were moved, or entries to come stored."""

    @property
    def used(self) -> int:
        """Number of slots, holes included."""
        return self._storage.used

    @property
    def keys(self) -> Tensor:
        """``[B, K, N, D]``, zeros at padding slots."""
        return self._storage.held("keys")

    @property
    def positions(self) -> Tensor:
        """``[B, K, N]``, -1 at padding slots."""
        return self._storage.held("positions")

    @property
    def filler(self) -> Tensor | None:
        """``[B, K, N]`` bool, True at padding slots; None if there are none."""
        return self.empty if self.padded or self.holes else None

    @property
    def empty(self) -> Tensor:
        """``[B, K, N]`` bool, True at padding slots."""
        return self._storage.held("empty")

    def add(self, columns: int) -> None:
        """Append the entries up to column ``columns``."""
        if columns > self._stored:
            self._store(min(columns + _AHEAD, self.source.shape[2]))
        self._storage.used += columns - self.known
        self.known = columns

    def _store(self, columns: int) -> None:
        storage, new = self._storage, slice(self._stored, columns)
        start = storage.used + self._stored - self.known
        end = start + columns - self._stored
        if end > storage["keys"].shape[2]:
            used, storage.used = storage.used, start
            storage.reserve(end, min(end + end // 2, self.source.shape[2]))
            storage.used = used
        own = self._own[:, :, new]
        storage.put("keys", start, self.source[:, :, new])
        storage.put("positions", start, own)
        storage.put("empty", start, own < 0)
        if self.padded:
            storage["keys"][:, :, start:end].masked_fill_((own < 0)[..., None], 0)
        self._stored, self._arrays = columns, []
        self.moved += 1

    def drop(self, slots: Any) -> Any:
        """Evict one entry of each head, and return their positions.

        Args:
            slots: array ``[B * K]``, as is the result.
        """
        if not self._arrays:
            keys, *others = (self._storage[name] for name in ("keys", "positions", "empty"))
            # NumPy has no bfloat16, and zero has no bits.
            tensors = [keys.view(torch.uint8), *others]
            self._arrays = [light(tensor).reshape(len(self.lines), *tensor.shape[2:]) for tensor in tensors]
        keys, positions, empty = self._arrays
        gone = positions[self.lines, slots]
        positions[self.lines, slots] = -1
        keys[self.lines, slots] = 0
        empty[self.lines, slots] = True
        self.holes += 1
        return gone

    def follower(self, press: Press) -> Follower | None:
        """A follower of the press, as long as entries have the slots that they have now."""
        if self.padded or self.source.device.type != "cpu":
            return None
        stored = self.used + self._stored - self.known
        keys, empty = (self._storage[name][:, :, :stored] for name in ("keys", "empty"))
        return press.follower(keys, empty, self.used)

    def keep(self, kept: Tensor, positions: Tensor) -> None:
        """Retain the entries at the indices ``kept``, with their ``positions``: ``[B, K, n]``."""
        empty = positions < 0
        self._storage.take(kept, keys=taken(self._storage["keys"], kept), positions=positions, empty=empty)
        if self.padded:
            self._storage.zero(empty)
        self.holes, self._stored, self._arrays = 0, self.known, []
        self.moved += 1


class _Voting:
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
        held: _Held,
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
        scores = press.pooled(found, light(held.empty))[..., candidates] + self._shut[..., candidates]
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
        ahead = min(_AHEAD, self.queries.shape[2] - held.known)
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
            sums = getattr(self.votes, "sums", None)
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


def _follows(press: Press, votes: Votes) -> bool:
    """Whether ``Press.pooled`` gives the scores of a press: none of its parts is defined by another class."""
    kinds = {next(kind for kind in type(press).__mro__ if part in vars(kind)) for part in ("pooled", "score", "votes")}
    return len(kinds) == 1 and type(votes) in (AttentionSums, LastQueries) and split_given_to(press) is None


class _Foreseen(Attention):
    """Attention of a pass, taken from the precomputed attention of a stretch."""

    def __init__(self, attention: Attention, voting: _Voting) -> None:
        super().__init__(attention.queries, attention.keys, attention.filler, attention.scale, attention.softmax)
        self.voting = voting

    def received(self) -> Tensor:
        found = self.received_from(self.queries.shape[2])
        return super().received() if found is None else found

    def received_from(self, last: int) -> Tensor | None:
        found = self.voting.received(max(0, self.voting.held.known - last))
        return None if found is None else heavy(found)


def replay_changing(
    press: Press,
    keys: Tensor,
    layer: int,
    passes: Sequence[int],
    ledger: Ledger,
    padding: Sequence[int],
    queries: Tensor | None,
    scale: float,
    softmax: Softmax,
) -> Tensor:
    """Replay evictions with changing scores, each over the entries retained at the time.

    Args:
        press, keys, layer, passes, padding, queries, scale: as in ``replay``.
        softmax: softmax of the layer.
        ledger: a new ledger of the press.

    Returns:
        ``evicted_at``: ``[B, K, T]`` int32.
    """
    keys = keys.detach()
    history = History(keys.shape[0], keys.shape[1], keys.device)
    held = _Held(keys, padding)
    voting = None
    if press.needs_queries:
        assert queries is not None
        state = press.votes()
        voting = _Voting(state, queries.detach(), held, scale, softmax, follows=_follows(press, state))
    follower, moved = None, -1
    released = 0
    alone: list[Tensor] = []
    ends: list[int] = []
    """Positions of entries evicted alone, per pass, and the columns fed by its end."""
    for length in passes:
        ledger.feed(length, [min(pad, ledger.columns + length) for pad in padding])
        if not ledger.cut:
            continue
        known = held.known
        held.add(ledger.columns)
        keep = ledger.held[0]
        newest = press.newest(keep)
        # Protected entries are in the first and the last slots, unless some were evicted when they were not protected.
        single = not held.padded and held.used - held.holes - keep == 1
        single = single and press.sinks + newest <= keep and ledger.columns - newest >= released
        released = ledger.columns - newest
        candidates = slice(press.sinks, held.used - newest)
        # Compacting moves the attention weights of all entries, which is expensive for a single eviction.
        slots = None
        if single and voting is not None:
            slots = voting.followed(press, known, candidates)
        elif single:
            if moved != held.moved:
                follower, moved = held.follower(press), held.moved
            slots = None if follower is None else follower.choose(held.used, candidates)
        votes, positions, kept = None if voting is None else voting.votes, held.positions, None
        if voting is not None and slots is None:
            voting.observe(known, single)
            if single:
                scores = score_entries(press, held.keys, positions, layer, votes)
                slots = last_choice(scores[..., candidates], held.empty[..., candidates]) + press.sinks
        if slots is not None:
            alone.append(heavy(held.drop(slots)))
            ends.append(ledger.columns)
            if voting is not None:
                voting.drop(slots)
            if held.holes > keep // 4:
                kept = held.empty.long().argsort(dim=-1, stable=True)[..., :keep]
                stays = positions.gather(2, kept)
        else:
            ranks = spare(press, rank_entries(press, held.keys, positions, layer, votes), positions, ledger)
            kept, stays, gone = choose(ranks, positions, ledger.held)
            # Holes rank last, and are not evictions.
            history.record(gone[..., : gone.shape[2] - held.holes], ledger.padding, ledger.columns)
        if kept is not None:
            held.keep(kept, stays)
            if voting is not None:
                voting.keep(kept)
    if alone:
        history.record(torch.stack(alone, dim=-1).unflatten(0, keys.shape[:2]), padding, ends)
    return history.evicted_at(ledger.columns, padding)
