"""Presses whose scores come from attention, and one layer of them in lists and plain numbers."""

from pressgauge import H2OPress, Press, SnapKVPress, TOVAPress
from pressgauge.conformance.oracle import NEVER, Accumulated, Attention, Last, Voter, Window

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
    """As each paper defines the scores."""
    if isinstance(press, H2OPress):
        return Accumulated(attention, press.recent)
    if isinstance(press, TOVAPress):
        return Last(attention, press.recent)
    assert isinstance(press, SnapKVPress)
    found = Window(attention, press.recent)
    found.neighbours = press.kernel
    return found


class ByHand:
    """One layer of one row, in lists.

    Args:
        press: whose definition is followed.
        keys: per KV head and token.
        queries: per query head and token.
        scale: of the products.
    """

    def __init__(self, press: Press, keys: Vectors, queries: Vectors, scale: float) -> None:
        self.press = press
        self.voter = voter(press, Attention(keys, queries, scale))
        self.held: list[list[int]] = [[] for _ in keys]
        self.evicted_at = [[NEVER] * len(keys[0]) for _ in keys]
        self.seen = 0

    def feed(self, tokens: int, first: bool) -> None:
        """One pass."""
        start, self.seen = self.seen, self.seen + tokens
        self.held = [[*held, *range(start, self.seen)] for held in self.held]
        scores = self.voter.feed(self.held, start, self.seen)
        target = self.press.target(self.seen, len(self.held[0]))
        if (self.press.schedule == "prefill" and not first) or target == len(self.held[0]):
            return
        newest = self.press.recent
        if isinstance(self.press, H2OPress):
            newest = max(newest, min(int(self.press.recent_share * target), target - self.press.sinks))
        for head, score in enumerate(scores):
            safe = {j for j in self.held[head] if j < self.press.sinks or j >= self.seen - newest}
            ranked = [(j not in safe, -score[j], j) for j in self.held[head]]
            order = [j for _, _, j in sorted(ranked)]
            for j in order[target:]:
                self.evicted_at[head][j] = self.seen
            self.held[head] = sorted(order[:target])
