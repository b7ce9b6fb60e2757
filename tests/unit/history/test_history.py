"""``evicted_at``: recorded, replayed and read, on plain tensors."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pressgauge import H2OPress, KeyDiffPress, KnormPress, Press, RandomPress, StreamingLLMPress, replay
from pressgauge.conformance import oracle
from pressgauge.history import NEVER, History, count_evictions, visible
from pressgauge.presses.attention_scores import Votes
from pressgauge.storage import writable
from support.evictions import rules_of
from support.query_press import QueryPress

CPU = torch.device("cpu")
META = torch.device("meta")
"""Device of tensors without data, which cannot be combined with those of another device."""


@dataclass(frozen=True)
class WeighedPress(Press):
    """Scores by the key's first number, the layer and the position; a press with a field of its own."""

    fixed_scores: ClassVar[bool] = True
    weight: float = 1.0

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        return self.weight * keys[..., 0] * (1 - 2 * (layer % 2)) + positions % 4


@dataclass(frozen=True)
class ChangingWeighedPress(WeighedPress):
    """The same scores without ``fixed_scores``: replayed from one eviction to the next."""

    fixed_scores: ClassVar[bool] = False


@dataclass(frozen=True)
class LookingPress(Press):
    """Checks its arguments, with keys whose first number is their position plus one."""

    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert positions.min() >= -1
        assert torch.equal(keys[..., 0].masked_fill(positions < 0, 0), (positions + 1).to(keys.dtype))
        return -positions


@dataclass(frozen=True)
class ChangingLookingPress(LookingPress):
    """The same at every eviction; padding slots have keys of zeros."""

    fixed_scores: ClassVar[bool] = False

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert (keys[positions < 0] == 0).all()
        return super().score(keys, positions=positions, layer=layer)


def exactly(sentence: str) -> str:
    """A pattern that matches only this sentence."""
    return f"^{re.escape(sentence)}$"


def plain_replay(
    press: Press, keys: Tensor, passes: list[int], prompt: int, padding: list[int], layer: int
) -> list[list[list[int]]]:
    """``evicted_at`` by the oracle, per row and head, with the scores of ``WeighedPress``."""
    rules = rules_of(press)
    table = []
    for row, pad in enumerate(padding):
        heads = []
        for head in keys[row].tolist():
            evicted = [0] * pad + [NEVER] * (len(head) - pad)
            held: list[int] = []
            columns = 0
            for number, tokens in enumerate(passes):
                held += [column - pad for column in range(columns, columns + tokens) if column >= pad]
                columns += tokens
                if not rules.acts(passes, number, prompt):
                    continue
                seen, sign = max(0, columns - pad), 1 - 2 * (layer % 2)
                scores = [sign * head[pad + token][0] + token % 4 for token in held]
                kept = oracle.retained(rules, held, scores, rules.target(seen, len(held)), seen)
                for token in set(held) - set(kept):
                    evicted[pad + token] = columns
                held = kept
            heads.append(evicted)
        table.append(heads)
    return table


@pytest.mark.parametrize("factory", [WeighedPress, ChangingWeighedPress])
@given(
    schedule=st.sampled_from(["budget", "step", "prefill"]),
    percent=st.integers(1, 100),
    prune_after=st.integers(0, 6),
    sinks=st.integers(0, 3),
    recent=st.integers(0, 3),
    interval=st.integers(1, 3),
    passes=st.lists(st.sampled_from([1, 1, 1, 2, 4, 9]), min_size=1, max_size=12),
    prompt=st.one_of(st.none(), st.integers(1, 12)),
    rows=st.integers(1, 3),
    layer=st.integers(0, 1),
    seed=st.integers(0, 999),
)
def test_replay_equals_the_plain_loop_for_padded_rows(
    factory: type[WeighedPress],
    schedule: Any,
    percent: int,
    prune_after: int,
    sinks: int,
    recent: int,
    interval: int,
    passes: list[int],
    prompt: int | None,
    rows: int,
    layer: int,
    seed: int,
) -> None:
    """Rule 13: ``replay`` equals a loop that sorts and evicts after every pass, for every layer, padding, chunk and
    prompt."""
    press = factory(
        percent / 100,
        prune_after,
        sinks=sinks,
        recent=recent,
        schedule=schedule,
        interval=1 if schedule == "prefill" else interval,
    )
    columns = sum(passes)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-9, 10, (rows, 2, columns, 1), generator=generator).double()
    padding = [int(torch.randint(0, columns + 1, (1,), generator=generator)) * (row > 0) for row in range(rows)]
    table = replay(press, keys, passes, layer=layer, prompt_length=prompt, padding=padding)
    assert table.dtype == torch.int32
    first = passes[0] if prompt is None else prompt
    assert table.tolist() == plain_replay(press, keys, passes, first, padding, layer)


