"""Replays evictions where scores change: from one eviction to the next."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pressgauge.history.record import History
from pressgauge.presses.attention_scores import MOST, Attention, Votes, weights
from pressgauge.presses.base import Press, rank_entries
from pressgauge.presses.ranking import choose, last_choice, spare
from pressgauge.rules import Ledger
from pressgauge.storage import Storage, taken

_AHEAD = 64
"""Tokens whose queries are asked at once, before their passes come."""

_LEAST = 1 / 8
"""What has to be left of a query's attention: of less, float32 would leave too few digits."""


class _Held:
    """What one layer holds while its evictions are replayed: in order of position, with holes where one entry at a
    time was evicted, which are filler like padding."""

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
        """Slots, holes included."""
        return self._storage.used

    @property
    def keys(self) -> Tensor:
        """``[B, K, N, D]``, zeros at filler."""
        return self._storage.held("keys")

    @property
    def positions(self) -> Tensor:
        """``[B, K, N]``, -1 at filler."""
        return self._storage.held("positions")

    @property
    def filler(self) -> Tensor | None:
        """``[B, K, N]``, where there is filler; None for nowhere."""
        return self.positions < 0 if self.padded or self.holes else None

    def add(self, columns: int) -> None:
        """Take in the columns up to this number."""
        storage, new = self._storage, slice(self.known, columns)
        start, end = storage.used, storage.used + columns - self.known
        storage.reserve(end, min(end + end // 2, self.source.shape[2]))
        storage.put("keys", start, self.source[:, :, new])
        storage.put("positions", start, self._own[:, :, new])
        self.known, storage.used = columns, end
        if self.padded:
            self.keys[:, :, start:].masked_fill_((self._own[:, :, new] < 0)[..., None], 0)

    def drop(self, slots: Tensor) -> Tensor:
        """Evict one entry of each head, at ``[B, K, 1]``; their positions."""
        keys, positions = (self._storage[name] for name in ("keys", "positions"))
        gone = positions.gather(2, slots)
        positions.scatter_(2, slots, -1)
        keys.scatter_(2, slots[..., None].expand(-1, -1, -1, keys.shape[3]), 0)
        self.holes += 1
        return gone

    def keep(self, kept: Tensor, positions: Tensor) -> None:
        """Go on with the entries at the indices ``[B, K, n]``, at these positions."""
        self._storage.take(kept, keys=taken(self._storage["keys"], kept), positions=positions)
        if self.padded:
            self._storage.zero(positions < 0)
        self.holes = 0


class _Voting:
    """How queries vote while evictions are replayed.

    What the queries of a stretch of tokens give to what is held and to each other is worked out at once for passes of
    which each lets one entry go: to do it pass by pass is dear. What goes leaves its share to the others.

    Args:
        votes: what is remembered of queries.
        queries: ``[B, H, T, D]``, of the whole text.
        held: what is held.
        scale: what products of queries and keys are multiplied by.
    """

    def __init__(self, votes: Votes, queries: Tensor, held: _Held, scale: float) -> None:
        self.votes, self.queries, self.held, self.scale = votes, queries, held, scale
        self.group = queries.shape[1] // held.source.shape[1]
        self._weights: Tensor | None = None
        """``[B * K, q * H / K, N]``: what each query of the stretch gave to what is still held."""
        self._left: Tensor
        """``[B * K, q * H / K]``: how much that is, of 1."""
        self._first: int
        self._stop: int
        """The tokens of the stretch."""

    def observe(self, known: int, stretch: bool) -> None:
        """Show the votes the pass that begins with this token, as one of a stretch or by itself."""
        held = self.held
        attention = Attention(self.queries[:, :, known : held.known], held.keys, held.filler, self.scale)
        self.votes.observe(_Foreseen(attention, self) if stretch else attention)

    def received(self, since: int) -> Tensor | None:
        """``[B, K, N]``: as ``Attention.received``, of the queries from this token to the last that is held; None if
        that is too much to keep."""
        if self._weights is None or not self._lasts(since):
            self._look(since)
        if self._weights is None:
            return None
        rows = self._rows(since)
        # The heads that read a KV head vote together.
        shares = self._left[:, None, rows].mul(self.group).reciprocal_()
        return shares.bmm(self._weights[:, rows, : self.held.used]).view_as(self.held.positions)

    def _rows(self, since: int) -> slice:
        return slice((since - self._first) * self.group, (self.held.known - self._first) * self.group)

    def _lasts(self, since: int) -> bool:
        if since < self._first or self.held.known > self._stop:
            return False
        # False as well if something is no number.
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
        given = weights(queries, torch.cat([held.keys, coming], dim=2), filler, self.scale)
        self._weights = given.transpose(2, 3).flatten(2, 3).flatten(0, 1)
        self._left = given.new_ones(self._weights.shape[:2])

    def drop(self, slots: Tensor) -> None:
        """Go on without the entry of each head at ``[B, K, 1]``."""
        if self._weights is not None and self.held.known <= self._stop:
            index = slots.view(-1, 1, 1).expand(*self._weights.shape[:2], 1)
            self._left -= self._weights.gather(2, index)[..., 0]
            self._weights.scatter_(2, index, 0)

    def keep(self, kept: Tensor) -> None:
        """Go on with the entries at the indices ``[B, K, n]``."""
        self.votes.keep(kept)
        self._weights = None


class _Foreseen(Attention):
    """The attention of a pass, taken out of that of a stretch."""

    def __init__(self, attention: Attention, voting: _Voting) -> None:
        super().__init__(attention.queries, attention.keys, attention.filler, attention.scale)
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
) -> Tensor:
    """Evictions where scores change: from one eviction to the next, over what is held then, in order of position."""
    history = History(keys.shape[0], keys.shape[1], keys.device)
    held = _Held(keys, padding)
    voting = None
    if press.needs_queries:
        assert queries is not None
        voting = _Voting(press.votes(), queries, held, scale)
    for length in passes:
        ledger.feed(length, [min(pad, ledger.columns + length) for pad in padding])
        if not ledger.cut:
            continue
        known = held.known
        held.add(ledger.columns)
        # Votes are many numbers for each entry, and to move them all for one that goes is dear.
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
            # Holes come last, and go nowhere.
            gone = gone[..., : gone.shape[2] - held.holes]
        if kept is not None:
            held.keep(kept, stays)
            if voting is not None:
                voting.keep(kept)
        history.record(gone, ledger.padding, ledger.columns)
    return history.evicted_at(ledger.columns, padding)
