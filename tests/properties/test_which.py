"""Rules 4 and 5: which entries are retained, and the order in which they are read."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pressgauge import KeyDiffPress, KnormPress, PressedCache, StreamingLLMPress
from pressgauge.cache import PressedLayer
from pressgauge.conformance import oracle
from pressgauge.conformance.strategies import DIMENSION, HEADS, LAYERS, Case, cases, few, key_tensors, options
from pressgauge.conformance.subjects import Subject
from pressgauge.presses.ranking import rank
from support.drive import feed, values_of

NEVER = oracle.NEVER


@given(data=st.data())
def test_the_best_entries_are_retained(subject: Subject, data: st.DataObject) -> None:
    """Rule 4: ``evicted_at`` of every layer, head and token equals the oracle's, including ties."""
    case: Case = data.draw(cases(subject.schedule))
    press = subject(**case.options)
    cache = feed(press, case.keys, case.passes, prompt_length=case.prompt_length)
    for layer in range(LAYERS):
        expected, _ = subject.history(case.options, case.keys, case.passes, layer, case.prompt_length)
        assert cache.evicted_at[layer].tolist() == expected


@few
@given(data=st.data())
def test_entries_are_in_the_order_of_positions(subject: Subject, data: st.DataObject) -> None:
    """Rule 5: keys, values and positions are those of the retained tokens, in ascending order and aligned."""
    case: Case = data.draw(cases(subject.schedule))
    values = values_of(case.keys)

    def look(cache: PressedCache, seen: int) -> None:
        for index, layer in enumerate(cache.layers):
            for head in range(HEADS):
                kept = torch.nonzero(cache.evicted_at[index][0, head] == NEVER)[:, 0]
                assert layer.keys is not None
                assert layer.values is not None
                assert torch.equal(layer.keys[0, head], case.keys[0, head, kept])
                assert torch.equal(layer.values[0, head], values[0, head, kept])
                if isinstance(layer, PressedLayer):
                    assert layer.positions is not None
                    assert layer.positions[0, head].tolist() == kept.tolist()

    feed(subject(**case.options), case.keys, case.passes, prompt_length=case.prompt_length, look=look)


@given(data=st.data(), length=st.integers(1, 40))
def test_compress_equals_a_cache_fed_in_one_pass(subject: Subject, data: st.DataObject, length: int) -> None:
    """``compress()`` retains the entries of a cache fed in one pass, in order, and returns its input if none is
    evicted."""
    press = subject(**data.draw(options(subject.schedule)))
    keys = data.draw(key_tensors(length))
    values = values_of(keys)
    cache = feed(press, keys, [length])
    for layer in range(LAYERS):
        kept_keys, kept_values = press.compress(keys, values, layer=layer)
        assert torch.equal(kept_keys, cache.layers[layer].keys)
        assert torch.equal(kept_values, cache.layers[layer].values)
        if kept_keys.shape[2] == length:
            assert kept_keys is keys
            assert kept_values is values


@few
@given(data=st.data(), length=st.integers(2, 30))
def test_sinks_and_recent_tokens_are_never_evicted(subject: Subject, data: st.DataObject, length: int) -> None:
    """Rule 4: protected positions are retained even with the lowest scores (S6, S7 and S11 of the bug catalogue)."""
    sinks, recent = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 4))
    press = subject(0.1, prune_after=data.draw(st.integers(0, 4)), sinks=sinks, recent=recent)
    keys = data.draw(key_tensors(length))
    keys[:, :, :sinks] = 1e6
    keys[:, :, length - recent :] = torch.nan

    def look(cache: PressedCache, seen: int) -> None:
        table = cache.evicted_at[0]
        assert (table[:, :, :sinks] == NEVER).all()
        assert (table[:, :, max(0, seen - recent) : seen] == NEVER).all()

    feed(press, keys, [1] * length, look=look)
    feed(press, keys, [length], look=look)


def _places(scores: list[float]) -> list[int]:
    """Order in which entries would be retained."""
    tensor = torch.tensor([[scores]], dtype=torch.float64)
    ranks = rank(tensor, torch.arange(len(scores))[None, None])
    return ranks[0, 0].argsort(descending=True).tolist()


@given(scores=st.lists(st.floats(allow_subnormal=False, width=32), min_size=1, max_size=12))
def test_ranks_follow_the_rules(scores: list[float]) -> None:
    """Rule 4: entries rank by score rounded to 10 significant bits, then by position, with NaN last."""
    order = sorted(range(len(scores)), key=lambda i: (-oracle.rounded(scores[i]), i))
    assert _places(scores) == order


@given(scores=st.lists(st.floats(allow_subnormal=False, width=32), min_size=1, max_size=12))
def test_ranks_do_not_depend_on_the_dtype(scores: list[float]) -> None:
    """Rule 4: the same scores rank alike in float32 and float64."""
    positions = torch.arange(len(scores))[None, None]
    wide = torch.tensor([[scores]], dtype=torch.float64)
    assert torch.equal(rank(wide, positions).argsort(), rank(wide.float(), positions).argsort())


