"""``evicted_at``: one integer per (sequence, KV head, token) that tells the whole history of a layer.

It is the number of columns fed right after the pass that evicted the token, ``NEVER`` for a token that is still held,
and 0 for padding. So query t sees key j if and only if ``j <= t < evicted_at[b, k, j]``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pressgauge.arguments import check_tensor
from pressgauge.budget import Budget, Ledger, whole_number, whole_numbers
from pressgauge.press import Press, check_press, choose, last_choice, rank_entries, spare
from pressgauge.votes import MOST, Attention, Votes, weights

NEVER = torch.iinfo(torch.int32).max
_AHEAD = 64
"""Tokens whose queries are asked at once, before their passes come."""
_LEAST = 1 / 8
"""What has to be left of a query's attention: of less, float32 would leave too few digits."""


def writable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if it was made in inference mode and that is over."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


class History:
    """Records the evictions of one layer while they happen.

    Args:
        rows, heads: B and K.
        device: where to keep the record.
    """

    def __init__(self, rows: int, heads: int, device: torch.device) -> None:
        self._evicted_at = torch.full((rows, heads, 1), NEVER, dtype=torch.int32, device=device)

    def record(self, positions: Tensor, padding: Sequence[int], seen: int) -> None:
        """Note that the entries at ``positions`` (``[B, K, n]``, -1 for none) go after column number ``seen``."""
        self._evicted_at = writable(self._evicted_at)
        if seen >= self._evicted_at.shape[-1]:
            # The last column is where "none" is written to, so that nothing has to be looked up on the device.
            more = seen + seen // 2 + 64 - self._evicted_at.shape[-1]
            self._evicted_at[..., -1] = NEVER
            self._evicted_at = torch.nn.functional.pad(self._evicted_at, (0, more), value=NEVER)
        columns = positions.long()
        if any(padding):
            columns = columns + torch.tensor(padding, device=columns.device)[:, None, None]
            columns = torch.where(positions < 0, self._evicted_at.shape[-1] - 1, columns)
        self._evicted_at.scatter_(2, columns, seen)

    def evicted_at(self, columns: int, padding: Sequence[int]) -> Tensor:
        """``[B, K, columns]`` int32."""
        rows, heads, known = self._evicted_at.shape
        table = self._evicted_at.new_full((rows, heads, columns), NEVER)
        known = min(known - 1, columns)
        table[..., :known] = self._evicted_at[..., :known]
        if any(padding):
            ends = torch.tensor(padding, device=table.device)[:, None, None]
            table.masked_fill_(torch.arange(columns, device=table.device) < ends, 0)
        return table

    def select(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        self._evicted_at = self._evicted_at.index_select(0, rows.to(self._evicted_at.device))


def entries(states: Tensor, columns: Tensor) -> Tensor:
    """``[B, K, n, D]``: the entries of ``[B, K, T, D]`` at ``columns`` ``[B, K, n]``."""
    batch, heads, length, dimension = states.shape
    starts = torch.arange(batch * heads, device=states.device).view(batch, heads, 1) * length
    flat = states.reshape(-1, dimension).index_select(0, (columns + starts).flatten())
    return flat.view(batch, heads, -1, dimension)


def visible(evicted_at: Tensor, start: int, stop: int) -> Tensor:
    """Which keys the queries ``start`` to ``stop - 1`` see: ``[B, K, stop - start, T]`` bool."""
    queries = torch.arange(start, stop, device=evicted_at.device)[:, None]
    keys = torch.arange(evicted_at.shape[-1], device=evicted_at.device)
    return (keys <= queries) & (queries < evicted_at[:, :, None, :])


def count_evictions(tables: Iterable[Tensor]) -> int:
    """Entries evicted, over the layers' ``evicted_at``: neither still held nor padding."""
    return sum(int(((table > 0) & (table < NEVER)).sum()) for table in tables)


@dataclass(frozen=True)
class _Slots:
    """The places of a row's eviction history: the same for every head of every layer of a model.

    Attributes:
        seen: per slot, ascending, the columns fed after the pass that evicts it; a pass has as many slots as it evicts.
        first: per own token, the first slot that it can take: of the first acting pass at which it is neither a sink
            nor recent; the number of slots if there is none.
    """

    seen: list[int]
    first: list[int]


@lru_cache(maxsize=8)
def _slots(
    budget: Budget, written: str, passes: tuple[int, ...], prompt_length: int | None, padding: tuple[int, ...]
) -> list[_Slots]:
    """The slots of each row. ``written`` is the ``keep_ratio`` as written, by which equal budgets may differ."""
    ledger = Ledger(budget, prompt_length)
    slots = [_Slots([], []) for _ in padding]
    held, seen = [0] * len(padding), [0] * len(padding)
    for tokens in passes:
        ledger.feed(tokens, [min(pad, ledger.columns + tokens) for pad in padding])
        if ledger.cut:
            for row, slot in enumerate(slots):
                count = held[row] + ledger.seen[row] - seen[row] - ledger.held[row]
                if count:
                    released = ledger.seen[row] - budget.recent - len(slot.first)
                    slot.first.extend([len(slot.seen)] * released)
                    slot.seen.extend([ledger.columns] * count)
        held, seen = ledger.held, ledger.seen
    for row, slot in enumerate(slots):
        sinks = min(budget.sinks, len(slot.first))
        slot.first[:sinks] = [len(slot.seen)] * sinks
        slot.first.extend([len(slot.seen)] * (ledger.seen[row] - len(slot.first)))
    return slots


def _replay_head(worst_first: list[int], slots: _Slots) -> list[int]:
    """``evicted_at`` of one head's own tokens: in this order, each takes the first slot that it can and that is free.

    For the worst of all tokens goes as soon as it can, and without it and its slot the same holds for the next one.
    """
    evicted = [NEVER] * len(worst_first)
    seen, first = slots.seen, slots.first
    none = len(seen)
    free = list(range(none + 1))  # what is free at or after each slot, or a slot in between that leads there
    for token in worst_first:
        slot = found = first[token]
        while free[found] != found:
            found = free[found]
        if found < none:
            evicted[token] = seen[found]
            free[found] = found + 1
        while slot < found:
            free[slot], slot = found, free[slot]
    return evicted


def _replay_fixed(ranks: Tensor, slots: list[_Slots], padding: Sequence[int]) -> Tensor:
    """Evictions where a score never changes."""
    table = torch.zeros(ranks.shape, dtype=torch.int32)
    for row, pad in enumerate(padding):
        orders = ranks[row, :, pad:].argsort(dim=-1).tolist()
        evicted = [_replay_head(order, slots[row]) for order in orders]
        table[row, :, pad:] = torch.from_numpy(np.array(evicted, dtype=np.int32))
    return table.to(ranks.device)


class _Held:
    """What one layer holds while its evictions are replayed: in order of position, with holes where one entry at a
    time has gone, which are filler like padding."""

    def __init__(self, keys: Tensor, padding: Sequence[int]) -> None:
        self.source = keys
        rows, heads, tokens, _ = keys.shape
        offset = torch.tensor(padding, device=keys.device)[:, None, None]
        self._own = (torch.arange(tokens, device=keys.device) - offset).clamp(min=-1).expand(rows, heads, tokens)
        self._keys, self._positions = keys[:, :, :0], self._own[..., :0]
        self.padded = any(padding)
        self.known = self.used = self.holes = 0

    @property
    def keys(self) -> Tensor:
        """``[B, K, N, D]``, zeros at filler."""
        return self._keys[:, :, : self.used]

    @property
    def positions(self) -> Tensor:
        """``[B, K, N]``, -1 at filler."""
        return self._positions[:, :, : self.used]

    @property
    def filler(self) -> Tensor | None:
        """``[B, K, N]``, where there is filler; None for nowhere."""
        return self.positions < 0 if self.padded or self.holes else None

    def add(self, columns: int) -> None:
        """Take in the columns up to this number."""
        new, end = slice(self.known, columns), self.used + columns - self.known
        if end > self._keys.shape[2]:
            room = min(end + end // 2, self.source.shape[2])
            rows, heads, _, dimension = self.source.shape
            keys, positions = self._keys, self._positions
            self._keys = self.source.new_zeros((rows, heads, room, dimension))
            self._positions = self._own.new_full((rows, heads, room), -1)
            self._keys[:, :, : self.used] = keys[:, :, : self.used]
            self._positions[:, :, : self.used] = positions[:, :, : self.used]
        self._keys[:, :, self.used : end] = self.source[:, :, new]
        self._positions[:, :, self.used : end] = self._own[:, :, new]
        if self.padded:
            self._keys[:, :, self.used : end].masked_fill_((self._own[:, :, new] < 0)[..., None], 0)
        self.known, self.used = columns, end

    def drop(self, slots: Tensor) -> Tensor:
        """Let go of one entry of each head, at ``[B, K, 1]``; their positions."""
        gone = self._positions.gather(2, slots)
        self._positions.scatter_(2, slots, -1)
        self._keys.scatter_(2, slots[..., None].expand(-1, -1, -1, self._keys.shape[3]), 0)
        self.holes += 1
        return gone

    def keep(self, kept: Tensor, positions: Tensor) -> None:
        """Go on with the entries at the indices ``[B, K, n]``, at these positions."""
        self._keys, self._positions = entries(self._keys, kept), positions
        if self.padded:
            self._keys.masked_fill_((positions < 0)[..., None], 0)
        self.used, self.holes = kept.shape[2], 0


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


def _replay_changing(
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


def replay(
    press: Press,
    keys: Tensor,
    passes: Sequence[int],
    *,
    layer: int = 0,
    prompt_length: int | None = None,
    padding: Sequence[int] | None = None,
    queries: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """What a press evicts from a layer that is fed these keys, without decoding.

    Given the keys that a cache was handed, it equals the cache's own record exactly, in every dtype. Votes of queries
    are summed in another order than they came in, so that with them it does in float64.

    Args:
        press: the press.
        keys: ``[B, K, T, D]``, as rotated when they were new.
        passes: how many tokens each pass feeds; they add up to T.
        layer: index of the layer.
        prompt_length: tokens of the prompt; the first pass is the prompt if it is not given.
        padding: per row, how many of the first columns are padding.
        queries: ``[B, H, T, D]``, for presses that need them.
        scale: what attention multiplies products of queries and keys by; ``D ** -0.5`` unless given.

    Returns:
        ``evicted_at``: ``[B, K, T]`` int32.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: if the passes do not add up to T, the padding does not fit, or the press needs queries and there
            are none.
    """
    if press is None:
        raise TypeError("press must be a press such as KnormPress(0.5), got None: without one nothing is evicted")
    check_press(press)
    check_tensor("keys", keys, "[batch, KV heads, tokens, dimension]")
    if keys.dim() != 4:
        raise ValueError(f"keys must be [batch, KV heads, tokens, dimension], got {list(keys.shape)}")
    rows, heads, columns, _ = keys.shape
    passes = whole_numbers("passes", passes)
    if sum(passes) != columns or any(tokens < 1 for tokens in passes):
        raise ValueError(
            f"passes must be positive and add up to the {columns} tokens of keys, got {len(passes)} passes "
            f"of {sum(passes)} tokens"
        )
    pads = [0] * rows if padding is None else whole_numbers("padding", padding)
    if len(pads) != rows or any(not 0 <= pad <= columns for pad in pads):
        raise ValueError(f"padding must give each of the {rows} rows a number from 0 to {columns}, got {pads}")
    if press.needs_queries and queries is None:
        raise ValueError(f"{type(press).__name__} needs queries: pass those of all {columns} tokens")
    if queries is not None:
        check_tensor("queries", queries, "[batch, heads, tokens, dimension]")
    if queries is not None and (queries.dim() != 4 or (queries.shape[0], queries.shape[2]) != (rows, columns)):
        raise ValueError(f"queries must be [{rows}, heads, {columns}, dimension] like keys, got {list(queries.shape)}")
    if whole_number("layer", layer, 0) in press.skipped:
        return History(rows, heads, keys.device).evicted_at(columns, pads)
    if not press.fixed_scores:
        scale = keys.shape[3] ** -0.5 if scale is None else scale
        return _replay_changing(press, keys, layer, passes, Ledger(press, prompt_length), pads, queries, scale)
    # What a subclass adds has no part in when and how many.
    budget = Budget(**{field.name: getattr(press, field.name) for field in fields(Budget)})
    slots = _slots(budget, str(press.keep_ratio), tuple(passes), prompt_length, tuple(pads))
    if not any(slot.seen for slot in slots):
        return History(rows, heads, keys.device).evicted_at(columns, pads)
    positions = torch.arange(columns, device=keys.device) - torch.tensor(pads, device=keys.device)[:, None, None]
    positions = positions.clamp(min=-1).expand(rows, heads, columns)
    ranks = rank_entries(press, keys, positions, layer, first=True)
    return _replay_fixed(ranks, slots, pads)
