"""Timing: interleaved pairs, ratios within pairs, and values of the correct arm.

These tests do not depend on durations.
"""

import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from pressgauge import KnormPress, Press, timing
from pressgauge.conformance import architectures
from pressgauge.decoder import Generation, generate
from pressgauge.timing import PAIRS, Ratio, interleave, measure_timing, ratio

PRESS = KnormPress(0.5, prune_after=4)
IDS = architectures.tokens(2, 12)

positive = st.floats(1e-3, 1e3)

# Turns


def noted(calls: list[str], name: str) -> Callable[[], str]:
    """An arm that records its calls, and returns its name and the number of the call."""

    def arm() -> str:
        calls.append(name)
        return f"{name}{len(calls)}"

    return arm


def test_the_arms_alternate_in_going_first() -> None:
    """The arms alternate in going first, over the warm-up and three pairs."""
    calls: list[str] = []
    interleave(noted(calls, "a"), noted(calls, "b"), pairs=3)
    assert "".join(calls) == "abbaabba"


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_results_are_pairs_without_the_warm_up(warmup: int) -> None:
    """The result of the first arm is first in its pair, whichever ran first."""
    calls: list[str] = []
    pairs = interleave(noted(calls, "a"), noted(calls, "b"), pairs=4, warmup=warmup)
    expected = []
    for number in range(warmup, warmup + 4):
        one, other = 2 * number + 1, 2 * number + 2
        expected.append((f"a{other}", f"b{one}") if number % 2 else (f"a{one}", f"b{other}"))
    assert pairs == expected


@given(pairs=st.integers(0, 12), warmup=st.integers(0, 3))
def test_both_arms_run_equally_often(pairs: int, warmup: int) -> None:
    """Both arms run equally often, and go first equally often up to one."""
    calls: list[str] = []
    assert len(interleave(noted(calls, "a"), noted(calls, "b"), pairs, warmup)) == pairs
    assert calls.count("a") == calls.count("b") == pairs + warmup
    first = calls[2 * warmup :: 2]
    assert abs(first.count("a") - first.count("b")) <= 1


# Ratios


def test_a_ratio_is_the_median_of_the_ratios_of_pairs() -> None:
    """A ratio is the median of ratios of pairs, not a ratio of medians or means."""
    pairs = [(2.0, 1.0), (30.0, 10.0), (400.0, 10.0), (1.0, 1.0), (0.4, 0.1)]
    assert ratio(pairs).median == pytest.approx(3)
    assert ratio(pairs[:4]).median == 2.5


def test_pairs_of_one_ratio_have_an_interval_of_no_width() -> None:
    """Pairs of equal ratios have an interval of width 0, however much times vary."""
    assert ratio([(time / 2, time) for time in (1.0, 8.0, 64.0, 0.25)]) == Ratio(0.5, (0.5, 0.5))


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=12))
def test_the_interval_contains_the_median_and_lies_among_the_pairs(pairs: list[tuple[float, float]]) -> None:
    """The interval contains the median and lies within the ratios of the pairs."""
    result = ratio(pairs)
    quotients = [first / second for first, second in pairs]
    low, high = result.interval
    # Interpolation between equal medians may be off by their last bit.
    slack = 1e-15
    assert min(quotients) * (1 - slack) <= low <= result.median * (1 + slack)
    assert result.median * (1 - slack) <= high <= max(quotients) * (1 + slack)


