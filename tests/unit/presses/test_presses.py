"""Ranking, selection, and scores of presses, on plain tensors."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pressgauge import KeyDiffPress, KnormPress, Press, PressedCache, RandomPress, StreamingLLMPress
from pressgauge.conformance import oracle
from pressgauge.conformance.versions import cache_of
from pressgauge.presses.ranking import FILLER, choose, protect, rank, wide
from support.query_press import QueryPress

CONFIG = LlamaConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
META = torch.device("meta")
"""Device of tensors without data, which cannot be combined with those of another device."""


def exactly(sentence: str) -> str:
    """A pattern that matches only this sentence."""
    return f"^{re.escape(sentence)}$"


def order(scores: Tensor, sinks: int = 0) -> list[int]:
    """Order, best first, of one head's entries with these scores."""
    ranks = rank(scores[None, None], torch.arange(len(scores))[None, None], sinks)
    assert len(set(ranks.flatten().tolist())) == len(scores)
    return ranks[0, 0].argsort(descending=True).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    parts=st.lists(
        st.tuples(st.sampled_from([2**9, 2**9 + 1, 2**10 - 2, 2**10 - 1]), st.integers(0, 16), st.integers(-3, 3)),
        min_size=2,
        max_size=10,
    ),
    sign=st.sampled_from([1, -1]),
)
def test_scores_halfway_between_two_of_10_bits_round_to_the_even_one(
    dtype: torch.dtype, parts: list[tuple[int, int, int]], sign: int
) -> None:
    """Rule 4: scores are rounded to 10 significant bits half to even, as in IEEE 754, also up to the next power of
    two."""
    scores = [sign * (bits + sixteenths / 16) * 2.0**exponent for bits, sixteenths, exponent in parts]
    expected = sorted(range(len(scores)), key=lambda i: (-oracle.rounded(scores[i]), i))
    assert order(torch.tensor(scores, dtype=dtype)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_last_bit_breaks_a_tie_between_two_of_10_bits(dtype: torch.dtype, sign: int) -> None:
    """Rule 4: exactly halfway rounds to even, and one bit more rounds up."""
    halfway, last = 2.0**-10, torch.finfo(dtype).eps
    one, half, more = (torch.tensor(sign * size, dtype=dtype) for size in (1.0, 1 + halfway, 1 + halfway + last))
    assert order(torch.stack([half, one])) == order(torch.stack([one, half])) == [0, 1]
    assert order(torch.stack([one, more])) == ([1, 0] if sign > 0 else [0, 1])
    assert order(torch.stack([more, one])) == ([0, 1] if sign > 0 else [1, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    size=st.floats(2.0**-40, 2.0**40),
    sign=st.sampled_from([1, -1]),
    noise=st.floats(-(2.0**-20), 2.0**-20),
    edge=st.booleans(),
)
def test_scores_that_are_equal_up_to_noise_tie_unless_an_edge_lies_between_them(
    dtype: torch.dtype, size: float, sign: int, noise: float, edge: bool
) -> None:
    """Rule 4: noise of 2 ** -20 ranks a later token above an earlier one only at an edge between two values of 10
    bits."""
    if edge:
        # Next to a halfway point between two values of 10 bits.
        mantissa, exponent = math.frexp(size)
        size = math.ldexp(math.floor(mantissa * 2**10) + 0.5, exponent - 10) * (1 - noise / 2)
    one, other = (torch.tensor(sign * value, dtype=dtype) for value in (size, size * (1 + noise)))
    low, high = sorted((abs(one.double().item()), abs(other.double().item())))
    mantissa, exponent = math.frexp(low)
    halfway = math.ldexp(math.floor(mantissa * 2**10) + 0.5, exponent - 10)
    if low <= halfway <= high:
        best = [0, 1] if oracle.rounded(one.item()) >= oracle.rounded(other.item()) else [1, 0]
        assert order(torch.stack([one, other])) == best
    else:
        assert order(torch.stack([one, other])) == order(torch.stack([other, one])) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_number_has_the_place_of_a_sink_or_of_nan(dtype: torch.dtype) -> None:
    """Rule 4: NaN ranks below every number, and a sink above every score, including infinite ones."""
    most = torch.finfo(dtype).max / 2  # the largest itself has no 10 bits, and rounds to infinity
    scores = torch.tensor([-math.inf, math.nan, -most, 0.0, most, math.inf], dtype=dtype)
    assert order(scores) == [5, 4, 3, 2, 0, 1]
    assert order(scores, sinks=2) == [0, 1, 5, 4, 3, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_minus_zero_ties_with_zero(dtype: torch.dtype) -> None:
    """Rule 4: of equal scores the earlier token is retained, and minus zero equals zero."""
    assert order(torch.tensor([0.0, -0.0, 0.0], dtype=dtype)) == [0, 1, 2]
    assert order(torch.tensor([-0.0, 0.0, -0.0], dtype=dtype)) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_scores_are_distinguished_up_to_27_bits(dtype: torch.dtype) -> None:
    """Integer scores are exact up to the range of positions and hashes, and the largest ranks below a sink."""
    most = (1 << 27) - 1
    scores = torch.tensor([-most, 1 - most, -1, 0, 1, most - 1, most], dtype=dtype)
    assert order(scores) == [6, 5, 4, 3, 2, 1, 0]
    assert order(scores, sinks=1) == [0, 6, 5, 4, 3, 2, 1]


def test_integer_scores_beyond_27_bits_are_ties() -> None:
    """Integer scores are clamped to the range, and rank below sinks."""
    most = (1 << 27) - 1
    for more in (1 << 27, 1 << 30, 1 << 40):
        huge = torch.tensor([-more, -most, most, more])
        assert order(huge) == [2, 3, 0, 1]
        assert order(huge, sinks=2) == [0, 1, 2, 3]


def test_padding_ranks_below_every_entry() -> None:
    """Padding slots rank below a NaN at the last possible position, and are not sinks."""
    scores = torch.tensor([[[math.inf, math.nan, math.inf]]])
    positions = torch.tensor([[[-1, (1 << 31) - 1, -1]]], dtype=torch.int32)
    ranks = rank(scores, positions, sinks=4)[0, 0].tolist()
    assert ranks[0] == ranks[2] == FILLER == -(1 << 63)
    assert ranks[1] > FILLER


@pytest.mark.parametrize("positions", [[0, 1], [(1 << 31) - 2, (1 << 31) - 1]])
@pytest.mark.parametrize("score", [-math.inf, -1.0, 0.0, 1.0, math.inf, math.nan])
def test_the_earlier_of_two_ties_ranks_higher_at_every_position(score: float, positions: list[int]) -> None:
    """Rule 4: of equal scores the earlier token ranks higher, and no position outweighs a score."""
    scores = torch.tensor([[[score, score]]], dtype=torch.float64)
    early, late = rank(scores, torch.tensor([[positions]]))[0, 0].tolist()
    assert early > late
    assert early - late == positions[1] - positions[0]


def test_a_later_entry_of_a_better_score_ranks_higher() -> None:
    """Rule 4: positions only break ties, however far apart they are."""
    positions = torch.tensor([[[0, (1 << 31) - 1]]])
    for scores in (torch.tensor([[[4, 5]]]), torch.tensor([[[1.0, 1.0 + 2.0**-9]]])):
        worse, better = rank(scores, positions)[0, 0].tolist()
        assert better > worse


def test_protected_entries_rank_above_a_sink() -> None:
    """Rule 4: entries from ``first`` on rank above all others, per row, and other ranks do not change."""
    positions = torch.tensor([[[0, 1, 2, 3]], [[-1, -1, 0, 1]]])
    ranks = rank(torch.zeros(2, 1, 4), positions, sinks=1)
    put = protect(ranks, positions, torch.tensor([2, -3])[:, None, None])
    most = torch.iinfo(torch.int64).max
    assert put[0, 0].tolist() == [*ranks[0, 0, :2].tolist(), most, most]
    assert put[1, 0].tolist() == [FILLER, FILLER, most, most]
    assert torch.equal(protect(ranks, positions, 4), ranks)


@given(data=st.data(), rows=st.integers(1, 3), length=st.integers(1, 8))
def test_choose_takes_the_highest_ranks_of_every_row(data: st.DataObject, rows: int, length: int) -> None:
    """Rules 4, 5 and 11: per row and head the ``keep`` highest ranks are chosen, in order of position after the
    padding, and each evicted entry is listed once."""
    keep = data.draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows))
    seed = data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    positions = torch.stack([torch.randperm(length, generator=generator) for _ in range(rows * 2)]).view(rows, 2, -1)
    ranks = torch.stack([torch.randperm(length, generator=generator) for _ in range(rows * 2)]).view(rows, 2, -1)
    indices, stays, gone = choose(ranks, positions, keep)
    assert indices.shape == stays.shape == (rows, 2, max(keep))
    assert gone.shape == (rows, 2, length - min(keep))
    for row, count in enumerate(keep):
        for head in range(2):
            best = sorted(range(length), key=lambda i: -ranks[row, head, i])
            filler = max(keep) - count
            expected = sorted(positions[row, head, best[:count]].tolist())
            assert stays[row, head].tolist() == [-1] * filler + expected
            assert positions[row, head, indices[row, head, filler:]].tolist() == expected
            left = [position for position in gone[row, head].tolist() if position >= 0]
            assert sorted(left) == sorted(positions[row, head, best[count:]].tolist())


def test_choose_puts_padding_first() -> None:
    """Rule 11: a row with fewer entries than the longest has padding slots first, and loses no entries."""
    positions = torch.tensor([[[0, 1, 2, 3]], [[-1, -1, 0, 1]]])
    ranks = rank(torch.tensor([[[1.0, 4.0, 3.0, 2.0]], [[9.0, 9.0, 1.0, 2.0]]]), positions)
    _, stays, gone = choose(ranks, positions, [3, 2])
    assert stays.tolist() == [[[1, 2, 3]], [[-1, 0, 1]]]
    assert gone.tolist() == [[[-1, 0]], [[-1, -1]]]


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ((1, 4, 2), (1, 4, 2)),
        ((1, 1, 4), (1, 1, 4, 2)),
        ((1, 1, 4, 2), (1, 1, 4)),
        ((1, 1, 4, 2), (1, 4, 2)),
        ((1, 4, 2), (1, 1, 4, 2)),
        ((1, 1, 4, 2), (1, 1, 3, 2)),
    ],
)
def test_compress_refuses_shapes_that_do_not_fit(keys: tuple[int, ...], values: tuple[int, ...]) -> None:
    """Keys and values that are not ``[batch, KV heads, tokens, dimension]`` are refused with their shapes."""
    sentence = (
        "keys and values must be [batch, KV heads, tokens, dimension] and agree in the first three, "
        f"got {list(keys)} and {list(values)}"
    )
    with pytest.raises(ValueError, match=exactly(sentence)):
        KnormPress(0.5).compress(torch.zeros(keys), torch.zeros(values))