def test_scores_that_are_equal_up_to_rounding_tie() -> None:
    """Rule 4: of scores that differ in the last bits only the earlier token wins, and larger differences count."""
    assert _places([1.0, 1.0 + 2**-40, 1.0 - 2**-40]) == [0, 1, 2]
    assert _places([1.0, 1.0 + 2**-9]) == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_infinite_and_missing_scores_have_their_place(dtype: torch.dtype) -> None:
    """Rule 4: minus infinity ranks below every number and above NaN, in every dtype."""
    scores = torch.tensor([[[torch.nan, -torch.inf, 0.0, torch.inf, -1.0]]], dtype=dtype)
    ranks = rank(scores, torch.arange(5)[None, None])
    assert ranks[0, 0].argsort(descending=True).tolist() == [3, 2, 4, 1, 0]


def test_integer_scores_are_not_rounded() -> None:
    """Positions beyond 2 ** 16 are not rounded: the newest tokens of a long text are retained."""
    positions = torch.arange(100_000, 100_064)[None, None]
    press = StreamingLLMPress(0.5, prune_after=0, sinks=0)
    scores = press.score(torch.zeros(1, 1, 64, 2), positions=positions, layer=0)
    best = rank(scores, positions)[0, 0].argsort(descending=True)[:32]
    assert sorted(best.tolist()) == list(range(32, 64))


def test_norms_do_not_overflow_in_half_precision() -> None:
    """Norms of 60,000 and 65,000 times the root of two differ in float16 (S12 of the bug catalogue)."""
    keys = torch.tensor([[[[65000.0, 65000.0], [60000.0, 60000.0], [65000.0, 64000.0]]]], dtype=torch.float16)
    scores = KnormPress(0.5).score(keys, positions=torch.arange(3)[None, None], layer=0)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert scores[0, 0].argsort(descending=True).tolist() == [1, 2, 0]


def test_scores_are_computed_in_float32_or_wider(subject: Subject) -> None:
    """Large keys in float16 score as in float64 (S12 of the bug catalogue)."""
    length = 24
    sizes = torch.logspace(4.6, 4.8, length, dtype=torch.float64)[torch.arange(length) * 7 % length]
    keys = (
        (sizes[None, None, :, None] * torch.tensor([1.0, -1.0, 1.0, -1.0])).expand(1, HEADS, length, DIMENSION).half()
    )
    assert keys.isfinite().all()
    options: dict[str, Any] = {"keep_ratio": 0.4, "prune_after": 4}
    cache = feed(subject(**options), keys, [10] + [1] * (length - 10))
    expected, _ = subject.history(options, keys.double(), [10] + [1] * (length - 10), 0)
    assert cache.evicted_at[0].tolist() == expected


def test_knorm_retains_the_lowest_norms() -> None:
    """KnormPress retains the keys of lowest norm, as in the paper (S3 of the bug catalogue)."""
    keys = torch.tensor([3.0, 1.0, 4.0, 2.0, 5.0])[None, None, :, None]
    kept, _ = KnormPress(0.4, prune_after=0).compress(keys, keys)
    assert kept.flatten().tolist() == [1.0, 2.0]


def test_heads_are_independent() -> None:
    """Each KV head retains its own entries (S8 of the bug catalogue)."""
    keys = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])[None, :, :, None]
    kept, _ = KnormPress(0.5, prune_after=0).compress(keys, keys)
    assert kept[0, :, :, 0].tolist() == [[1.0, 2.0], [2.0, 1.0]]


@given(keys=key_tensors(12), exponent=st.integers(-20, 20))
def test_scaling_a_head_by_a_power_of_two_changes_nothing_for_knorm(keys: Tensor, exponent: int) -> None:
    """Scores are rounded relatively, so the scale of a head does not matter."""
    press = KnormPress(0.5, prune_after=0)
    kept, _ = press.compress(keys, keys)
    scaled, _ = press.compress(keys * 2.0**exponent, keys)
    assert torch.equal(scaled, kept * 2.0**exponent)


@settings(max_examples=25)
@given(data=st.data(), length=st.integers(2, 16), split=st.integers(1, 15))
def test_later_tokens_change_no_earlier_decision(
    subject: Subject, data: st.DataObject, length: int, split: int
) -> None:
    """Causality: tokens after t do not affect evictions up to t."""
    assume(split < length)
    press = subject(**data.draw(options(subject.schedule)))
    keys = data.draw(key_tensors(length))
    other = keys.clone()
    other[:, :, split:] = data.draw(key_tensors(length - split))
    for passes in ([1] * length, [split] + [1] * (length - split)):
        one, two = (
            feed(press, variant, passes, prompt_length=1).evicted_at[0][:, :, :split] for variant in (keys, other)
        )
        assert torch.equal(one.masked_fill(one > split, NEVER), two.masked_fill(two > split, NEVER))


def test_keydiff_ignores_padding() -> None:
    """The mean of the held keys excludes padding slots."""
    keys = torch.randn(1, 1, 6, 4, dtype=torch.float64)
    positions = torch.tensor([[[-1, -1, 0, 1, 2, 3]]])
    press = KeyDiffPress(0.5)
    alone = press.score(keys[:, :, 2:], positions=positions[:, :, 2:], layer=0)
    assert torch.allclose(press.score(keys, positions=positions, layer=0)[:, :, 2:], alone, rtol=1e-13)
