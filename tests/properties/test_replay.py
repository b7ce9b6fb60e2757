"""Rule 13: the history of a layer, replayed from its keys without decoding."""

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
def test_replay_equals_the_plain_loop(subject: Subject, data: st.DataObject) -> None:
    """Whatever ``replay`` skips, it gives the oracle's ``evicted_at``, for every way of feeding."""
    case: Case = data.draw(cases(subject.schedule, most=60))
    press = subject(**case.options)
    for layer in range(LAYERS):
        table = replay(press, case.keys, case.passes, layer=layer, prompt_length=case.prompt_length)
        expected, _ = subject.history(case.options, case.keys, case.passes, layer, case.prompt_length)
        assert table.tolist() == expected


@given(data=st.data())
def test_replay_equals_the_record_of_a_cache(subject: Subject, data: st.DataObject) -> None:
    """Replay and recording are equal in half precision and with NaN and infinite keys too."""
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
    """Rule 11: padding in front shifts a row's history and changes nothing else."""
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
        # A row whose prompt is nothing but padding has no prompt left: every pass of it comes later.
        if not passes[0]:
            if subject.schedule == "prefill":
                assert (table[row, :, pad:] == NEVER).all()
                continue
            passes = passes[1:]
        alone = replay(press, keys[row : row + 1, :, pad:], passes)[0]
        assert torch.equal(table[row, :, pad:], torch.where(alone == NEVER, NEVER, alone + pad))


def test_long_texts_are_replayed_like_short_ones(subject: Subject) -> None:
    """Sorting a heap at once where many tokens come at once gives the same as taking them one by one."""
    keys = torch.randn(1, 1, 300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    passes = [180, 1, 1, 60, *[1] * 58]
    options = {"keep_ratio": 0.3, "prune_after": 20, "recent": 5}
    assert replay(subject(**options), keys, passes).tolist() == subject.history(options, keys, passes, 0)[0]


def test_appending_tokens_never_revives_an_evicted_one(subject: Subject) -> None:
    """Once evicted, always evicted, at the same time: a longer text only adds evictions."""
    keys = torch.randn(1, 2, 60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    press = subject(0.4, prune_after=5)
    before = replay(press, keys[:, :, :40], [12] + [1] * 28)
    after = replay(press, keys, [12] + [1] * 48)[:, :, :40]
    gone = before != NEVER
    assert torch.equal(after[gone], before[gone])
    assert (after[~gone] > 40).all()


def test_a_query_sees_what_is_neither_in_the_future_nor_evicted() -> None:
    """``visible`` is ``j <= t < evicted_at[j]``, written out."""
    table = torch.tensor([[[2, NEVER, 0, 5, NEVER]]], dtype=torch.int32)
    sees = visible(table, 1, 5)[0, 0].int().tolist()
    assert sees == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 1, 1]]


def test_a_history_grows_with_its_text() -> None:
    """Recording far beyond what was reserved loses nothing, and 'none' is recorded nowhere."""
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
def test_what_does_not_fit_is_refused(passes: list[int], padding: list[int] | None, sentence: str) -> None:
    """Passes and padding must fit the keys."""
    with pytest.raises(ValueError, match=sentence):
        replay(KnormPress(0.5), torch.zeros(2, 1, 8, 2), passes, padding=padding)


def test_the_oracle_evicts_by_hand() -> None:
    """The oracle itself, on an example small enough to be worked out on paper."""
    scores = oracle.norm_scores([[3.0], [1.0], [2.0], [1.0]])
    table, counts = oracle.history(oracle.Rules(0.5, prune_after=1), scores, [1] * 4)
    # Seen 1, 2, 3, 4 keep 1, 1, 2, 2: token 0 goes first; token 2 comes and stays; of 1, 2 and 3, token 2 goes.
    assert table == [2, oracle.NEVER, 4, oracle.NEVER]
    assert counts == [1, 1, 2, 2]