def test_a_press_that_needs_queries_gives_the_way_out() -> None:
    """Rule 12: without queries, ``compress`` and plain caches are refused with the way out."""
    with pytest.raises(
        ValueError, match=exactly("QueryPress needs queries, so it works attached only: with press(model):")
    ):
        QueryPress(0.5).compress(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    sentence = "QueryPress needs queries, which a cache never sees: use with press(model):"
    with pytest.raises(ValueError, match=exactly(sentence)):
        QueryPress(0.5).cache(CONFIG)


@pytest.mark.parametrize("shape", [(0, 2, 6), (0, 2, 20), (2, 2, 0), (2, 2, 6)])
def test_compress_returns_its_arguments_without_evictions(shape: tuple[int, int, int]) -> None:
    """Nothing is evicted from empty batches, empty texts, skipped layers, and at most P entries."""
    press = KnormPress(0.5, prune_after=6, skip_layers=(1,))
    keys, values = torch.randn(*shape, 3), torch.randn(*shape, 5)
    assert all(a is b for a, b in zip(press.compress(keys, values), (keys, values), strict=True))
    longer_keys, longer_values = keys.repeat(1, 1, 2, 1), values.repeat(1, 1, 2, 1)
    skipped = press.compress(longer_keys, longer_values, layer=1)
    assert all(a is b for a, b in zip(skipped, (longer_keys, longer_values), strict=True))


@settings(max_examples=20)
@given(
    seed=st.integers(0, 99),
    tokens=st.integers(2, 12),
    sinks=st.integers(0, 3),
    recent=st.integers(0, 3),
    layer=st.integers(0, 2),
)
def test_compress_selects_per_row_and_head(seed: int, tokens: int, sinks: int, recent: int, layer: int) -> None:
    """Rules 4, 5 and 8: per row and head the highest scores are retained, after sinks and recent tokens, in order of
    position, with keys and values aligned."""
    press = RandomPress(0.4, prune_after=1, sinks=sinks, recent=recent, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, 2, tokens, 3, generator=generator)
    values = torch.randn(2, 2, tokens, 5, generator=generator)
    kept_keys, kept_values = press.compress(keys, values, layer=layer)
    rules = oracle.Rules(0.4, prune_after=1, sinks=sinks, recent=recent)
    held = list(range(tokens))
    for head in range(2):
        hashes = oracle.random_scores(seed, layer, head)(held)
        best = oracle.retained(rules, held, hashes, rules.target(tokens, tokens), tokens, exact=True)
        for row in range(2):
            assert torch.equal(kept_keys[row, head], keys[row, head, best])
            assert torch.equal(kept_values[row, head], values[row, head, best])


def test_compress_is_for_layer_0_by_default() -> None:
    """By default, ``compress`` is for layer 0, in ``skip_layers`` and in seeds."""
    keys = torch.randn(1, 1, 8, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        RandomPress(0.5, 0).compress(keys, keys)[0], RandomPress(0.5, 0).compress(keys, keys, layer=0)[0]
    )
    assert KnormPress(0.5, 0, skip_layers=(0,)).compress(keys, keys)[0] is keys
    assert KnormPress(0.5, 0, skip_layers=(1,)).compress(keys, keys)[0].shape[2] == 4


@pytest.mark.parametrize(("seed", "layer"), [(0, 0), (0, 3), (1, 0), (12345, 7), (-1, 1), (2**40, 100)])
def test_a_random_score_is_a_hash_of_seed_layer_head_and_position(seed: int, layer: int) -> None:
    """A random score is a hash of seed, layer, head and position only, the same on every machine and with padding."""
    positions = torch.tensor([[[0, 1, 2, 500], [7, 8, 9, 10**6]], [[3, 3, 3, 3], [-1, -1, 0, 1]]], dtype=torch.int32)
    scores = RandomPress(0.5, seed=seed).score(torch.zeros(2, 2, 4, 3), positions=positions, layer=layer)
    heads = [[head] * 4 for head in range(2)]
    expected = [
        [
            [oracle.random_scores(seed, layer, h)([p])[0] for h, p in zip(hs, ps, strict=True)]
            for hs, ps in zip(heads, row, strict=True)
        ]
        for row in positions.tolist()
    ]
    assert scores.tolist() == expected
    assert scores.dtype == torch.int64


def test_knorm_scores_are_minus_the_norms() -> None:
    """Scores are minus the L2 norms over the head dimension (Devoto et al., arXiv 2406.11430)."""
    keys = torch.tensor([[[[3.0, 4.0], [0.0, -2.0]], [[5.0, 12.0], [8.0, 15.0]]]], dtype=torch.float64)
    scores = KnormPress(0.5).score(keys, positions=torch.arange(2)[None, None], layer=0)
    assert scores.tolist() == [[[-5.0, -2.0], [-13.0, -17.0]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_keydiff_scores_are_minus_the_cosines_to_the_mean_of_unit_keys(dtype: torch.dtype) -> None:
    """Scores are minus the cosines to the mean of unit keys over the entries of a row and head, without padding, in
    float32 or wider (Park et al., arXiv 2504.15364)."""
    entries = [[[3.0, 4.0], [-8.0, 6.0], [6.0, 8.0]], [[9.0, 9.0], [-4.0, 3.0], [6.0, 8.0]]]
    # The other head has the same keys turned by an angle of the triangle 3, 4, 5, and ten times as long.
    turned = [[[6 * x - 8 * y, 8 * x + 6 * y] for x, y in row] for row in entries]
    keys = torch.tensor([list(heads) for heads in zip(entries, turned, strict=True)], dtype=dtype)
    positions = torch.tensor([[[0, 1, 2]], [[-1, 0, 1]]]).expand(2, 2, 3)
    scores = KeyDiffPress(0.5).score(keys, positions=positions, layer=0)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The keys stand at right angles. With two of the one to one of the other their mean leans toward the two.
    long, short, half = 2 / math.sqrt(5), 1 / math.sqrt(5), 1 / math.sqrt(2)
    expected = torch.tensor([-long, -short, -long, -half, -half], dtype=scores.dtype)
    for head in range(2):
        found = torch.cat([scores[0, head], scores[1, head, 1:]])
        assert torch.allclose(found, expected, rtol=4 * torch.finfo(scores.dtype).eps, atol=0)


def test_keys_are_widened_to_float32_and_never_narrowed() -> None:
    """Rule 4: norms are computed in float32 or wider."""
    for dtype, wider in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
    ):
        assert wide(torch.ones(2, dtype=dtype)).dtype == wider
    keys = torch.ones(2, dtype=torch.float64)
    assert wide(keys) is keys


@pytest.mark.parametrize(
    "press", [KnormPress(0.5, 0), StreamingLLMPress(0.5, 0), RandomPress(0.5, 0), KeyDiffPress(0.5, 0)], ids=repr
)
def test_compress_uses_the_device_of_its_keys(press: Press) -> None:
    """All tensors are created on the device of the keys."""
    keys, values = torch.empty(2, 2, 12, 3, device=META), torch.empty(2, 2, 12, 5, device=META)
    kept_keys, kept_values = press.compress(keys, values)
    assert kept_keys.device == kept_values.device == META
    assert (kept_keys.shape, kept_values.shape) == ((2, 2, 6, 3), (2, 2, 6, 5))


def test_rows_of_different_lengths_are_chosen_on_their_device() -> None:
    """Rows that retain different numbers are selected on their device."""
    ranks = torch.empty(2, 2, 12, device=META, dtype=torch.int64)
    indices, stays, gone = choose(ranks, ranks, [5, 3])
    assert indices.device == stays.device == gone.device == META
    assert (indices.shape, stays.shape, gone.shape) == ((2, 2, 5), (2, 2, 5), (2, 2, 9))


def test_a_press_creates_a_cache_as_declared() -> None:
    """A cache has the press, the layers of the model, the prompt length and the promise of unpadded rows that it was
    created with."""
    press = KnormPress(0.5, 0, schedule="prefill", skip_layers=(1,))
    cache = press.cache(CONFIG, prompt_length=6, unpadded=True)
    assert isinstance(cache, PressedCache)
    held = []
    for tokens in (4, 4, 4):
        for layer in range(CONFIG.num_hidden_layers):
            cache.update(torch.ones(2, 1, tokens, 4), torch.ones(2, 1, tokens, 4), layer)
        held.append(cache.held)
    assert held == [[4, 4], [4, 8], [8, 12]]


def test_rows_may_be_padded_unless_declared_unpadded() -> None:
    """A plain cache with several rows refuses its first eviction unless rows are declared unpadded."""
    cache = KnormPress(0.5, 0).cache(CONFIG)
    with pytest.raises(ValueError, match="unpadded=True"):
        cache.update(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4), 0)


def test_a_press_is_attached_by_calling_it_with_a_model() -> None:
    """Inside ``with press(model)``, caches of the model are compressed, by one press at a time."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(CONFIG).eval()
    press = KnormPress(0.5, 0)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        with press(model):
            with pytest.raises(ValueError, match="press"):
                press(model).__enter__()
            held = [layer.keys.shape[2] for layer in cache_of(model(tokens, use_cache=True)).layers]
        after = [layer.keys.shape[2] for layer in cache_of(model(tokens, use_cache=True)).layers]
    assert held == [4, 4]
    assert after == [8, 8]
