"""Presses that score by attention, compared with the oracle."""

import re
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from harness.mutants.attention_scores import (
    AverageOverAge,
    BlindToOrder,
    FirstQueries,
    HeadsAlone,
    NotReordered,
    OnlyThisPass,
    WindowCounted,
    WrongGroups,
    counting,
)
from pressgauge import H2OPress, Press, SnapKVPress, TOVAPress, replay
from pressgauge.conformance.oracle import NEVER
from pressgauge.history.held import Held
from pressgauge.history.voting import Voting
from pressgauge.presses import attention_scores as votes
from support.evictions import PRESSES, evictions

PASSES = {"whole": [24], "prompt": [17] + [1] * 7, "chunks": [9, 4, 1, 1, 6, 3], "singly": [1] * 24}


def drawn(query_heads: int, heads: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys of 24 tokens, all different."""
    generator = torch.Generator().manual_seed(3)
    make = [
        torch.randn((rows, count, 24, 4), generator=generator, dtype=torch.float64) for count in (query_heads, heads)
    ]
    return make[0], make[1]


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("press", PRESSES.values(), ids=PRESSES)
def test_evictions_follow_the_paper(press: Press, passes: list[int], heads: tuple[int, int]) -> None:
    """Every eviction of every head is that of the oracle; with grouped queries, scores are averaged over the query
    heads of a KV head."""
    found = follow(press, passes, heads)
    if passes[0] > 5 or press.schedule != "prefill":
        assert int((found < NEVER).sum())


def follow(press: Press, passes: list[int], heads: tuple[int, int]) -> Tensor:
    """Check that ``replay`` gives the evictions of the oracle."""
    queries, keys = (states[:, :, : sum(passes)] for states in drawn(*heads))
    found = replay(press, keys, passes, queries=queries, scale=0.7)
    assert found[0].tolist() == evictions(press, keys[0].tolist(), queries[0].tolist(), 0.7, passes)
    return found


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("h2o", counting(H2OPress, lambda press: BlindToOrder())),
        ("h2o", counting(H2OPress, lambda press: WrongGroups())),
        ("h2o", counting(H2OPress, lambda press: NotReordered())),
        ("h2o", AverageOverAge),
        ("snapkv", WindowCounted),
        ("snapkv-budget", counting(SnapKVPress, lambda press: OnlyThisPass(press.recent))),
        ("tova", counting(TOVAPress, lambda press: FirstQueries(1))),
        ("tova", HeadsAlone),
    ],
)
def test_a_broken_score_is_found(name: str, broken: type[Press]) -> None:
    """The oracle finds a broken score, and agrees with the unbroken one in the same run."""
    press = PRESSES[name]
    wrong = broken(**{field.name: getattr(press, field.name) for field in fields(press)})

    def law(press: Press) -> None:
        for passes in PASSES.values():
            follow(press, passes, (6, 2))

    law(press)
    with pytest.raises(AssertionError):
        law(wrong)


@pytest.mark.parametrize("press", PRESSES.values(), ids=PRESSES)
def test_a_padded_row_equals_the_row_alone(press: Press) -> None:
    """Padding neither gives nor receives attention."""
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


@pytest.mark.parametrize("press", PRESSES.values(), ids=PRESSES)
def test_an_empty_text(press: Press) -> None:
    """An empty text has no evictions."""
    found = replay(press, torch.zeros(1, 2, 0, 4), [], queries=torch.zeros(1, 6, 0, 4))
    assert found.shape == (1, 2, 0)


class NowAndThen(votes.AttentionSums):
    """Observes every hundredth pass."""

    passes = 0

    def observe(self, attention: votes.Attention) -> None:
        self.passes += 1
        if self.passes % 100 == 1:
            super().observe(attention)
        else:
            assert self.sums is not None
            more = attention.keys.shape[2] - self.sums.shape[2]
            self.sums = torch.nn.functional.pad(self.sums, (0, more))


def test_scores_need_not_observe_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention precomputed for a stretch of passes is not used after it."""
    queries, keys = torch.randn((2, 1, 2, 700, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kind: Any = counting(H2OPress, lambda press: NowAndThen())
    press = kind(0.5, prune_after=500, recent_share=0)
    found = replay(press, keys, [1] * 700, queries=queries)
    monkeypatch.setattr("pressgauge.history.voting.MOST", 0)
    assert found.equal(replay(press, keys, [1] * 700, queries=queries))
    assert int((found < NEVER).sum())


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("prune_after", [0, 1, 2])
@pytest.mark.parametrize("kind", [H2OPress, TOVAPress])
def test_the_shortest_texts(kind: type[Press], prune_after: int, tokens: int) -> None:
    """With single tokens, at least one entry is retained."""
    found = follow(kind(0.3, prune_after=prune_after), [1] * tokens, (6, 2))
    assert int((found == NEVER).sum(dim=-1).min()) >= 1


@pytest.mark.parametrize("kind", ["plain", "far apart", "NaN"])
@pytest.mark.parametrize("name", ["h2o", "snapkv", "tova"])
def test_precomputed_attention_equals_that_of_each_pass(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precomputed attention equals that of each pass, also after the eviction of the entries with nearly all of the
    weight, and of keys with NaN."""
    press = {
        "h2o": H2OPress(0.4, prune_after=26, recent_share=0, sinks=2),
        "snapkv": SnapKVPress(0.2, prune_after=26, recent=12, sinks=12, kernel=1, schedule="budget"),
        "tova": TOVAPress(0.3, prune_after=26),
    }[name]
    generator = torch.Generator().manual_seed(5)
    queries, keys = (torch.randn((2, heads, 160, 4), generator=generator, dtype=torch.float64) for heads in (6, 2))
    if kind == "far apart":
        keys = keys * 3000
    if kind == "NaN":
        keys[0, :, 30, 0] = torch.nan
    passes = [1] * 90 + [5] * 2 + [1] * 60
    looks = Counter[bool]()
    ahead = Voting._look

    def look(self: Voting, since: int) -> None:
        ahead(self, since)
        looks[self._weights is not None] += 1

    monkeypatch.setattr(Voting, "_look", look)
    known = replay(press, keys, passes, queries=queries)
    assert looks[True] < len(passes) / (4 if kind == "plain" else 1)
    assert not looks[False]
    monkeypatch.setattr("pressgauge.history.voting.MOST", 0)
    looks.clear()
    assert known.equal(replay(press, keys, passes, queries=queries))
    assert looks[False]
    assert not looks[True]
    assert int((known < NEVER).sum())


def test_a_stretch_serves_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of requested queries is computed only outside the stretch, and with at most the allowed number of
    weights."""
    generator = torch.Generator().manual_seed(7)
    queries, keys = (torch.randn((2, heads, 160, 4), generator=generator, dtype=torch.float64) for heads in (6, 2))
    held = Held(keys, [0, 0])
    voting = Voting(votes.LastQueries(8), queries, held, 0.5)
    starts: list[int] = []
    known_look = voting._look

    def look(since: int) -> None:
        starts.append(since)
        known_look(since)

    monkeypatch.setattr(voting, "_look", look)
    for known, since in [(10, 2), (10, 2), (11, 3), (74, 66), (75, 67), (75, 66), (75, 70), (140, 100)]:
        held.add(known)
        found = voting.received(since)
        assert found is not None
        alone = votes.Attention(queries[:, :, since:known], held.keys, None, 0.5)
        torch.testing.assert_close(torch.from_numpy(found), alone.received(), rtol=1e-12, atol=0)
    assert starts == [2, 67, 66, 100]
    for since, ahead, fewer in [(99, 20, 0), (98, 10, 0), (97, 0, 0), (96, 0, 1)]:
        monkeypatch.setattr("pressgauge.history.voting.MOST", 2 * 6 * (140 - since + ahead) * (140 + ahead) - fewer)
        assert (voting.received(since) is None) == bool(fewer)
        assert voting._stop == 140 + ahead


@torch.no_grad()
def test_attention_is_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are computed with at most the allowed number of weights at a time, at any length, with the same result."""
    queries, keys = drawn(6, 2, rows=2)
    attention = votes.Attention(queries, keys, None, 0.5)
    whole = attention.received()
    for most in (1, 2 * 6 * 24 * 5):
        monkeypatch.setattr("pressgauge.presses.attention_scores.MOST", most)
        torch.testing.assert_close(attention.received(), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.sum(dim=-1), torch.full((2, 2), 24.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "given", "error", "sentence"),
    [
        (H2OPress, {"recent_share": 1.5}, ValueError, "recent_share must be in [0, 1], got 1.5"),
        (H2OPress, {"recent_share": "half"}, TypeError, "recent_share must be a number in [0, 1], got 'half'"),
        (
            SnapKVPress,
            {"recent": 0},
            ValueError,
            "recent must be at least 1 for SnapKVPress, which scores by the newest queries",
        ),
        (SnapKVPress, {"kernel": 4}, ValueError, "kernel must be an odd number of neighbours, got 4"),
        (SnapKVPress, {"kernel": 2.5}, TypeError, "kernel must be a whole number, got 2.5"),
        (SnapKVPress, {"keep_ratio": 0}, ValueError, "keep_ratio must be in (0, 1], got 0"),
    ],
)
def test_invalid_options_are_refused(kind: Any, given: dict[str, Any], error: Any, sentence: str) -> None:
    """Invalid options are refused with the value and the rule."""
    with pytest.raises(error, match=f"^{re.escape(sentence)}"):
        kind(**{"keep_ratio": 0.5, **given})


@dataclass(frozen=True)
class Undecided(Press):
    """A press that needs queries and lacks ``votes``."""

    fixed_scores: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = True

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        return keys[..., 0]


def test_a_press_that_needs_queries_must_define_votes() -> None:
    """A press that needs queries without ``votes`` is refused with the missing method."""
    sentence = "Undecided needs queries: define votes()"
    queries, keys = drawn(2, 2)
    with pytest.raises(NotImplementedError, match=f"^{re.escape(sentence)}$"):
        replay(Undecided(0.5, prune_after=4), keys, [24], queries=queries)


def test_the_recent_share_is_half_by_default() -> None:
    """The share of the newest tokens is half by default, rounded down from the decimal as written, after the sinks."""
    assert [H2OPress(0.5).newest(kept) for kept in (1, 2, 7, 100)] == [0, 1, 3, 50]
    assert H2OPress(0.5, recent_share=0.29).newest(100) == 29 > int(0.29 * 100)
    assert H2OPress(0.5, recent=10, recent_share=0).newest(100) == 10
    assert H2OPress(0.5, sinks=4).newest(6) == 2
    assert H2OPress(0.5, recent_share=1).newest(7) == 7


def test_the_smallest_window_and_no_neighbours_are_allowed() -> None:
    """With one query and no neighbours, SnapKVPress equals `TOVAPress` with a single KV head and a protected newest
    token."""
    queries, keys = drawn(3, 1)
    alone, tova = SnapKVPress(0.4, 5, recent=1, kernel=1, schedule="budget"), TOVAPress(0.4, 5, recent=1)
    one, other = (replay(press, keys, [1] * 24, queries=queries) for press in (alone, tova))
    assert one.equal(other)
    assert int((one < NEVER).sum())


@pytest.mark.parametrize("press", [PRESSES["h2o"], PRESSES["tova"]], ids=["sums", "queries"])
def test_products_are_divided_by_the_root_of_the_dimension(press: Press) -> None:
    """Products are divided by the square root of the dimension, or scaled as given."""
    queries, keys = drawn(6, 2)
    usual, half, whole = (
        replay(press, 3 * keys, [9] + [1] * 15, queries=queries, scale=scale) for scale in (None, 0.5, 2.0)
    )
    assert usual.equal(half)
    assert not usual.equal(whole)
