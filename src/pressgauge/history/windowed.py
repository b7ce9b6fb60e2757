"""Evictions from a layer with a sliding window or chunks: counts for each pass, and replay without decoding.

Entries leave the window after the attention of a pass, as in transformers' cache. What is left of a KV head is then
pruned to the target of the tokens that the window holds. Since heads retain different entries, which of them leave the
window differs, and so may the numbers that heads hold.
"""

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from pressgauge.history.plan import protects_recent_only
from pressgauge.history.record import NEVER, History
from pressgauge.presses.attention_scores import Attention
from pressgauge.presses.base import Press, rank_entries
from pressgauge.presses.ranking import FILLER, choose, protect
from pressgauge.rules import Ledger, Window
from pressgauge.softmax import Softmax
from pressgauge.storage import taken


def _per_row(numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)[:, None, None]


class Counts:
    """Numbers of entries that a pass leaves to each KV head.

    Args:
        press: the press.
        window: the layer's window.
        positions: ``[B, K, N]`` of the entries before eviction, -1 at padding slots.
        ledger: counts of the cache, the pass included.

    Attributes:
        expired: ``[B, K, N]``: whether an entry has left the window.
        keep: entries to retain, per row and head.
        evicts: whether entries in the window are evicted.
        changes: whether any entry is removed.
    """

    def __init__(self, press: Press, window: Window, positions: Tensor, ledger: Ledger) -> None:
        own = positions >= 0
        self.expired = own & (window.end(positions) <= _per_row(ledger.seen, positions.device))
        self._press, self._seen = press, ledger.seen
        totals, leaving = torch.stack([own.sum(dim=-1), self.expired.sum(dim=-1)]).tolist()
        held = [[all_ - gone for all_, gone in zip(*row, strict=True)] for row in zip(totals, leaving, strict=True)]
        self.keep: list[list[int]] = held
        if ledger.acts:
            self.keep = [
                [press.checked_target(window.holds(seen), count) for count in row]
                for seen, row in zip(ledger.seen, held, strict=True)
            ]
        self.evicts = self.keep != held
        self.changes = self.keep != totals

    @property
    def most(self) -> int:
        """Entries of the head that retains most."""
        return max(count for row in self.keep for count in row)

    @property
    def least(self) -> int:
        """Entries of the head that retains fewest."""
        return min(count for row in self.keep for count in row)

    def protect(self, ranks: Tensor, positions: Tensor) -> Tensor:
        """``ranks`` ``[B, K, N]`` with each head's protected newest tokens ranked above all others."""
        if not self.evicts:
            return ranks
        first = [
            [seen - self._press.protected(count) for count in row]
            for seen, row in zip(self._seen, self.keep, strict=True)
        ]
        if all(number == seen for row, seen in zip(first, self._seen, strict=True) for number in row):
            return ranks
        return protect(ranks, positions, torch.tensor(first, device=ranks.device)[..., None])


def until(window: Window, positions: Tensor, seen: Sequence[int], tokens: int) -> Tensor:
    """The first query of a pass, counted from 0, whose window no longer has an entry: ``[B, K, N]``.

    Args:
        window: the layer's window.
        positions: ``[B, K, N]`` of the entries.
        seen: tokens fed by the end of the pass, per row.
        tokens: queries of the pass.
    """
    ends: Tensor = window.end(positions)
    return ends - (_per_row(seen, positions.device) - tokens)


def reach(window: Window, seen: Sequence[int], tokens: int) -> int:
    """Number of last queries whose own entries a layer may still store in a pass of ``tokens`` columns."""
    return max(window.holds(max(0, count - tokens)) for count in seen) + tokens


