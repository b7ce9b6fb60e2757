"""Presses whose scores come from attention: against a compressor of lists and plain numbers, and one pass against
decoding."""

import math
from collections.abc import Sequence

import pytest
import torch
from conformance import architectures
from conformance.oracle import NEVER

from pressgauge import H2OPress, Press, SnapKVPress, TOVAPress, perplexity, replay
from pressgauge.votes import received

Vectors = list[list[float]]

PRESSES: dict[str, Press] = {
    "h2o": H2OPress(0.4, prune_after=5),
    "h2o-hitters": H2OPress(0.4, prune_after=5, recent_share=0, sinks=1),
    "h2o-step": H2OPress(0.7, prune_after=5, recent=3, schedule="step"),
    "snapkv": SnapKVPress(0.4, prune_after=5, recent=3),
    "snapkv-budget": SnapKVPress(0.4, prune_after=5, recent=2, kernel=3, sinks=2, schedule="budget"),
    "tova": TOVAPress(0.4, prune_after=5),
    "tova-step": TOVAPress(0.6, prune_after=7, recent=1, schedule="step"),
}
PASSES = {"whole": [24], "prompt": [17] + [1] * 7, "chunks": [9, 4, 1, 1, 6, 3], "singly": [1] * 24}


def softmax(query: list[float], keys: Vectors, present: Sequence[int], scale: float) -> dict[int, float]:
    """Attention of one query to the keys of these tokens."""
    products = {j: scale * sum(a * b for a, b in zip(query, keys[j], strict=True)) for j in present}
    most = max(products.values())
    total = math.fsum(math.exp(product - most) for product in products.values())
    return {j: math.exp(product - most) / total for j, product in products.items()}


class ByHand:
    """One layer of one row, in lists.

    Args:
        press: whose definition is followed.
        keys: per KV head and token.
        queries: per query head and token.
        scale: of the products.
    """

    def __init__(self, press: Press, keys: list[Vectors], queries: list[Vectors], scale: float) -> None:
        self.press, self.keys, self.queries, self.scale = press, keys, queries, scale
        self.group = len(queries) // len(keys)
        self.held: list[list[int]] = [[] for _ in keys]
        self.sums: list[dict[int, float]] = [{} for _ in keys]
        self.evicted_at = [[NEVER] * len(keys[0]) for _ in keys]
        self.seen = 0

    def attention(self, head: int, token: int) -> dict[int, float]:
        """What the query heads of one KV head give to what is held and not later than the token, in the mean."""
        present = [j for j in self.held[head] if j <= token]
        found = dict.fromkeys(present, 0.0)
        for query_head in range(head * self.group, (head + 1) * self.group):
            for j, weight in softmax(self.queries[query_head][token], self.keys[head], present, self.scale).items():
                found[j] += weight / self.group
        return found

    def scores(self, head: int) -> dict[int, float]:
        """As each paper defines them."""
        if isinstance(self.press, H2OPress):
            return self.sums[head]
        if isinstance(self.press, TOVAPress):
            each = [self.attention(other, self.seen - 1) for other in range(len(self.keys))]
            if any(one.keys() != each[0].keys() for one in each):
                raise AssertionError("all heads hold the same")
            return {j: sum(one[j] for one in each) for j in each[0]}
        assert isinstance(self.press, SnapKVPress)
        window = range(max(0, self.seen - self.press.recent), self.seen)
        votes = [
            0.0 if j in window else sum(self.attention(head, t).get(j, 0) for t in window) for j in self.held[head]
        ]
        half = self.press.kernel // 2
        return {j: sum(votes[max(0, i - half) : i + half + 1]) for i, j in enumerate(self.held[head])}

    def feed(self, tokens: int, first: bool) -> None:
        """One pass."""
        new = range(self.seen, self.seen + tokens)
        self.seen += tokens
        scores = []
        for head in range(len(self.keys)):
            self.held[head] += new
            for token in new:
                for j, weight in self.attention(head, token).items():
                    self.sums[head][j] = self.sums[head].get(j, 0.0) + weight
        for head in range(len(self.keys)):
            scores.append(self.scores(head))
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
                self.sums[head].pop(j)
            self.held[head] = sorted(order[:target])


def drawn(query_heads: int, heads: int, rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of 24 tokens, no two alike."""
    generator = torch.Generator().manual_seed(3)
    make = [
        torch.randn((rows, count, 24, 4), generator=generator, dtype=torch.float64) for count in (query_heads, heads)
    ]
    return make[0], make[1]


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("press", PRESSES.values(), ids=PRESSES)
def test_what_stays_is_what_the_paper_says(press: Press, passes: list[int], heads: tuple[int, int]) -> None:
    """Every eviction of every head, and when; with grouped queries, heads vote for the KV head that they read."""
    queries, keys = drawn(*heads)
    found = replay(press, keys, passes, queries=queries, scale=0.7)
    by_hand = ByHand(press, keys[0].tolist(), queries[0].tolist(), 0.7)
    for number, tokens in enumerate(passes):
        by_hand.feed(tokens, number == 0)
    assert found[0].tolist() == by_hand.evicted_at
    if passes[0] > 5 or press.schedule != "prefill":
        assert int((found < NEVER).sum())


@pytest.mark.parametrize("press", PRESSES.values(), ids=PRESSES)
def test_a_padded_row_is_as_it_is_alone(press: Press) -> None:
    """Padding neither votes nor is voted for."""
    queries, keys = drawn(6, 2, rows=3)
    passes = [13] + [1] * 11
    padding = [0, 9, 4]
    together = replay(press, keys, passes, queries=queries, padding=padding)
    for row, pad in enumerate(padding):
        alone = replay(
            press, keys[row : row + 1, :, pad:], [13 - pad] + [1] * 11, queries=queries[row : row + 1, :, pad:]
        )
        moved = torch.where(alone < NEVER, alone + pad, alone)
        assert together[row, :, pad:].tolist() == moved[0].tolist()
        assert not together[row, :, :pad].any()


@pytest.mark.parametrize("name", ["llama", "neox", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("press", PRESSES.values(), ids=PRESSES)
def test_one_pass_is_what_decoding_gives(press: Press, name: str) -> None:
    """NLL to 1e-9 and every eviction, with padded rows, on every architecture."""
    model = architectures.shared(name)
    ids, mask = architectures.padded([26, 15])
    prompt = 18 if press.schedule == "prefill" else 3
    one = perplexity(model, ids, press, prompt, "onepass", attention_mask=mask)
    other = perplexity(model, ids, press, prompt, "stepwise", attention_mask=mask)
    torch.testing.assert_close(one.nll, other.nll, rtol=0, atol=1e-9, equal_nan=True)
    assert all(mine.equal(own) for mine, own in zip(one.evicted_at, other.evicted_at, strict=True))
    assert one.evictions > 0


@torch.no_grad()
def test_attention_is_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many weights at a time as are allowed, whatever the length; the sum is the same."""
    queries, keys = drawn(6, 2, rows=2)
    whole = received(queries, keys, None, 0.5)
    for most in (1, 2 * 6 * 24 * 5):
        monkeypatch.setattr("pressgauge.votes._MOST", most)
        torch.testing.assert_close(received(queries, keys, None, 0.5), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.sum(dim=-1), torch.full((2, 2), 24.0, dtype=torch.float64))
