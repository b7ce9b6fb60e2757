"""Presses that score by attention, and their evictions by the oracle."""

from collections.abc import Sequence

from pressgauge import H2OPress, Press, SnapKVPress, TOVAPress
from pressgauge.conformance.oracle import (
    NEVER,
    Accumulated,
    Attention,
    Last,
    Rules,
    Voter,
    Window,
    counts,
    retained,
)

Vectors = list[list[list[float]]]

PRESSES: dict[str, Press] = {
    "h2o": H2OPress(0.4, prune_after=5),
    "h2o-hitters": H2OPress(0.4, prune_after=5, recent_share=0, sinks=1),
    "h2o-step": H2OPress(0.7, prune_after=5, recent=3, schedule="step"),
    "snapkv": SnapKVPress(0.4, prune_after=5, recent=3),
    "snapkv-budget": SnapKVPress(0.5, prune_after=5, recent=6, kernel=3, sinks=1, schedule="budget"),
    "tova": TOVAPress(0.4, prune_after=5),
    "tova-step": TOVAPress(0.6, prune_after=7, recent=1, schedule="step"),
}


def voter(press: Press, attention: Attention) -> Voter:
    """Oracle of a press's attention scores, as defined in its paper."""
    if isinstance(press, H2OPress):
        return Accumulated(attention, press.recent)
    if isinstance(press, TOVAPress):
        return Last(attention, press.recent)
    assert isinstance(press, SnapKVPress)
    found = Window(attention, press.recent)
    found.neighbours = press.kernel
    return found


def rules_of(press: Press) -> Rules:
    """Rules of the oracle for a press."""
    return Rules(
        press.keep_ratio,
        press.prune_after,
        press.schedule,
        sinks=press.sinks,
        recent=press.recent,
        recent_share=float(getattr(press, "recent_share", 0)),
        interval=press.interval,
    )


def evictions(press: Press, keys: Vectors, queries: Vectors, scale: float, passes: Sequence[int]) -> list[list[int]]:
    """``evicted_at`` of one layer of one row, per KV head and token, as lists.

    Args:
        press: the press.
        keys: per KV head and token.
        queries: per query head and token.
        scale: scaling factor of the query-key products.
        passes: lengths of the passes.
    """
    rules, scored = rules_of(press), voter(press, Attention(keys, queries, scale))
    held: list[list[int]] = [[] for _ in keys]
    evicted_at = [[NEVER] * sum(passes) for _ in keys]
    seen = 0
    for tokens, size in zip(passes, counts(rules, passes), strict=True):
        start, seen = seen, seen + tokens
        held = [[*before, *range(start, seen)] for before in held]
        scores = scored.feed(held, start, seen)
        for head, score in enumerate(scores):
            kept = retained(rules, held[head], [score[j] for j in held[head]], size, seen)
            for j in set(held[head]) - set(kept):
                evicted_at[head][j] = seen
            held[head] = kept
    return evicted_at
