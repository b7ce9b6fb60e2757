"""Counts over the observed passes.

A pass is recorded while the model runs and counted later, so that no device is synchronised in between. All counting is
in plain integers. A query *meets an eviction* if, when its pass began, its cache held fewer entries of its row than the
row had tokens, in some layer. The entries that a layer's own sliding window does not cover are not missing: the
uncompressed model does not read them either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pressgauge.observation.readings import UNREADABLE, Reading, Values, listed


@dataclass(slots=True, eq=False)
class Track:
    """What is known of one cache.

    Attributes:
        columns: columns fed. If not ``known``, at least so many.
        known: whether all that the cache was fed has been observed.
        padding: columns of padding, per row.
        last: contents after the last pass that was counted; None if there was none, or it failed.
        latest: contents after the last pass that was recorded; None if there was none, or it failed.
        mark: address, bytes and length of the first layer's keys then.
        masked: whether a pass was recorded with a 2-D mask.
        layers: the layers of the cache, to measure them when it dies.
    """

    columns: int = 0
    known: bool = True
    padding: list[int] = field(default_factory=list)
    last: Reading | None = None
    latest: Reading | None = None
    mark: tuple[int, int, int] | None = None
    masked: bool = False
    layers: Any = None


@dataclass(slots=True)
class Record:
    """One pass, as observed.

    Attributes:
        rows, tokens: shape of the pass.
        failed: whether it raised an error; its tokens may be stored in part.
        track: the cache; None for a pass without one.
        start, end: contents of the cache before and after the pass; ``start`` is None for a cache that the pass made.
        viewed: whether the keys are now a leading view of those after the last pass.
        masked_heads: whether the attention of a layer masks keys of some heads only.
        nbytes: bytes of the cache after the pass, if they were measured.
        mask_columns, mask_totals, mask: columns, tokens per row, and last columns ``[B, q]`` of a 2-D attention mask.
        padded: whether a mask of another form was given, so that padding is not known.
        positions: ``[B or 1, q]`` as given by the caller.
        counted_from: first position that the model counts from, if the caller gives none.
        affected_from: index of the first query of each row that meets an eviction, for a pass that replays evictions.
        logits: indices of the queries whose logits the pass returned.
    """

    rows: int = 0
    tokens: int = 0
    failed: bool = False
    track: Track | None = None
    start: Reading | None = None
    end: Reading | None = None
    viewed: bool = False
    masked_heads: bool = False
    nbytes: int = 0
    mask_columns: int | None = None
    mask_totals: Values | None = None
    mask: Values | None = None
    padded: bool = False
    positions: Values | None = None
    counted_from: Any = None
    affected_from: list[int] | None = None
    logits: Values | range | None = None

    @property
    def declared(self) -> list[int]:
        """Columns before the pass, as the caller's mask and the caller's positions say."""
        found = []
        if self.mask_columns is not None and self.mask_columns > self.tokens:
            found.append(self.mask_columns - self.tokens)
        if self.positions is not None:
            self.positions = listed(self.positions)
            found.append(int(max(row[0] for row in self.positions)))
        return found


@dataclass(slots=True)
class Tally:
    """Sums over passes; see ``Seen`` for the meaning of each."""

    windows: Sequence[int | None]
    passes: int = 0
    tokens: int = 0
    affected_queries: int = 0
    window_queries: int = 0
    unreadable_queries: int = 0
    logits: int = 0
    affected_logits: int = 0
    positions: int = 0
    wrong_positions: int = 0
    nbytes: int = 0
    longest: int = 0
    contents: Reading = field(default_factory=lambda: Reading([]))

    def add(self, record: Record) -> None:
        """Count a pass."""
        track = record.track or Track()
        if record.failed:
            track.last = None
            return
        start, end = record.start or Reading([]), record.end
        start.complete()
        real = [[True] * record.tokens] * record.rows if record.mask is None else listed(record.mask)
        fed = [sum(map(bool, row)) for row in real]
        locate(record, track, start)
        before = self._tokens_before(record, track, fed)
        self.passes += 1
        self.tokens += sum(fed)
        self._count_queries(record, track, start, before, real)
        if track.known and start.readable and not record.padded:
            self._count_positions(record, track.columns, before, real)
        track.columns += record.tokens
        track.padding = [track.columns - old - new for old, new in zip(before, fed, strict=True)]
        track.last = end
        if end is not None:
            end.complete()
            self.nbytes = max(self.nbytes, record.nbytes)
            seen = track.columns - min(track.padding)
            if seen >= self.longest:
                self.longest, self.contents = seen, end

    @property
    def held(self) -> list[int | None]:
        """Entries per layer of the longest row of the longest cache."""
        entries = []
        for layer, held in enumerate(self.contents.held):
            if self.contents.rows is not None and layer in self.contents.pressed:
                held = max(self.contents.rows)
            # Slots beyond the tokens of the longest row are padding.
            entries.append(held if held is None else min(held, self.longest))
        return entries

    def _tokens_before(self, record: Record, track: Track, fed: list[int]) -> list[int]:
        """Tokens that each row had before the pass."""
        if record.mask_totals is not None and record.mask_columns == track.columns + record.tokens:
            totals = listed(record.mask_totals)
            return [int(total) - new for total, new in zip(totals, fed, strict=True)]
        padding = track.padding or [0]
        if len(padding) != record.rows:
            # Rows were selected or repeated, and no mask says which.
            track.known = track.known and not any(padding)
            padding = [max(padding)] * record.rows
        return [track.columns - columns for columns in padding]

    def _count_queries(
        self, record: Record, track: Track, start: Reading, before: list[int], real: list[list[Any]]
    ) -> None:
        kept = record.logits if record.logits is None or isinstance(record.logits, range) else listed(record.logits)
        known = track.known and start.readable
        # Mostly, no layer lacks anything.
        short = any(held is not None and held < track.columns for held in start.held)
        masked = record.masked_heads and track.columns > 0
        for row, queries in enumerate(real):
            evicted, window = self._missing(start, row, before[row]) if short else (False, False)
            first = 0 if evicted or masked else record.tokens
            if record.affected_from is not None:
                first = min(first, record.affected_from[row])
            self.affected_queries += sum(map(bool, queries[first:]))
            unaffected = sum(map(bool, queries[:first]))
            if window:
                self.window_queries += unaffected
            if not known:
                self.unreadable_queries += unaffected
            if kept is not None:
                places = [index % record.tokens for index in kept]
                scored = [place for place in places if queries[place]]
                self.logits += len(scored)
                self.affected_logits += sum([index >= first for index in scored])

    def _missing(self, start: Reading, row: int, tokens: int) -> tuple[bool, bool]:
        """Whether entries of a row are missing, and whether entries outside a sliding window are not stored."""
        outside = False
        if start.evicted:
            return True, False
        for layer, held in enumerate(start.held):
            if held is None or held == UNREADABLE:
                continue
            if start.rows is not None and layer in start.pressed:
                held = start.rows[row]
            window = self.windows[layer] if layer in start.sliding and layer < len(self.windows) else None
            if held < (tokens if window is None else min(tokens, window - 1)):
                return True, False
            outside |= held < tokens
        return False, outside

    def _count_positions(self, record: Record, columns: int, before: list[int], real: list[list[Any]]) -> None:
        given = None if record.positions is None else listed(record.positions)
        if given is None and record.counted_from is None:
            return
        for row, queries in enumerate(real):
            expected = before[row]
            if given is None:
                # A model that counts for itself counts columns.
                tokens = sum(map(bool, queries))
                self.positions += tokens
                self.wrong_positions += 0 if int(record.counted_from) == columns else tokens
                continue
            for position, token in zip(given[row % len(given)], queries, strict=True):
                if token:
                    self.positions += 1
                    self.wrong_positions += position != expected
                    expected += 1


def locate(record: Record, track: Track, start: Reading) -> None:
    """Find out how many columns the cache of a pass had been fed before it, since it may have been changed."""
    if start.empty:
        # New, or reset.
        track.columns, track.known, track.padding = 0, True, []
    elif start.columns is not None:
        track.columns = start.columns
    elif track.last is None:
        # Fed by others, or in a pass that failed.
        track.columns = max(track.columns, start.most, *record.declared)
        track.known = False
    elif track.last.held != start.held:
        _changed(record, track, track.last.held, start.held)


def _changed(record: Record, track: Track, before: list[int | None], now: list[int | None]) -> None:
    """Tell a crop from an eviction between passes, if layers do not hold what they held after the last pass."""
    pairs = zip(before, now, strict=False)
    changes = {old - new for old, new in pairs if old is not None and new is not None and UNREADABLE not in (old, new)}
    change, declared = max(changes, default=0), record.declared
    if len(changes) != 1 or not change:
        track.known = track.known and min(changes, default=0) >= 0
    elif track.columns in declared and change > 0:
        # An eviction. A caller may nevertheless give a mask for what is left.
        return
    elif track.columns - change in declared or (record.viewed and not declared):
        track.columns -= change
    else:
        track.columns -= max(change, 0)
        track.known = False