@pytest.mark.parametrize("factory", [LookingPress, ChangingLookingPress])
def test_a_press_receives_the_keys_that_it_scores(factory: type[LookingPress]) -> None:
    """``score`` receives each key with its position, -1 for padding slots, and zeros as their keys if scores change."""
    padding = [0, 3, 7]
    keys = torch.arange(1.0, 13)[None, None, :, None] - torch.tensor(padding)[:, None, None, None]
    keys = keys.masked_fill(keys < 1, 99).expand(3, 2, 12, 2)
    table = replay(factory(0.5, 1), keys, [4, 2, 1, 1, 4], padding=padding)
    assert (table == NEVER).sum(dim=-1).tolist() == [[6, 6], [5, 5], [3, 3]]


@pytest.mark.parametrize("press", [KnormPress(0.5, 2), KeyDiffPress(0.5, 2)], ids=repr)
def test_without_padding_every_column_is_a_token(press: Press) -> None:
    """By default there is no padding, and the layer is 0."""
    keys = torch.randn(2, 2, 12, 3, generator=torch.Generator().manual_seed(1))
    table = replay(press, keys, [6, 3, 3])
    assert torch.equal(table, replay(press, keys, [6, 3, 3], layer=0, padding=[0, 0]))
    assert ((table < NEVER).sum(dim=-1) == 6).all()
    keys = keys[:1]
    random = RandomPress(0.5, 2)
    assert torch.equal(replay(random, keys, [6, 3, 3]), replay(random, keys, [6, 3, 3], layer=0))


@dataclass(frozen=True)
class CarefulPress(H2OPress):
    """Checks its arguments."""

    filled: ClassVar[list[bool]] = []

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        filler = positions < 0
        self.filled.append(bool(filler.any()))
        assert votes is not None
        assert not keys[filler].any()
        assert not votes.of(keys)[filler].any()
        assert int(positions.min()) >= -1
        for row, own in zip(positions.flatten(0, 1), filler.flatten(0, 1), strict=True):
            assert bool((row[~own].diff() > 0).all())
        return super().score(keys, positions=positions, layer=layer, votes=votes)