def test_the_interval_is_that_of_a_bootstrap() -> None:
    """The interval is the 95 % percentile bootstrap over 9,999 resamples, as drawn by numpy."""
    generator = np.random.default_rng(5)
    quotients = generator.lognormal(sigma=0.3, size=PAIRS)
    result = ratio([(quotient, 1.0) for quotient in quotients])
    resampled = np.median(generator.choice(quotients, (9999, PAIRS)), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    # Medians of nine are among the nine, so that the ends agree exactly unless one falls between two of them.
    assert result.interval == pytest.approx((low, high))
    assert result.interval[0] < result.median < result.interval[1]


def test_the_same_pairs_have_the_same_interval_every_time() -> None:
    """Every call draws the same resamples."""
    pairs = [(quotient, 1.0) for quotient in np.random.default_rng(6).lognormal(size=800).tolist()]
    assert ratio(pairs) == ratio(pairs) == ratio(pairs)


def test_numpys_global_random_state_is_unchanged() -> None:
    """Resampling does not use numpy's global random state."""
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    ratio([(1.0, 2.0), (2.0, 2.0)])
    assert np.random.random() == expected


@pytest.mark.parametrize("pairs", [[], [(1.0, 2.0)]])
def test_fewer_than_two_pairs_have_no_ratio(pairs: list[tuple[float, float]]) -> None:
    """A ratio needs two pairs, since one has no spread."""
    with pytest.raises(ValueError, match=f"a ratio needs at least two pairs of measurements, got {len(pairs)}"):
        ratio(pairs)


def test_a_ratio_is_printed_with_its_interval() -> None:
    """A ratio is printed with its confidence interval, with three decimals."""
    assert str(Ratio(0.98765, (0.9, 1.23456))) == "0.988 [0.900, 1.235]"


# A measurement


class Fake:
    """Replacement of ``generate`` with given times, in the order of the calls of each arm."""

    def __init__(self, pressed: Iterator[tuple[float, float]], plain: Iterator[tuple[float, float]]) -> None:
        self.times = {True: pressed, False: plain}
        self.calls: list[bool] = []
        self.caches: list[weakref.ref[Any]] = []
        self.alive: list[int] = []

    def __call__(
        self, model: Any, input_ids: torch.Tensor, press: Press | None, max_new_tokens: int, **given: Any
    ) -> Generation:
        self.alive.append(sum(cache() is not None for cache in self.caches))
        self.calls.append(press is not None)
        ttft, tpot = next(self.times[press is not None])
        cache = DynamicCache(config=model.config)
        self.caches.append(weakref.ref(cache))
        rows, length = input_ids.shape
        tokens = input_ids.new_zeros(rows, length + max_new_tokens)
        return Generation(tokens, max_new_tokens, rows * max_new_tokens, cache, ttft, tpot)


def test_ratios_are_of_pairs_and_seconds_are_of_the_pressed_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are those of pairs, seconds those of the pressed arm, both without the warm-up."""
    pressed = [(1000.0, 1000.0), (1.0, 0.2), (3.0, 0.6), (5.0, 0.4)]
    plain = [(1.0, 1.0), (2.0, 0.1), (3.0, 0.2), (4.0, 0.4)]
    fake = Fake(iter(pressed), iter(plain))
    monkeypatch.setattr(timing, "generate", fake)
    result = measure_timing(architectures.shared("llama"), IDS, PRESS, 6, pairs=3)
    assert fake.calls == [True, False, False, True, True, False, False, True]
    assert result.ttft_ratio == ratio([(1.0, 2.0), (3.0, 3.0), (5.0, 4.0)])
    assert result.tpot_ratio == ratio([(0.2, 0.1), (0.6, 0.2), (0.4, 0.4)])
    assert result.ttft_ratio.median == 1
    assert result.tpot_ratio.median == pytest.approx(2)
    assert (result.ttft, result.tpot) == (3.0, 0.4)
    # Two rows of six tokens, in 1 + 5 * .2, 3 + 5 * .6 and 5 + 5 * .4 seconds.
    assert result.tokens_per_second == pytest.approx(12 / 6)


def test_no_press_is_measured_against_no_press(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a press, both arms are uncompressed, which shows the noise."""
    times = ((float(number), 1.0) for number in count(1))
    fake = Fake(iter(()), times)
    monkeypatch.setattr(timing, "generate", fake)
    # Both arms draw from one clock that gets slower: 3 is second and 4 is first, 5 first and 6 second.
    result = measure_timing(architectures.shared("llama"), IDS, None, 2, pairs=2)
    assert not any(fake.calls)
    assert result.ttft_ratio.median == pytest.approx((4 / 3 + 5 / 6) / 2)


def test_caches_are_freed_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of one arm is freed before the other arm is measured."""
    fake = Fake(((1.0, 1.0) for _ in count()), ((1.0, 1.0) for _ in count()))
    monkeypatch.setattr(timing, "generate", fake)
    measure_timing(architectures.shared("llama"), IDS, PRESS, 3)
    assert fake.alive == [0] * 2 * (1 + PAIRS)


def test_every_run_advances_the_progress() -> None:
    """``advance`` is called once after each run of each arm, including the warm-up."""
    calls: list[None] = []
    measure_timing(architectures.shared("llama"), IDS, PRESS, 2, pairs=2, advance=lambda: calls.append(None))
    assert len(calls) == 2 * (1 + 2)


@pytest.mark.parametrize("press", [PRESS, None], ids=["knorm", "none"])
def test_memory_on_the_cpu_is_the_storage_of_the_pressed_cache(press: Press | None) -> None:
    """Memory on the CPU is the final storage of the pressed cache: 9 of 17 tokens per layer and head."""
    result = measure_timing(architectures.shared("llama"), IDS, press, 6, pairs=2)
    entry = 2 * 3 * 2 * 8 * 2 * 8  # rows, layers, KV heads, dimension, keys and values, bytes
    held = 17 if press is None else 9
    assert result.peak_memory_bytes is not None
    assert held * entry <= result.peak_memory_bytes <= held * entry * 1.02
    assert result.peak_memory_of == "cache"


def test_a_real_generation_is_measured() -> None:
    """With the real ``generate``, all numbers are present, and intervals contain their medians."""
    result = measure_timing(architectures.shared("llama"), IDS, PRESS, 4, pairs=2)
    assert min(result.ttft, result.tpot, result.tokens_per_second) > 0
    for each in (result.ttft_ratio, result.tpot_ratio):
        assert 0 < each.interval[0] <= each.median <= each.interval[1]


def test_an_end_of_sequence_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both arms generate equally many tokens, without stopping at an end of sequence."""
    model = architectures.build("llama")
    first = int(generate(model, IDS[:1], max_new_tokens=1).tokens[0, -1])
    model.generation_config.eos_token_id = first
    assert generate(model, IDS[:1], max_new_tokens=5).new_tokens == 1, "this model is to stop at once"
    runs: list[Generation] = []

    def noting(*args: Any, **given: Any) -> Generation:
        runs.append(generate(*args, **given))
        return runs[-1]

    monkeypatch.setattr(timing, "generate", noting)
    measure_timing(model, IDS[:1], PRESS, 5, pairs=2)
    assert [(run.new_tokens, run.generated) for run in runs] == [(5, 5)] * 6


@pytest.mark.parametrize("new_tokens", [1, 0, -1])
def test_fewer_than_two_new_tokens_are_refused(new_tokens: int) -> None:
    """TPOT needs at least two new tokens."""
    with pytest.raises(ValueError, match=f"new_tokens must be at least 2, .*got {new_tokens}"):
        measure_timing(architectures.shared("llama"), IDS, PRESS, new_tokens)


def test_one_pair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single pair is refused before anything is run."""
    monkeypatch.setattr(timing, "generate", Fake(iter(()), iter(())))
    with pytest.raises(ValueError, match="at least two pairs of measurements, got 1"):
        measure_timing(architectures.shared("llama"), IDS, PRESS, 2, pairs=1)
