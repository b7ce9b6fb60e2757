"""Replay of evictions with changing scores, pass by pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pressgauge.history.record import History
from pressgauge.presses.attention_scores import MOST, Attention, Votes, weights
from pressgauge.presses.base import Press, rank_entries
from pressgauge.presses.ranking import choose, last_choice, spare
from pressgauge.rules import Ledger
from pressgauge.softmax import PLAIN, Softmax
from pressgauge.storage import Storage, taken

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
        self._storage = Storage()
        self._storage.update(keys=keys[:, :, :0], positions=self._own[..., :0])
        self.padded = any(padding)
        self.known = self.holes = 0

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
        return self.positions < 0 if self.padded or self.holes else None

    def add(self, columns: int) -> None:
        """Append the entries up to column ``columns``."""
        storage, new = self._storage, slice(self.known, columns)
        start, end = storage.used, storage.used + columns - self.known
        storage.reserve(end, min(end + end // 2, self.source.shape[2]))
        storage.put("keys", start, self.source[:, :, new])
        storage.put("positions", start, self._own[:, :, new])
        self.known, storage.used = columns, end
        if self.padded:
            self.keys[:, :, start:].masked_fill_((self._own[:, :, new] < 0)[..., None], 0)

    def drop(self, slots: Tensor) -> Tensor:
        """Evict one entry of each head, at ``slots`` ``[B, K, 1]``, and return their positions."""
        keys, positions = (self._storage[name] for name in ("keys", "positions"))
        gone = positions.gather(2, slots)
        positions.scatter_(2, slots, -1)
        keys.scatter_(2, slots[..., None].expand(-1, -1, -1, keys.shape[3]), 0)
        self.holes += 1
        return gone

    def keep(self, kept: Tensor, positions: Tensor) -> None:
        """Retain the entries at the indices ``kept``, with their ``positions``: ``[B, K, n]``."""
        self._storage.take(kept, keys=taken(self._storage["keys"], kept), positions=positions)
        if self.padded:
            self._storage.zero(positions < 0)
        self.holes = 0


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
    """

    def __init__(self, votes: Votes, queries: Tensor, held: _Held, scale: float, softmax: Softmax = PLAIN) -> None:
        self.votes, self.queries, self.held, self.scale, self.softmax = votes, queries, held, scale, softmax
        self.group = queries.shape[1] // held.source.shape[1]
        self._weights: Tensor | None = None
        """Attention of the stretch's queries, 0 on evicted entries: ``[B * K, q * H / K, N]``."""
        self._left: Tensor
        """``[B * K, q * H / K]``: sum of these weights and that of the sinks, 1 before any eviction."""
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
        queries = self.queries[:, :, known : held.known]
        attention = Attention(queries, held.keys, held.filler, self.scale, self.softmax)
        self.votes.observe(_Foreseen(attention, self) if stretch else attention)

    def received(self, since: int) -> Tensor | None:
        """``Attention.received`` of the queries from token ``since`` on: ``[B, K, N]``.

        None if the weights exceed the memory limit.
        """
        if self._weights is None or not self._lasts(since):
            self._look(since)
        if self._weights is None:
            return None
        rows = self._rows(since)
        # Averages the query heads that share a KV head.
        shares = self._left[:, None, rows].mul(self.group).reciprocal_()
        return shares.bmm(self._weights[:, rows, : self.held.used]).view_as(self.held.positions)

    def _rows(self, since: int) -> slice:
        return slice((since - self._first) * self.group, (self.held.known - self._first) * self.group)

    def _lasts(self, since: int) -> bool:
        if since < self._first or self.held.known > self._stop:
            return False
        # False for NaN as well.
        return float(self._left[:, self._rows(since)].amin()) >= _LEAST

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
        self._weights = given.transpose(2, 3).flatten(2, 3).flatten(0, 1)
        self._left = given.new_ones(self._weights.shape[:2])

    def drop(self, slots: Tensor) -> None:
        """Evict the entry of each head at ``slots``, ``[B, K, 1]``."""
        if self._weights is not None and self.held.known <= self._stop:
            index = slots.view(-1, 1, 1).expand(*self._weights.shape[:2], 1)
            self._left -= self._weights.gather(2, index)[..., 0]
            self._weights.scatter_(2, index, 0)

    def keep(self, kept: Tensor) -> None:
        """Retain the entries at the indices ``[B, K, n]``."""
        self.votes.keep(kept)
        self._weights = None


class _Foreseen(Attention):
    """Attention of a pass, taken from the precomputed attention of a stretch."""

    def __init__(self, attention: Attention, voting: _Voting) -> None:
        super().__init__(attention.queries, attention.keys, attention.filler, attention.scale, attention.softmax)
        self.voting = voting

    def received(self) -> Tensor:
        found = self.received_from(self.queries.shape[2])
        return super().received() if found is None else found

    def received_from(self, last: int) -> Tensor | None:
        return self.voting.received(max(0, self.voting.held.known - last))


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
    history = History(keys.shape[0], keys.shape[1], keys.device)
    held = _Held(keys, padding)
    voting = None
    if press.needs_queries:
        assert queries is not None
        voting = _Voting(press.votes(), queries, held, scale, softmax)
    for length in passes:
        ledger.feed(length, [min(pad, ledger.columns + length) for pad in padding])
        if not ledger.cut:
            continue
        known = held.known
        held.add(ledger.columns)
        # Compacting moves the attention weights of all entries, which is expensive for a single eviction.
        single = not held.padded and held.used - held.holes - ledger.held[0] == 1
        if voting is not None:
            voting.observe(known, single)
        votes, positions = None if voting is None else voting.votes, held.positions
        ranks = spare(press, rank_entries(press, held.keys, positions, layer, votes), positions, ledger)
        kept = None
        if voting is not None and single:
            slots = last_choice(ranks)
            gone = held.drop(slots)
            voting.drop(slots)
            if held.holes > ledger.held[0] // 4:
                kept = (held.positions < 0).long().argsort(dim=-1, stable=True)[..., : ledger.held[0]]
                stays = held.positions.gather(2, kept)
        else:
            kept, stays, gone = choose(ranks, positions, ledger.held)
            # Holes rank last, and are not evictions.
            gone = gone[..., : gone.shape[2] - held.holes]
        if kept is not None:
            held.keep(kept, stays)
            if voting is not None:
                voting.keep(kept)
        history.record(gone, ledger.padding, ledger.columns)
    return history.evicted_at(ledger.columns, padding)