def _replay_head(
    ranks: list[int], passes: list[tuple[int, int, bool]], press: Press, window: Window, targets: dict[int, int]
) -> list[int]:
    """``evicted_at`` of one head's tokens under fixed scores.

    Args:
        ranks: of all tokens.
        passes: per pass, tokens seen and columns fed by its end, and whether the schedule evicts.
        press: the press.
        window: the layer's window.
        targets: known targets, by ``seen * len(ranks) + held``.
    """
    evicted, before = [NEVER] * len(ranks), 0
    held = first = released = 0
    candidates: list[tuple[int, int]] = []
    for seen, columns, acts in passes:
        held += seen - before
        start = min(window.first(seen), seen)
        held -= sum(evicted[token] == NEVER for token in range(first, start))
        first, before = start, seen
        if not acts:
            continue
        place = window.holds(seen) * (len(ranks) + 1) + held
        if place not in targets:
            targets[place] = press.checked_target(window.holds(seen), held)
        keep = targets[place]
        if keep == held:
            continue
        released = max(released, first)
        while released < seen - press.recent:
            heapq.heappush(candidates, (ranks[released], released))
            released += 1
        while held > keep:
            _, token = heapq.heappop(candidates)
            if token >= first:
                evicted[token] = columns
                held -= 1
    return evicted


def _replay_fixed(
    press: Press, ranks: Tensor, passes: Sequence[int], ledger: Ledger, padding: Sequence[int], window: Window
) -> Tensor:
    rows: list[list[tuple[int, int, bool]]] = [[] for _ in padding]
    for tokens in passes:
        ledger.feed(tokens, [min(pad, ledger.columns + tokens) for pad in padding])
        for row, seen in zip(rows, ledger.seen, strict=True):
            row.append((seen, ledger.columns, ledger.acts))
    table = torch.zeros(ranks.shape, dtype=torch.int32)
    for index, pad in enumerate(padding):
        targets: dict[int, int] = {}
        heads = [_replay_head(own, rows[index], press, window, targets) for own in ranks[index, :, pad:].tolist()]
        table[index, :, pad:] = torch.tensor(heads, dtype=torch.int32).view(len(heads), -1)
    return table.to(ranks.device)


def replay_windowed(
    press: Press,
    keys: Tensor,
    layer: int,
    passes: Sequence[int],
    ledger: Ledger,
    padding: Sequence[int],
    queries: Tensor | None,
    scale: float,
    softmax: Softmax,
    window: Window,
) -> Tensor:
    """Replay evictions from a layer with a window.

    Args:
        press, keys, layer, passes, padding, queries, scale, softmax: as in ``replay``.
        ledger: a new ledger of the press.
        window: the layer's window.

    Returns:
        ``evicted_at``: ``[B, K, T]`` int32.
    """
    rows, heads, columns, _ = keys.shape
    own = torch.arange(columns, device=keys.device) - _per_row(padding, keys.device)
    own = own.clamp(min=-1).expand(rows, heads, columns)
    if press.fixed_scores:
        ranks = rank_entries(press, keys, own, layer, first=True)
        if protects_recent_only(press):
            return _replay_fixed(press, ranks, passes, ledger, padding, window)
    history = History(rows, heads, keys.device)
    votes = press.votes() if press.needs_queries else None
    stored, positions = keys[:, :, :0], own[..., :0]
    for tokens in passes:
        new = slice(ledger.columns, ledger.columns + tokens)
        ledger.feed(tokens, [min(pad, new.stop) for pad in padding])
        stored = torch.cat([stored, keys[:, :, new].masked_fill((own[:, :, new] < 0)[..., None], 0)], dim=2)
        positions = torch.cat([positions, own[..., new]], dim=2)
        if votes is not None:
            assert queries is not None
            expiry = until(window, positions, ledger.seen, tokens)
            far = reach(window, ledger.seen, tokens)
            votes.observe(Attention(queries[:, :, new], stored, positions < 0, scale, softmax, expiry, far))
        counts = Counts(press, window, positions, ledger)
        if not counts.changes:
            continue
        live = positions.masked_fill(counts.expired, -1)
        ranks = live.long().masked_fill(live < 0, FILLER)
        if counts.evicts:
            scored = stored if votes is not None else stored.masked_fill((live < 0)[..., None], 0)
            ranks = counts.protect(rank_entries(press, scored, live, layer, votes), live)
        kept, stays, gone = choose(ranks, live, counts.keep)
        stored, positions = taken(stored, kept).masked_fill((stays < 0)[..., None], 0), stays
        if votes is not None:
            votes.keep(kept)
        history.record(gone, ledger.padding, ledger.columns, partly=True)
    return history.evicted_at(columns, padding)
