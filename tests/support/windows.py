"""Evictions from a layer with a sliding window or chunks, by a plain loop over lists, without code of the package."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pressgauge import KeyDiffPress, Press, StreamingLLMPress
from pressgauge.conformance.oracle import (
    NEVER,
    Accumulated,
    Attention,
    Held,
    Key,
    Last,
    Voted,
    Voter,
    Window,
    keydiff_scores,
    norm_scores,
    position_scores,
    retained,
)
from support.evictions import Vectors, rules_of, voter


@dataclass(frozen=True)
class Sight:
    """What a query sees: the last ``size`` tokens, its own included, or its own chunk of ``size`` tokens."""

    size: int
    chunked: bool

    def sees(self, query: int, token: int) -> bool:
        """Whether a query sees a token, if it comes later and the token is retained."""
        if self.chunked:
            return query // self.size == token // self.size
        return query - token < self.size


class Sighted(Attention):
    """Attention within a window."""

    def __init__(self, keys: Vectors, queries: Vectors, scale: float, sight: Sight) -> None:
        super().__init__(keys, queries, scale)
        self.sight = sight

    def given(self, head: int, token: int, held: Sequence[int]) -> dict[int, float]:
        return super().given(head, token, [j for j in held if self.sight.sees(token, j)])


class PooledInSight(Voter):
    """SnapKVPress: mean attention from the last queries, averaged over the neighbours that are left in the window.

    A factor would move scores across the edges to which they are rounded.
    """

    def __init__(self, attention: Sighted, window: int, kernel: int) -> None:
        super().__init__(attention, window)
        self.sight, self.half = attention.sight, kernel // 2

    def feed(self, held: Held, start: int, end: int) -> Voted:
        first, found = max(0, end - self.window), []
        for head, present in enumerate(held):
            each = [self.attention.given(head, token, present) for token in range(first, end)]
            left = [j for j in present if self.sight.sees(end, j)]
            votes = [math.fsum(one.get(j, 0.0) for one in each) if j < first else 0.0 for j in left]
            factor = (2 * self.half + 1) * (end - first)
            pooled = [math.fsum(votes[max(0, i - self.half) : i + self.half + 1]) / factor for i in range(len(votes))]
            found.append(dict(zip(left, pooled, strict=True)))
        return found


def _voter(press: Press, keys: Vectors, queries: Vectors, scale: float, sight: Sight) -> Voter:
    attention = Sighted(keys, queries, scale, sight)
    found = voter(press, attention)
    if isinstance(found, Window):
        return PooledInSight(attention, press.recent, found.neighbours)
    assert isinstance(found, Accumulated | Last)
    return found


def _scores(press: Press, keys: Sequence[Key], held: list[int]) -> list[float]:
    if isinstance(press, StreamingLLMPress):
        return position_scores(keys)(held)
    return (keydiff_scores if isinstance(press, KeyDiffPress) else norm_scores)(keys)(held)


def evictions(
    press: Press,
    keys: Vectors,
    queries: Vectors,
    scale: float,
    passes: Sequence[int],
    sight: Sight,
    prompt_length: int | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """``evicted_at`` of one layer of one row, and the tokens held at the end, per KV head, as lists.

    Args:
        press: the press.
        keys: per KV head and token.
        queries: per query head and token.
        scale: scaling factor of the query-key products.
        passes: lengths of the passes.
        sight: what a query sees.
        prompt_length: tokens of the prompt; by default the first pass is the prompt.
    """
    rules = rules_of(press)
    scored = _voter(press, keys, queries, scale, sight) if press.needs_queries else None
    held: list[list[int]] = [[] for _ in keys]
    evicted_at = [[NEVER] * sum(passes) for _ in keys]
    seen = 0
    for number, tokens in enumerate(passes):
        start, seen = seen, seen + tokens
        held = [[*before, *range(start, seen)] for before in held]
        votes = None if scored is None else scored.feed(held, start, seen)
        # The next query is at position `seen`.
        held = [[j for j in present if sight.sees(seen, j)] for present in held]
        window = sum(sight.sees(seen, j) for j in range(seen))
        if not rules.acts(passes, number, prompt_length):
            continue
        for head, present in enumerate(held):
            size = rules.target(window, len(present))
            if size == len(present):
                continue
            scores = _scores(press, keys[head], present) if votes is None else [votes[head][j] for j in present]
            kept = retained(rules, present, scores, size, seen)
            for j in set(present) - set(kept):
                evicted_at[head][j] = seen
            held[head] = kept
    return evicted_at, held
