"""Rule 13: the eviction history of a layer, replayed from its keys without decoding."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pressgauge import KnormPress, replay
from pressgauge.conformance import oracle
from pressgauge.conformance.strategies import HEADS, LAYERS, Case, cases, key_tensors
from pressgauge.conformance.subjects import Subject
from pressgauge.history import NEVER, History, visible
from support.drive import feed


@given(data=st.data())
def test_replay_equals_the_oracle(subject: Subject, data: st.DataObject) -> None:
    """``replay`` gives the ``evicted_at`` of the oracle, however the text is fed."""
    case: Case = data.draw(cases(subject.schedule, most=60))
    press = subject(**case.options)
    for layer in range(LAYERS):
        table = replay(press, case.keys, case.passes, layer=layer, prompt_length=case.prompt_length)
        expected, _ = subject.history(case.options, case.keys, case.passes, layer, case.prompt_length)
        assert table.tolist() == expected


@given(data=st.data())
def test_replay_equals_the_record_of_a_cache(subject: Subject, data: st.DataObject) -> None:
    """``replay`` equals the record of a cache, also in half precision and with NaN and infinite keys."""
    case: Case = data.draw(cases(subject.schedule))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    keys = case.keys.to(dtype)
    odd = data.draw(st.lists(st.sampled_from([torch.nan, torch.inf, 6e4, 0.0]), max_size=6))
    for place, value in enumerate(odd):
        keys[0, place % HEADS, (place * 7) % keys.shape[2]] = value
    press = subject(**case.options)
    cache = feed(press, keys, case.passes, prompt_length=case.prompt_length)
    for layer in range(LAYERS):
        table = replay(press, keys, case.passes, layer=layer, prompt_length=case.prompt_length)
        assert torch.equal(table, cache.evicted_at[layer])


@settings(max_examples=20)
@given(data=st.data(), lengths=st.lists(st.integers(0, 20), min_size=2, max_size=3))
def test_a_padded_row_is_replayed_as_it_is_alone(subject: Subject, data: st.DataObject, lengths: list[int]) -> None:
    """Rule 11: padding shifts a row's history, without other changes."""
    columns = max([*lengths, 4])
    keys = data.draw(key_tensors(columns, rows=len(lengths)))
    padding = [columns - length for length in lengths]
    press = subject(0.5, prune_after=data.draw(st.integers(0, 6)))
    table = replay(press, keys, [3] + [1] * (columns - 3), padding=padding)
    for row, pad in enumerate(padding):
        assert (table[row, :, :pad] == 0).all()
        if pad == columns:
            continue
        passes = [max(0, 3 - pad)] + [1] * (columns - max(3, pad))
        # A row whose prompt is all padding has no prompt: all its passes come later.
        if not passes[0]:
            if subject.schedule == "prefill":
                assert (table[row, :, pad:] == NEVER).all()
                continue
            passes = passes[1:]
        alone = replay(press, keys[row : row + 1, :, pad:], passes)[0]
        assert torch.equal(table[row, :, pad:], torch.where(alone == NEVER, NEVER, alone + pad))


def test_long_texts_are_replayed_like_short_ones(subject: Subject) -> None:
    """Sorting many tokens of a pass at once gives the result of inserting them one by one."""
    keys = torch.randn(1, 1, 300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    passes = [180, 1, 1, 60, *[1] * 58]
    options: dict[str, Any] = {"keep_ratio": 0.3, "prune_after": 20, "recent": 5}
    assert replay(subject(**options), keys, passes).tolist() == subject.history(options, keys, passes, 0)[0]


def test_appending_tokens_never_revives_an_evicted_one(subject: Subject) -> None:
    """A longer text adds evictions, and changes none."""
    keys = torch.randn(1, 2, 60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    press = subject(0.4, prune_after=5)
    before = replay(press, keys[:, :, :40], [12] + [1] * 28)
    after = replay(press, keys, [12] + [1] * 48)[:, :, :40]
    gone = before != NEVER
    assert torch.equal(after[gone], before[gone])
    assert (after[~gone] > 40).all()


def test_a_query_sees_held_entries_only() -> None:
    """``visible`` is ``j <= t < evicted_at[j]``."""
    table = torch.tensor([[[2, NEVER, 0, 5, NEVER]]], dtype=torch.int32)
    sees = visible(table, 1, 5)[0, 0].int().tolist()
    assert sees == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 1, 1]]


def test_a_history_grows_with_its_text() -> None:
    """A record longer than its reserved size loses nothing, and records no false evictions."""
    history = History(2, 1, torch.device("cpu"))
    history.record(torch.tensor([[[0]], [[-1]]]), [0, 3], 5)
    history.record(torch.tensor([[[700]], [[2]]]), [0, 3], 900)
    table = history.evicted_at(1000, [0, 3])
    assert {column: int(table[0, 0, column]) for column in (0, 700)} == {0: 5, 700: 900}
    assert table[1, 0, :6].tolist() == [0, 0, 0, NEVER, NEVER, 900]
    assert int((table != NEVER).sum()) == 2 + 4


@pytest.mark.parametrize(
    ("passes", "padding", "sentence"),
    [
        ([3, 4], None, "passes must be positive and add up to the 8 tokens of keys"),
        ([9, -1], None, "passes must be positive"),
        ([8], [1], "padding must give each of the 2 rows a number from 0 to 8"),
        ([8], [0, 9], "padding must give each of the 2 rows a number from 0 to 8"),
    ],
)
def test_invalid_passes_and_padding_are_refused(passes: list[int], padding: list[int] | None, sentence: str) -> None:
    """Passes and padding that do not fit the keys are refused."""
    with pytest.raises(ValueError, match=sentence):
        replay(KnormPress(0.5), torch.zeros(2, 1, 8, 2), passes, padding=padding)


def test_the_oracle_on_an_example_by_hand() -> None:
    """The oracle is correct on an example computed by hand."""
    scores = oracle.norm_scores([[3.0], [1.0], [2.0], [1.0]])
    table, counts = oracle.history(oracle.Rules(0.5, prune_after=1), scores, [1] * 4)
    # After 1, 2, 3, 4 tokens 1, 1, 2, 2 are retained: token 0 is evicted first, and token 2 of 1, 2 and 3.
    assert table == [2, oracle.NEVER, 4, oracle.NEVER]
    assert counts == [1, 1, 2, 2]
