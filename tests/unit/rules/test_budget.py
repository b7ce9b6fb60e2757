"""Integers of a press: validation, numbers of retained entries, and the counts of a ledger."""

import math
import re
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressgauge.rules import Budget, Ledger, Schedule, pass_lengths, usual_prompt


def exactly(sentence: str) -> str:
    """A pattern that matches only this sentence."""
    return f"^{re.escape(sentence)}$"


def plain_target(budget: Budget, seen: int, held: int) -> int:
    """Rule 2 in decimals."""
    if held <= budget.prune_after:
        return held
    count, floor = (seen, budget.prune_after) if budget.schedule == "budget" else (held, 1)
    share = int((Decimal(str(budget.keep_ratio)) * count).to_integral_value(rounding=ROUND_CEILING))
    return min(held, max(floor, budget.sinks + budget.recent, share))


def plain_counts(budget: Budget, passes: list[int], prompt: int, padding: list[int]) -> list[list[int]]:
    """Numbers held after each pass, computed per row."""
    rows = []
    for pad in padding:
        columns = seen = held = later = 0
        counts = []
        for tokens in passes:
            is_later = columns >= prompt
            columns += tokens
            later += is_later
            held += max(0, columns - pad) - seen
            seen = max(0, columns - pad)
            ends_prompt = not is_later and columns >= prompt
            acts = ends_prompt if budget.schedule == "prefill" else not is_later or later % budget.interval == 0
            if acts:
                held = plain_target(budget, seen, held)
            counts.append(held)
        rows.append(counts)
    return [list(counts) for counts in zip(*rows, strict=True)]


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    """Rules small enough that two dozen tokens exercise each of them."""
    schedule: Schedule = draw(st.sampled_from(get_args(Schedule)))
    return Budget(
        draw(st.integers(1, 100)) / 100,
        draw(st.integers(0, 8)),
        sinks=draw(st.integers(0, 3)),
        recent=draw(st.integers(0, 3)),
        schedule=schedule,
        interval=1 if schedule == "prefill" else draw(st.integers(1, 4)),
    )


def passes() -> st.SearchStrategy[list[int]]:
    """Chunks and single tokens."""
    return st.lists(st.sampled_from([1, 1, 2, 5, 9]), min_size=1, max_size=12)


def paddings() -> st.SearchStrategy[list[int]]:
    """Rows without padding, with some, and with more than the columns of a pass."""
    return st.lists(st.integers(0, 12), min_size=1, max_size=3)


def feed(ledger: Ledger, tokens: int, padding: list[int]) -> None:
    ledger.feed(tokens, [min(pad, ledger.columns + tokens) for pad in padding])


@pytest.mark.parametrize("name", ["prune_after", "sinks", "recent", "interval"])
@pytest.mark.parametrize("value", [1.0, "1", None, True])
def test_non_integers_are_refused_with_their_field(name: str, value: object) -> None:
    """Floats, texts and booleans are refused where an integer is required, with the field."""
    with pytest.raises(TypeError, match=exactly(f"{name} must be a whole number, got {value!r}")):
        Budget(0.5, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "least"), [("prune_after", 0), ("sinks", 0), ("recent", 0), ("interval", 1)])
def test_counts_have_a_minimum(name: str, least: int) -> None:
    """Counts below their minimum are refused, and the minimum is accepted."""
    assert getattr(Budget(0.5, **{name: least}), name) == least  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=exactly(f"{name} must be at least {least}, got {least - 1}")):
        Budget(0.5, **{name: least - 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [True, "0.5", None, 0.5j])
def test_a_ratio_that_is_not_a_number_is_refused(ratio: Any) -> None:
    """A text is refused as a ratio, even if it looks like a decimal."""
    with pytest.raises(TypeError, match=exactly(f"keep_ratio must be a number in (0, 1], got {ratio!r}")):
        Budget(ratio)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.0001, 1.5, 2, math.nan, Decimal(0), Fraction(3, 2)])
def test_a_ratio_out_of_its_range_is_refused(ratio: Any) -> None:
    """A ratio must be above 0 and at most 1."""
    with pytest.raises(ValueError, match=exactly(f"keep_ratio must be in (0, 1], got {ratio}")):
        Budget(ratio)


@pytest.mark.parametrize("ratio", [1, 1.0, 1e-9, Decimal("0.07"), Fraction(1, 3)])
def test_any_kind_of_number_is_a_ratio(ratio: Any) -> None:
    """Integers, floats, decimals and fractions are accepted as ratios and kept as given."""
    assert Budget(ratio).keep_ratio is ratio


