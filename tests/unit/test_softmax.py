"""Softcaps and sink logits in a softmax, against explicit sums."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pressgauge import replay
from pressgauge.conformance.oracle import Rules, counts, retained
from pressgauge.history import NEVER, voting
from pressgauge.onepass import attend
from pressgauge.presses import H2OPress
from pressgauge.presses.attention_scores import MOST, Attention, LastQueries, weights
from pressgauge.softmax import PLAIN, Softmax, softmax_of
from support.accelerator import accelerator

SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
FORMS = {
    "plain": PLAIN,
    "softcap": Softmax(softcap=0.7),
    "sinks": Softmax(sinks=SINKS),
    "both": Softmax(0.7, SINKS),
}
SCALE = 0.4
PASSES = [10, *[1] * 30]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, large enough for non-uniform attention."""
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explicit(query: Tensor, keys: list[Tensor], form: Softmax, head: int) -> list[float]:
    """Attention weights of one query, one sum after the other."""
    logits = [SCALE * float(query @ key) for key in keys]
    if form.softcap is not None:
        logits = [form.softcap * math.tanh(logit / form.softcap) for logit in logits]
    others = [] if form.sinks is None else [float(form.sinks[head])]
    total = math.fsum(math.exp(logit) for logit in [*logits, *others])
    return [math.exp(logit) / total for logit in logits]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_weights_are_explicit_sums(form: Softmax) -> None:
    """Query head h has sink h, and no weight falls on padding slots or later entries."""
    queries, keys = random(1, 4, 3, 5), random(1, 2, 7, 5, seed=1)
    filler = torch.zeros(1, 2, 7, dtype=torch.bool)
    filler[0, 1, 2] = True
    found = weights(queries, keys, filler, SCALE, form)
    for head in range(4):
        for token in range(3):
            seen = [j for j in range(5 + token) if not filler[0, head // 2, j]]
            wanted = torch.zeros(7, dtype=torch.float64)
            wanted[seen] = torch.tensor(
                explicit(queries[0, head, token], [keys[0, head // 2, j] for j in seen], form, head),
                dtype=torch.float64,
            )
            torch.testing.assert_close(found[0, head // 2, head % 2, token], wanted, rtol=0, atol=1e-14)


def test_a_query_of_padding_gives_all_its_attention_to_the_sinks() -> None:
    """It attends to nothing, and its weights are no NaN."""
    keys = random(1, 2, 2, 5)
    assert weights(random(1, 4, 1, 5), keys, torch.ones(1, 2, 2, dtype=torch.bool), SCALE, FORMS["sinks"]).eq(0).all()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("block", [1, 4, 256])
@pytest.mark.parametrize("width", [5, 3], ids=["fused", "explicit"])
def test_attention_in_blocks_is_explicit_sums(form: Softmax, block: int, width: int) -> None:
    """Whether one part or two are merged, a sink takes part once, and a softcap comes before the mask."""
    length = 13
    query, key, value = random(1, 4, length, 5), random(1, 2, length, 5, seed=1), random(1, 2, length, width, seed=2)
    table = torch.full((1, 2, length), NEVER, dtype=torch.int32)
    for head, tokens in enumerate(([0, 3, 4, 1], [2, 1, 0, 5])):
        for token, time in zip(tokens, (6, 7, 9, 12), strict=True):
            table[0, head, token] = time
    found = attend(query, key, value, table, SCALE, softmax=form, block=block)
    for head in range(4):
        for time in range(length):
            seen = [j for j in range(time + 1) if table[0, head // 2, j] > time]
            given = explicit(query[0, head, time], [key[0, head // 2, j] for j in seen], form, head)
            wanted = torch.tensor(given, dtype=torch.float64) @ value[0, head // 2, seen]
            torch.testing.assert_close(found[0, head, time], wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("most", [MOST, 0], ids=["ahead", "pass by pass"])
def test_replay_renormalises_what_is_left_with_its_sinks(
    most: int, form: Softmax, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention computed ahead for a stretch of tokens gives the evictions of attention computed pass by pass, to which
    a limit of memory leads."""
    monkeypatch.setattr(voting, "MOST", most)
    keys, queries = random(1, 2, 40, 5), random(1, 4, 40, 5, seed=1)
    press = H2OPress(0.3, prune_after=4)
    together = replay(press, keys, PASSES, queries=queries, scale=SCALE, softmax=form)
    sums = [[0.0] * 40 for _ in range(2)]
    held: list[list[int]] = [[], []]
    table = torch.full((1, 2, 40), NEVER, dtype=torch.int32)
    seen, rules = 0, Rules(0.3, 4, recent_share=0.5)
    for tokens, size in zip(PASSES, counts(rules, PASSES), strict=True):
        start, seen = seen, seen + tokens
        for head in range(2):
            held[head] += range(start, seen)
            for time in range(start, seen):
                there = [j for j in held[head] if j <= time]
                for one in (2 * head, 2 * head + 1):
                    given = explicit(queries[0, one, time], [keys[0, head, j] for j in there], form, one)
                    for j, weight in zip(there, given, strict=True):
                        sums[head][j] += weight
            kept = retained(rules, held[head], [sums[head][j] for j in held[head]], size, seen)
            for j in set(held[head]) - set(kept):
                table[0, head, j] = seen
            held[head] = kept
    assert torch.equal(together, table)


def softcapped(module: Any, query: Tensor, softcap: float | None = None) -> None:
    """An attention function that names a softcap."""


def other(module: Any, query: Tensor, **kwargs: Any) -> None:
    """An attention function that ignores what it does not name."""


def test_what_a_call_passes_counts_where_its_function_uses_it() -> None:
    """A softcap where it is named, sinks other than in transformers' sdpa function."""
    given = {"softcap": 2.0, "s_aux": SINKS}
    assert softmax_of(softcapped, {"scaling": 1.0}) is PLAIN
    assert softmax_of(softcapped, {"softcap": None, "s_aux": None}) is PLAIN
    found = softmax_of(softcapped, given)
    assert (found.softcap, found.sinks, found.plain) == (2.0, SINKS, False)
    assert (softmax_of(other, given).softcap, softmax_of(other, given).sinks) == (None, SINKS)
    assert softmax_of(sdpa_attention_forward, given).plain


def test_one_of_softcap_and_sinks_is_enough() -> None:
    """A call that passes only one has that one."""
    capped, sunk = softmax_of(softcapped, {"softcap": 2.0}), softmax_of(softcapped, {"s_aux": SINKS})
    assert (capped.softcap, capped.sinks, capped.plain) == (2.0, None, False)
    assert (sunk.softcap, sunk.sinks, sunk.plain) == (None, SINKS, False)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_attention_of_the_last_queries_is_explicit_sums(form: Softmax) -> None:
    """Recomputed on demand over the entries that are retained by then, as a mean over queries and query heads."""
    queries, keys = random(1, 4, 7, 5), random(1, 2, 7, 5, seed=1)
    votes = LastQueries(2)
    votes.observe(Attention(queries, keys, None, SCALE, form))
    held = [0, 2, 5, 6]
    votes.keep(torch.tensor(held))
    found = votes.of(keys[:, :, held])
    for head in range(2):
        wanted = torch.zeros(4, dtype=torch.float64)
        for one in (2 * head, 2 * head + 1):
            for time in (5, 6):
                there = [j for j in held if j <= time]
                given = explicit(queries[0, one, time], [keys[0, head, j] for j in there], form, one)
                wanted[: len(there)] += torch.tensor(given, dtype=torch.float64) / 4
        torch.testing.assert_close(found[0, head], wanted, rtol=0, atol=1e-14)


def test_query_heads_have_the_sinks_of_their_group() -> None:
    """Of six query heads, three share a KV head; a sink may be on another device than the keys."""
    queries, keys, sinks = random(1, 6, 1, 5), random(1, 2, 7, 5, seed=1), random(6, seed=2)
    found = weights(queries, keys, None, SCALE, Softmax(sinks=sinks))
    for head in range(6):
        given = explicit(queries[0, head, 0], list(keys[0, head // 3]), Softmax(sinks=sinks), head)
        wanted = torch.tensor(given, dtype=torch.float64)
        torch.testing.assert_close(found[0, head // 3, head % 3, 0], wanted, rtol=0, atol=1e-14)
    with accelerator() as device:
        away = weights(queries.to(device), keys.to(device), None, SCALE, Softmax(sinks=sinks))
        assert away.device == device
        assert torch.equal(away.cpu(), found)


def test_half_precision_is_computed_in_float32_and_shared_in_its_own() -> None:
    """Attention of bfloat16 states is that of their float32 copies, and the share of the sinks keeps the dtype."""
    query, key, value = (random(1, 2, 8, 5, seed=seed).bfloat16() for seed in range(3))
    half = FORMS["both"].attention(query, key, value, SCALE, None)
    full = FORMS["both"].attention(query.float(), key.float(), value.float(), SCALE, None)
    for own, wide in zip(half, full, strict=True):
        assert own.dtype == torch.float32
        assert torch.equal(own, wide)
    assert FORMS["both"].share(half[0].bfloat16(), half[1], 2).dtype == torch.bfloat16


def test_sinks_follow_the_dtype_of_the_logits() -> None:
    """Sinks in float32 of a model in float64 do not lower the precision of weights, and those in float64 of a model in
    float32 do not raise it."""
    queries, keys = random(1, 4, 3, 5), random(1, 2, 7, 5, seed=1)
    exact = Attention(queries, keys, None, SCALE, FORMS["sinks"]).received()
    assert torch.equal(Attention(queries, keys, None, SCALE, Softmax(sinks=SINKS.float())).received(), exact)
    assert weights(queries.float(), keys.float(), None, SCALE, FORMS["sinks"]).dtype == torch.float32