@pytest.mark.parametrize("padding", [None, [0, 23]])
def test_scored_keys_are_in_order_and_empty_slots_are_zero(padding: list[int] | None) -> None:
    """Keys passed to ``score`` are in order, and empty slots are zero, for single and multiple evictions."""
    keys, queries = torch.randn((2, 2, 2, 160, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    CarefulPress.filled.clear()
    for passes in ([1] * 160, [40] + [1] * 60 + [9] * 4 + [1] * 24):
        found = replay(CarefulPress(0.3, prune_after=20), keys, passes, padding=padding, queries=queries)
        assert count_evictions([found])
    assert any(CarefulPress.filled)


def test_a_skipped_layer_evicts_nothing() -> None:
    """Layers in ``skip_layers`` evict nothing, and padding has 0 in their history too."""
    press = KnormPress(0.1, 0, skip_layers=(0, 2))
    keys = torch.ones(2, 2, 6, 1)
    kept = [[[NEVER] * 6] * 2, [[0, 0, *[NEVER] * 4]] * 2]
    assert replay(press, keys, [6], padding=[0, 2]).tolist() == kept
    assert replay(press, keys, [6], layer=2, padding=[0, 2]).tolist() == kept
    assert int((replay(press, keys, [6], layer=1) == 6).sum()) == 2 * 2 * 5


def test_what_replay_skips_depends_on_the_ratio_as_written() -> None:
    """Rule 3: ratios that are equal as numbers and written differently are not confused."""
    binary: Any = Fraction(0.1)  # a little more than a tenth, as the float is
    assert binary == 0.1
    keys = torch.arange(10.0)[None, None, :, None]
    kept = [int((replay(KnormPress(ratio, 0), keys, [10]) == NEVER).sum()) for ratio in (0.1, binary)]
    assert kept == [1, 2]


@pytest.mark.parametrize("shape", [(4, 2), (1, 4, 2), (1, 1, 1, 4, 2)])
def test_keys_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Keys that are not ``[batch, KV heads, tokens, dimension]`` are refused with their shape."""
    sentence = f"keys must be [batch, KV heads, tokens, dimension], got {list(shape)}"
    with pytest.raises(ValueError, match=exactly(sentence)):
        replay(KnormPress(0.5), torch.zeros(shape), [4])


@pytest.mark.parametrize("passes", [[3, 4], [9], [9, -1], [8, 0], [0, 8]])
def test_passes_that_do_not_fit_the_keys_are_refused(passes: list[int]) -> None:
    """Passes must be positive and sum to the number of tokens."""
    sentence = (
        f"passes must be positive and add up to the 8 tokens of keys, got {len(passes)} passes of {sum(passes)} tokens"
    )
    with pytest.raises(ValueError, match=exactly(sentence)):
        replay(KnormPress(0.5), torch.zeros(2, 1, 8, 2), passes)


@pytest.mark.parametrize("padding", [[1], [0, 0, 0], [0, 9], [-1, 0]])
def test_padding_that_does_not_fit_the_keys_is_refused(padding: list[int]) -> None:
    """Padding must have one number per row, from 0 to the number of columns."""
    sentence = f"padding must give each of the 2 rows a number from 0 to 8, got {padding}"
    with pytest.raises(ValueError, match=exactly(sentence)):
        replay(KnormPress(0.5), torch.zeros(2, 1, 8, 2), [8], padding=padding)


@pytest.mark.parametrize("press", [KnormPress(0.5, 0), KeyDiffPress(0.5, 0)], ids=repr)
def test_a_row_may_be_all_padding_or_none(press: Press) -> None:
    """The bounds of padding are accepted."""
    table = replay(press, torch.ones(2, 1, 8, 2), [8], padding=[8, 0])
    assert table[0].tolist() == [[0] * 8]
    assert int((table[1] == 8).sum()) == 4


def test_replay_refuses_missing_queries() -> None:
    """Rule 12: missing queries are refused with the press, and other shapes with the shapes."""
    with pytest.raises(ValueError, match=exactly("QueryPress needs queries: pass those of all 4 tokens")):
        replay(QueryPress(0.5), torch.zeros(1, 1, 4, 2), [4])
    sentence = "queries must be [1, heads, 4, dimension] like keys, got [1, 2, 3, 2]"
    with pytest.raises(ValueError, match=exactly(sentence)):
        replay(QueryPress(0.5), torch.zeros(1, 1, 4, 2), [4], queries=torch.zeros(1, 2, 3, 2))


def test_a_token_may_be_evicted_by_its_own_pass() -> None:
    """A token may be evicted by its own pass; the column for "none" is never that of a token."""
    heads = 150
    for last in range(1, 130):
        history = History(1, heads, CPU)
        history.record(torch.tensor([[[last - 1]] * heads]), [0], last)
        assert history.evicted_at(last, [0]).tolist() == [[[NEVER] * (last - 1) + [last]] * heads]


def test_a_history_may_be_read_at_any_length() -> None:
    """A history read at another length has no evictions in columns not recorded, and leaves out those beyond."""
    history = History(2, 1, CPU)
    assert history.evicted_at(3, [0, 0]).tolist() == [[[NEVER] * 3]] * 2
    history.record(torch.tensor([[[1]], [[-1]]]), [0, 2], 4)
    for columns in range(2, 200):
        table = history.evicted_at(columns, [0, 2])
        assert table.dtype == torch.int32
        assert table.tolist() == [[[NEVER, 4, *[NEVER] * (columns - 2)]], [[0, 0, *[NEVER] * (columns - 2)]]]


def test_a_history_grows_and_forgets_nothing() -> None:
    """Evictions are recorded at any distance and after growth, and "none" is not."""
    history = History(2, 2, CPU)
    expected = torch.full((2, 2, 4000), NEVER, dtype=torch.int32)
    expected[1, :, :3] = 0
    for seen in (5, 64, 65, 66, 67, 300, 301, 1000, 3999):
        history.record(torch.tensor([[[seen - 1], [seen - 2]], [[seen - 4], [-1]]]), [0, 3], seen)
        expected[0, 0, seen - 1] = expected[0, 1, seen - 2] = expected[1, 0, seen - 1] = seen
        assert torch.equal(history.evicted_at(4000, [0, 3]), expected)


def test_rows_of_a_history_are_selected(device: torch.device) -> None:
    """Row i becomes row ``rows[i]``, which may be repeated and given on the CPU for any device."""
    history = History(3, 1, device)
    history.record(torch.tensor([[[0]], [[1]], [[2]]], device=device), [0, 0, 0], 4)
    history.select(torch.tensor([2, 0, 2, 1]))
    rows = [[4, NEVER, NEVER], [NEVER, 4, NEVER], [NEVER, NEVER, 4]]
    assert history.evicted_at(3, [0] * 4).tolist() == [[rows[2]], [rows[0]], [rows[2]], [rows[1]]]


def test_a_history_of_inference_mode_continues_outside() -> None:
    """A history created in ``inference_mode`` can be extended under ``no_grad``."""
    with torch.inference_mode():
        history = History(1, 1, CPU)
        history.record(torch.tensor([[[0]]]), [0], 4)
        made = torch.zeros(2)
        assert writable(made) is made
    history.record(torch.tensor([[[2]]]), [0], 5)
    assert history.evicted_at(4, [0]).tolist() == [[[4, NEVER, 5, NEVER]]]
    copy = writable(made)
    assert copy is not made
    assert not copy.is_inference()
    assert writable(copy) is copy


@given(start=st.integers(0, 9), length=st.integers(0, 5), seed=st.integers(0, 99))
def test_a_query_sees_a_key_from_its_own_column_until_its_eviction(start: int, length: int, seed: int) -> None:
    """Rule 13: query t attends to key j if and only if ``j <= t < evicted_at[b, k, j]``."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(0, 16, (2, 2, 10), generator=generator, dtype=torch.int32)
    table[table > 12] = NEVER
    mask = visible(table, start, start + length)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        [[[j <= t < head[j] for j in range(10)] for t in range(start, start + length)] for head in row]
        for row in table.tolist()
    ]


def test_counts_of_evictions_exclude_padding_and_held_entries() -> None:
    """Evicted entries of all layers are counted, from the first column to the last possible one."""
    tables = [torch.tensor([[[0, 1, NEVER, NEVER - 1]]]), torch.tensor([[[NEVER, 7, 0, 0]]])]
    assert count_evictions(tables) == 3
    assert count_evictions([]) == 0


@pytest.mark.parametrize("press", [KeyDiffPress(0.5, 2), ChangingWeighedPress(0.5, 2, sinks=1, recent=1)], ids=repr)
@pytest.mark.parametrize("padding", [None, [0, 3]])
def test_a_history_of_changing_scores_is_on_the_device_of_the_keys(press: Press, padding: list[int] | None) -> None:
    """With changing scores, all tensors are created on the device of the keys."""
    table = replay(press, torch.empty(2, 2, 12, 3, device=META), [4, 4, 4], padding=padding)
    assert table.device == META
    assert table.shape == (2, 2, 12)


def test_a_history_of_fixed_scores_is_given_on_the_device_of_the_keys(device: torch.device) -> None:
    """With fixed scores, slots are assigned on the CPU, and the table is on the device of the keys."""
    table = replay(KnormPress(0.5, 2), torch.ones(1, 1, 8, 1, device=device), [8])
    assert table.device.type == device.type
    assert table.tolist() == [[[NEVER] * 4 + [8] * 4]]


def test_a_history_is_kept_on_its_device() -> None:
    """Tables of skipped layers, masks and selected rows are on the device of the history."""
    keys = torch.empty(2, 2, 12, 3, device=META)
    assert replay(StreamingLLMPress(0.5, 2, skip_layers=(0,)), keys, [12], padding=[0, 3]).device == META
    assert visible(torch.empty(2, 2, 12, device=META, dtype=torch.int32), 3, 7).device == META
    history = History(2, 2, META)
    history.select(torch.tensor([1, 0]))
    assert history.evicted_at(12, [0, 3]).device == META