@pytest.mark.parametrize("layers", ["01", 1, None])
def test_skip_layers_must_be_a_sequence(layers: Any) -> None:
    """A single index or a text is refused as ``skip_layers``."""
    with pytest.raises(
        TypeError, match=exactly(f"skip_layers must be a sequence of layer indices or 'unprunable', got {layers!r}")
    ):
        Budget(0.5, skip_layers=layers)


def test_skip_layers_are_kept_once_and_in_order() -> None:
    """Equal sets of layers give equal budgets."""
    layers: Any = [3, 0, 3, 1]
    assert Budget(0.5, skip_layers=layers).skip_layers == (0, 1, 3)
    assert Budget(0.5, skip_layers=layers) == Budget(0.5, skip_layers=(0, 1, 3))


@pytest.mark.parametrize(
    ("layer", "error", "sentence"),
    [
        (-1, ValueError, "a layer index in skip_layers must be at least 0, got -1"),
        (1.0, TypeError, "a layer index in skip_layers must be a whole number, got 1.0"),
    ],
)
def test_negative_layers_are_refused(layer: Any, error: type[Exception], sentence: str) -> None:
    """Negative indices of layers are refused."""
    with pytest.raises(error, match=exactly(sentence)):
        Budget(0.5, skip_layers=(layer,))


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    """An unknown schedule is refused with the known ones."""
    with pytest.raises(ValueError, match=exactly("schedule must be one of budget, step, prefill, got 'often'")):
        Budget(0.5, schedule="often")  # type: ignore[arg-type]


def test_an_interval_is_refused_under_prefill() -> None:
    """Rule 2: ``interval`` is refused under ``prefill``, which acts once."""
    with pytest.raises(
        ValueError, match=exactly("interval must be 1 with schedule 'prefill', which acts only once, got 2")
    ):
        Budget(0.5, schedule="prefill", interval=2)


@given(budget=budgets(), held=st.integers(0, 40), evicted=st.integers(0, 40))
def test_a_target_follows_the_schedule(budget: Budget, held: int, evicted: int) -> None:
    """Rule 2: the target follows the schedule, for any number held and after earlier evictions."""
    assert budget.target(held + evicted, held) == plain_target(budget, held + evicted, held)


@given(budget=budgets(), passes=passes(), prompt=st.one_of(st.none(), st.integers(1, 20)), padding=paddings())
def test_a_ledger_counts_every_row_as_if_it_were_alone(
    budget: Budget, passes: list[int], prompt: int | None, padding: list[int]
) -> None:
    """Rules 2 and 11: a ledger counts rows independently of each other's padding, and predicts whether a pass
    evicts."""
    ledger = Ledger(budget, prompt)
    expected = plain_counts(budget, passes, passes[0] if prompt is None else prompt, padding)
    for tokens, held in zip(passes, expected, strict=True):
        columns = ledger.columns + tokens
        padded = [min(pad, columns) for pad in padding]
        before = ledger.held or [0] * len(padding)
        seen = ledger.seen or [0] * len(padding)
        predicted = ledger.would_cut(tokens, padded)
        ledger.feed(tokens, padded)
        assert ledger.held == held
        assert ledger.seen == [max(0, columns - pad) for pad in padding]
        evicts = [n + now - then for n, now, then in zip(before, ledger.seen, seen, strict=True)] != held
        assert ledger.cut is evicts
        assert predicted is evicts


def test_a_new_ledger_has_counted_nothing() -> None:
    """A new ledger has nothing seen, held or evicted, and no prompt length."""
    ledger = Ledger(Budget(0.5))
    assert (ledger.columns, ledger.seen, ledger.held, ledger.padding) == (0, [], [], [])
    assert ledger.cut is False
    assert ledger.prompt_length is None


def test_the_first_pass_is_the_prompt_unless_another_length_is_declared() -> None:
    """The prompt of a plain cache is its first pass, unless ``prompt_length`` is given."""
    for declared in (None, 3):
        ledger = Ledger(Budget(0.5), declared)
        ledger.feed(7, [0])
        assert ledger.prompt_length == (declared or 7)


@pytest.mark.parametrize(
    ("length", "error", "sentence"),
    [
        (0, ValueError, "prompt_length must be at least 1, got 0"),
        (2.0, TypeError, "prompt_length must be a whole number, got 2.0"),
    ],
)
def test_an_empty_prompt_is_refused(length: Any, error: type[Exception], sentence: str) -> None:
    """A prompt of 0 tokens is refused."""
    assert Ledger(Budget(0.5), 1).prompt_length == 1
    with pytest.raises(error, match=exactly(sentence)):
        Ledger(Budget(0.5), length)


