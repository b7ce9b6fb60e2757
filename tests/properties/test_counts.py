"""Rules 2 and 3: when a press evicts, how many entries it retains, and exact integers."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pressgauge import KnormPress, PressedCache
from pressgauge.conformance import oracle
from pressgauge.conformance.strategies import LAYERS, Case, cases, pass_lists, ratios
from pressgauge.conformance.subjects import Subject
from pressgauge.rules import Budget, Ledger, as_written, exact_ceil
from support.drive import feed


@given(data=st.data())
def test_every_layer_holds_the_number_its_schedule_sets(subject: Subject, data: st.DataObject) -> None:
    """Rule 2: ``held`` of each layer equals the oracle's after every pass; a skipped layer holds all."""
    case: Case = data.draw(cases(subject.schedule))
    press = subject(**case.options)
    keys = case.keys[:, :1]
    expected = [
        subject.history(case.options, keys, case.passes, layer, case.prompt_length)[1] for layer in range(LAYERS)
    ]
    counts = iter(zip(*expected, strict=True))

    def look(cache: PressedCache, seen: int) -> None:
        assert cache.seen == seen
        assert cache.held == list(next(counts))

    feed(press, case.keys, case.passes, prompt_length=case.prompt_length, look=look)


@given(
    ratio=ratios(), prune_after=st.integers(0, 30), sinks=st.integers(0, 8), recent=st.integers(0, 8), data=st.data()
)
def test_budget_is_a_closed_form(ratio: float, prune_after: int, sinks: int, recent: int, data: st.DataObject) -> None:
    """Rule 2: under ``budget``, ``held == min(seen, max(P, sinks + recent, ceil(r * seen)))`` after every pass."""
    ledger = Ledger(Budget(ratio, prune_after, sinks=sinks, recent=recent))
    for length in data.draw(pass_lists(120)):
        ledger.feed(length, [0])
        seen = ledger.columns
        assert ledger.held == [min(seen, max(prune_after, sinks + recent, oracle.ceil_of(ratio, seen)))]


@given(ratio=ratios(), interval=st.integers(1, 6), data=st.data())
def test_an_interval_exceeds_the_closed_form_by_what_was_fed_since(
    ratio: float, interval: int, data: st.DataObject
) -> None:
    """Rule 2: between two actions, ``held`` exceeds the closed form by at most the tokens fed since the last."""
    every, now_and_then = Ledger(Budget(ratio, 5)), Ledger(Budget(ratio, 5, interval=interval))
    since = 0
    for index, length in enumerate(data.draw(pass_lists(80))):
        every.feed(length, [0])
        now_and_then.feed(length, [0])
        since = 0 if index % interval == 0 else since + length
        assert 0 <= now_and_then.held[0] - every.held[0] <= since


@pytest.mark.parametrize("schedule", ["budget", "step", "prefill"])
@pytest.mark.parametrize("held", [31, 32, 33])
def test_a_layer_that_holds_prune_after_entries_evicts_nothing(schedule: str, held: int) -> None:
    """Rule 2: a layer with P entries or fewer evicts nothing; one with more may (S1 and S2 of the bug catalogue)."""
    press = KnormPress(0.1, prune_after=32, schedule=schedule)  # type: ignore[arg-type]
    wanted = {"budget": 32, "step": 4, "prefill": 4}[schedule] if held > 32 else held
    assert press.target(held, held) == wanted


def test_prefill_acts_once_after_the_last_chunk_of_the_prompt() -> None:
    """Rule 2: under ``prefill`` nothing is evicted before the prompt is complete, nor later."""
    ledger = Ledger(Budget(0.5, 4, schedule="prefill"), prompt_length=20)
    held = []
    for length in (8, 8, 8, 1, 1, 30):
        ledger.feed(length, [0])
        held += ledger.held
    assert held == [8, 16, 12, 13, 14, 44]


def test_the_pass_after_a_one_token_prompt_is_not_a_prompt() -> None:
    """The first pass is the prompt, whatever its length (C7 of the bug catalogue)."""
    ledger = Ledger(Budget(0.5, 0, schedule="prefill"))
    for length in (1, 7, 1):
        ledger.feed(length, [0])
    assert ledger.held == [9]


@given(ratio=st.decimals("0.0001", "1", places=4), count=st.integers(0, 10**6))
def test_the_ceiling_is_that_of_the_decimal_as_written(ratio: Decimal, count: int) -> None:
    """Rule 3: ``ceil(r * n)`` of the decimal value, for floats, decimals and fractions alike."""
    expected = oracle.ceil_of(float(ratio), count)
    assert exact_ceil(as_written(float(ratio)), count) == expected
    assert exact_ceil(as_written(ratio), count) == expected  # type: ignore[arg-type]
    assert exact_ceil(Fraction(ratio), count) == expected


def test_floats_would_retain_one_entry_too_many() -> None:
    """Rule 3's example: .07 of 100 is 7, although the float product rounds up to 8."""
    assert math.ceil(0.07 * 100) == 8
    assert exact_ceil(as_written(0.07), 100) == 7


def test_counts_are_exact_where_floats_are_not(subject: Subject) -> None:
    """Rule 3: targets are those of the decimal product where the float product rounds to another integer."""
    hundredths = [(n / 100, seen) for n in range(1, 100) for seen in range(1, 101)]
    traps = [(ratio, seen) for ratio, seen in hundredths if math.ceil(ratio * seen) != oracle.ceil_of(ratio, seen)]
    assert len(traps) > 10
    # Floors are wrong for nearly all cases, so a few suffice.
    for ratio, seen in traps + hundredths[::997]:
        keys = torch.zeros(1, 1, seen, 1, dtype=torch.float64)
        held = feed(subject(ratio, prune_after=0, sinks=0), keys, [seen]).held
        assert held == [oracle.ceil_of(ratio, seen)] * LAYERS


@given(ratio=ratios(), seen=st.integers(1, 5000))
def test_a_target_is_never_empty(ratio: float, seen: int) -> None:
    """At least one entry is retained, at any ratio (S5 of the bug catalogue)."""
    for schedule in ("budget", "step", "prefill"):
        assert Budget(ratio, 0, schedule=schedule).target(seen, seen) >= 1


@given(
    budget=st.builds(Budget, ratios(), st.integers(0, 12), interval=st.integers(1, 4)),
    passes=pass_lists(),
    data=st.data(),
)
def test_cropping_restores_the_counts(budget: Budget, passes: list[int], data: st.DataObject) -> None:
    """A ledger cropped to before its first eviction counts as if the cropped passes had never been fed."""
    ledger = Ledger(budget, prompt_length=passes[0])
    fed = []
    for length in passes:
        if ledger.would_cut(length, [0]):
            break
        ledger.feed(length, [0])
        fed.append(length)
    columns = data.draw(st.integers(0, sum(fed)))
    ledger.crop(columns)
    again = Ledger(budget, prompt_length=passes[0])
    left = columns
    for length in fed:
        if left:
            again.feed(min(length, left), [0])
            left -= min(length, left)
    for length in (1, 3, 1, 1, 20, 1):
        ledger.feed(length, [0])
        again.feed(length, [0])
        assert ledger.held == again.held