def test_the_number_of_rows_is_constant() -> None:
    """Passes with another number of rows are refused; only ``select`` changes it."""
    ledger = Ledger(Budget(0.5))
    ledger.feed(4, [0, 1])
    with pytest.raises(ValueError, match="zip"):
        ledger.feed(1, [0])
    with pytest.raises(ValueError, match="zip"):
        ledger.would_cut(1, [0, 1, 0])


@given(
    budget=budgets(),
    rounds=st.lists(passes(), min_size=1, max_size=3),
    prompt=st.one_of(st.none(), st.integers(1, 20)),
    padding=paddings(),
    later=passes(),
    data=st.data(),
)
def test_a_cropped_ledger_equals_one_fed_less(
    budget: Budget,
    rounds: list[list[int]],
    prompt: int | None,
    padding: list[int],
    later: list[int],
    data: st.DataObject,
) -> None:
    """A ledger cropped to a column after its last eviction, once or repeatedly, equals one that was fed only that
    far."""
    ledger = Ledger(budget, prompt)
    fed: list[int] = []
    for lengths in rounds:
        for tokens in lengths:
            if ledger.would_cut(tokens, [min(pad, ledger.columns + tokens) for pad in padding]):
                break
            feed(ledger, tokens, padding)
            fed.append(tokens)
        columns = data.draw(st.integers(0, sum(fed)))
        ledger.crop(columns)
        assert ledger.columns == columns
        assert ledger.cut is False
        while sum(fed) > columns:
            over = sum(fed) - columns
            fed[-1:] = [fed[-1] - over] if fed[-1] > over else []
    again = Ledger(budget, ledger.prompt_length)
    for tokens in fed:
        feed(again, tokens, padding)
    if fed:
        assert (ledger.seen, ledger.held, ledger.padding) == (again.seen, again.held, again.padding)
    for tokens in later:
        feed(ledger, tokens, padding)
        feed(again, tokens, padding)
        assert (ledger.seen, ledger.held, ledger.cut) == (again.seen, again.held, again.cut)


def test_passes_after_a_crop_into_the_prompt_count_from_its_end() -> None:
    """After crops into a declared prompt, passes are counted from the prompt's end."""
    ledger = Ledger(Budget(0.5, 4, interval=2), prompt_length=1)
    ledger.feed(3, [0])
    ledger.crop(1)
    ledger.feed(1, [0])
    ledger.crop(2)
    ledger.feed(8, [0])
    assert ledger.held == [5]


def test_a_crop_resets_the_eviction_of_the_last_pass() -> None:
    """After a crop, even of 0 tokens, no eviction is reported for the last pass."""
    ledger = Ledger(Budget(0.5, 0))
    ledger.feed(8, [0])
    assert ledger.cut is True
    ledger.crop(8)
    assert ledger.cut is False
    assert ledger.held == [4]


@given(budget=budgets(), passes=passes(), padding=paddings(), later=passes(), data=st.data())
def test_selected_rows_keep_their_counts(
    budget: Budget, passes: list[int], padding: list[int], later: list[int], data: st.DataObject
) -> None:
    """Row i becomes row ``rows[i]``, which may be repeated, and is counted from there."""
    rows = data.draw(st.lists(st.integers(0, len(padding) - 1), min_size=1, max_size=4))
    ledger = Ledger(budget)
    for tokens in passes:
        feed(ledger, tokens, padding)
    ledger.select(rows)
    chosen = [padding[row] for row in rows]
    for tokens in later:
        feed(ledger, tokens, chosen)
    assert ledger.held == plain_counts(budget, passes + later, passes[0], chosen)[-1]


@given(tokens=st.integers(2, 60), data=st.data())
def test_a_text_is_its_prompt_and_single_tokens(tokens: int, data: st.DataObject) -> None:
    """The passes of perplexity are the prompt and single tokens."""
    prompt = data.draw(st.integers(1, tokens))
    lengths = pass_lengths(tokens, prompt)
    assert lengths[0] == prompt
    assert set(lengths[1:]) <= {1}
    assert sum(lengths) == tokens


@pytest.mark.parametrize(
    ("schedules", "tokens", "prompt"),
    [
        (["budget", "step"], 1024, 1),
        (["prefill"], 1024, 768),
        (["budget", "prefill"], 41, 30),
        (["prefill"], 2, 1),
        (["prefill"], 1, 1),
    ],
)
def test_the_usual_prompt_is_three_quarters_under_prefill(schedules: list[str], tokens: int, prompt: int) -> None:
    """The usual prompt is three quarters if any press acts on it only, and never empty."""
    assert usual_prompt(schedules, tokens) == prompt
