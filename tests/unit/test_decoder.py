"""Generation: tokens equal those of ``model.generate`` for any batch, and times are correct."""

import copy
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from pressgauge import (
    H2OPress,
    KeyDiffPress,
    KnormPress,
    Press,
    PressedCache,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
    generate,
)
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using
from pressgauge.decoder import attached
from pressgauge.models.interface import feed

NAMES = sorted(architectures.ARCHITECTURES)
NEW = 12

COMPRESSING: dict[str, Press] = {
    "knorm": KnormPress(0.5, prune_after=8),
    "knorm-step": KnormPress(0.8, prune_after=8, schedule="step", recent=2, sinks=1),
    "knorm-prefill": KnormPress(0.4, prune_after=8, schedule="prefill"),
    "knorm-interval": KnormPress(0.3, prune_after=6, interval=3, skip_layers=(1,)),
    "keydiff": KeyDiffPress(0.5, prune_after=8, recent=1),
    "random": RandomPress(0.6, prune_after=8, seed=5),
    "streaming-llm": StreamingLLMPress(0.5, prune_after=10),
    "h2o": H2OPress(0.5, prune_after=8),
    "snapkv": SnapKVPress(0.5, prune_after=8, recent=3, schedule="budget"),
    "tova": TOVAPress(0.5, prune_after=8, schedule="step"),
}

PRESSES_AND_MODELS = [*((press, "llama") for press in COMPRESSING.values()), (COMPRESSING["knorm"], "neox")]


def of_transformers(model: PreTrainedModel, ids: Tensor, mask: Tensor, new: int = NEW, **options: Any) -> Tensor:
    """Result of ``model.generate``."""
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=new, **options)  # type: ignore[operator]
    assert isinstance(tokens, Tensor)
    return tokens


def own_model(**changes: Any) -> PreTrainedModel:
    """A model that a test may change."""
    model: PreTrainedModel = architectures.build("llama", **changes)
    return model


# Greedy and sampled tokens


@pytest.mark.parametrize("press", [None, KnormPress(1, prune_after=4)], ids=["uncompressed", "ratio-1"])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_without_compression_are_those_of_transformers(name: str, press: Press | None) -> None:
    """Without a press or with r = 1, tokens are those of ``do_sample=False``, with padding too."""
    model = architectures.shared(name)
    ids, mask = architectures.padded([11, 4, 7])
    ours = generate(model, ids, press, NEW, attention_mask=mask)
    assert torch.equal(ours.tokens, of_transformers(model, ids, mask, do_sample=False))


def test_no_mask_means_that_nothing_is_padded() -> None:
    """Without a mask every column is a token, including those with the padding id."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 9).index_fill(1, torch.tensor([0, 4]), 0)
    ours = generate(model, ids, None, NEW)
    assert torch.equal(ours.tokens, of_transformers(model, ids, torch.ones_like(ids), do_sample=False))


@pytest.mark.parametrize(("press", "name"), PRESSES_AND_MODELS, ids=[*COMPRESSING, "knorm-neox"])
def test_greedy_tokens_under_compression_are_those_of_the_attached_model(press: Press, name: str) -> None:
    """The decoder gives the tokens of ``with press(model): model.generate(...)``."""
    model = architectures.shared(name)
    ids, mask = architectures.padded([14, 9])
    with press(model):
        theirs = of_transformers(model, ids, mask, do_sample=False)
    ours = generate(model, ids, press, NEW, attention_mask=mask)
    assert torch.equal(ours.tokens, theirs)
    assert isinstance(ours.cache, PressedCache)
    assert ours.cache.evictions > 0


@settings(max_examples=15)
@given(
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 4, 1000]),
    top_p=st.sampled_from([None, 0.2, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(NAMES),
)
def test_sampled_tokens_are_those_of_transformers_with_the_same_seed(
    temperature: float, top_k: int | None, top_p: float | None, seed: int, name: str
) -> None:
    """Seed, temperature, top_k and top_p give the tokens of ``torch.manual_seed`` and ``do_sample=True``."""
    model = architectures.shared(name)
    ids, mask = architectures.padded([6, 3])
    ours = generate(
        model, ids, None, 6, attention_mask=mask, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = of_transformers(
            model,
            ids,
            mask,
            new=6,
            do_sample=True,
            temperature=temperature,
            top_k=0 if top_k is None else top_k,
            top_p=1.0 if top_p is None else top_p,
        )
    assert torch.equal(ours.tokens, theirs)


def test_sampling_without_a_seed_draws_from_the_global_generator() -> None:
    """Without a seed, tokens follow ``torch.manual_seed``."""
    model = architectures.shared("llama")
    ids = architectures.tokens(3, 5)
    torch.manual_seed(11)
    ours = generate(model, ids, None, NEW, temperature=1.0)
    torch.manual_seed(11)
    theirs = of_transformers(model, ids, torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    assert torch.equal(ours.tokens, theirs)


def test_sampling_with_a_seed_leaves_the_global_generator_alone() -> None:
    """A seeded run neither reads nor changes the global generator."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 5)
    before = torch.get_rng_state()
    first = generate(model, ids, None, NEW, temperature=1.5, seed=4).tokens
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(generate(model, ids, None, NEW, temperature=1.5, seed=4).tokens, first)


def test_sampling_under_compression_is_that_of_the_attached_model() -> None:
    """With a press and a seed, tokens are those of the attached ``model.generate``."""
    model = architectures.shared("qwen2")
    press = COMPRESSING["knorm"]
    ids = architectures.tokens(2, 10)
    ours = generate(model, ids, press, NEW, temperature=0.8, top_k=9, seed=2)
    with press(model), torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = of_transformers(model, ids, torch.ones_like(ids), do_sample=True, temperature=0.8, top_k=9, top_p=1.0)
    assert torch.equal(ours.tokens, theirs)


# The end of a sequence


def greedy(ids: Tensor) -> list[list[int]]:
    """Greedy continuation of each row without an end of sequence."""
    model = architectures.shared("llama")
    return generate(model, ids, None, NEW).tokens[:, ids.shape[1] :].tolist()


def until_its_end(row: list[int], ends: set[int], fill: int) -> list[int]:
    """A row up to its first end of sequence, followed by ``fill``."""
    until = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
    return row[:until] + [fill] * (len(row) - until)


def test_a_single_row_stops_at_its_end_of_sequence() -> None:
    """Generation of a single row stops at its end of sequence."""
    ids = architectures.tokens(1, 8, seed=4)
    row = greedy(ids)[0]
    end = row[5]
    ours = generate(architectures.shared("llama"), ids, None, NEW, eos_token_id=end)
    assert ours.tokens[0, 8:].tolist() == row[: row.index(end) + 1]
    assert ours.new_tokens == row.index(end) + 1


def test_rows_that_end_are_padded_until_the_last_one_ends() -> None:
    """A row that has ended is padded, and other rows are not affected."""
    ids = architectures.tokens(3, 8, seed=4)
    rows = greedy(ids)
    ends = {rows[0][2], rows[1][6]}
    expected = [until_its_end(row, ends, fill=0) for row in rows]
    lengths = [min(row.index(end) + 1 for end in ends if end in row) for row in rows]
    assert len(set(lengths)) == 3, "the rows are to end at different times"
    ours = generate(architectures.shared("llama"), ids, None, NEW, eos_token_id=sorted(ends))
    assert ours.tokens[:, 8:].tolist() == [row[: max(lengths)] for row in expected]
    assert ours.new_tokens == max(lengths)


@pytest.mark.parametrize("press", [None, COMPRESSING["knorm"]], ids=["uncompressed", "knorm"])
def test_several_ends_of_sequence_are_those_of_transformers(press: Press | None) -> None:
    """Any of several ends of sequence ends a row, and its padding is that of transformers."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([12, 5, 9], seed=3)
    free = generate(model, ids, press, NEW, attention_mask=mask).tokens[:, 12:].tolist()
    ends = [free[0][3], free[2][7]]
    ours = generate(model, ids, press, NEW, attention_mask=mask, eos_token_id=ends)
    with press(model) if press is not None else torch.no_grad():
        theirs = of_transformers(model, ids, mask, do_sample=False, eos_token_id=ends)
    assert torch.equal(ours.tokens, theirs)
    assert ours.new_tokens > 4
    assert (ours.tokens[0, 16:] == 0).all(), "the first row has ended"


def test_the_models_own_end_of_sequence_is_the_default() -> None:
    """The default ``eos_token_id`` is that of the model's generation configuration."""
    ids = architectures.tokens(1, 8, seed=4)
    row = greedy(ids)[0]
    model = own_model()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [row[4]]
    ours = generate(model, ids, None, NEW)
    assert ours.tokens[0, 8:].tolist() == row[: row.index(row[4]) + 1]


def test_rows_without_a_padding_token_are_padded_with_the_end() -> None:
    """Without a padding token, rows are padded with the first end of sequence, as in transformers."""
    ids = architectures.tokens(2, 8, seed=4)
    rows = greedy(ids)
    end = rows[0][1]
    assert end not in rows[1], "one row is to end and the other to go on"
    model = own_model()
    assert model.generation_config is not None
    model.generation_config.pad_token_id = None
    ours = generate(model, ids, None, NEW, eos_token_id=end)
    assert ours.tokens[:, 8:].tolist() == [until_its_end(rows[0], {end}, fill=end), rows[1]]


def test_no_end_of_sequence_means_all_the_tokens() -> None:
    """An empty list of ends disables the model's own."""
    ids = architectures.tokens(1, 8, seed=4)
    row = greedy(ids)[0]
    model = own_model()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = row[4]
    assert generate(model, ids, None, NEW, eos_token_id=[]).tokens[0, 8:].tolist() == row


# Several turns


def by_hand(model: PreTrainedModel, press: Press, turns: list[Tensor], mask: Tensor, new: int) -> Tensor:
    """Alternate prompts and greedy answers, with every pass fed to an attached model."""
    cache = DynamicCache(config=model.config)
    sequence = turns[0][:, :0]
    fed = 0
    with torch.no_grad(), press(model):
        for turn in turns:
            sequence = torch.cat([sequence, turn], dim=1)
            for _ in range(new):
                more = sequence.shape[1] - mask.shape[1]
                mask = torch.cat([mask, mask.new_ones(len(mask), more)], dim=1)
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, fed:]
                output = model(sequence[:, fed:], attention_mask=mask, position_ids=positions, **using(cache))
                fed = sequence.shape[1]
                sequence = torch.cat([sequence, output.logits[:, -1:].argmax(-1)], dim=1)
    return sequence


@pytest.mark.parametrize("lengths", [[9], [9, 5, 2]], ids=["alone", "padded"])
@pytest.mark.parametrize("press", COMPRESSING.values(), ids=COMPRESSING)
def test_turns_with_the_returned_cache_are_those_fed_by_hand(press: Press, lengths: list[int]) -> None:
    """Three turns with the returned cache equal those fed by hand, without feeding tokens twice."""
    model = architectures.shared("llama")
    first, mask = architectures.padded(lengths)
    turns = [first, architectures.tokens(len(lengths), 1, seed=1), architectures.tokens(len(lengths), 6, seed=2)]
    sequence, cache = first[:, :0], None
    for turn in turns:
        sequence = torch.cat([sequence, turn], dim=1)
        whole = torch.cat([mask, mask.new_ones(len(mask), sequence.shape[1] - mask.shape[1])], dim=1)
        answer = generate(model, sequence, press, 7, attention_mask=whole, cache=cache)
        sequence, cache = answer.tokens, answer.cache
    assert torch.equal(sequence, by_hand(model, press, turns, mask, 7))
    assert isinstance(cache, PressedCache)
    assert cache.evictions > 0
    assert cache.seen == sequence.shape[1] - 1, "the last token has not been fed"


def test_turns_without_a_press_are_those_of_one_long_text() -> None:
    """Without compression, a second turn equals a new prompt of the whole conversation."""
    model = architectures.shared("neox")
    first = generate(model, architectures.tokens(2, 9), None, 5)
    whole = torch.cat([first.tokens, architectures.tokens(2, 4, seed=1)], dim=1)
    second = generate(model, whole, None, 5, cache=first.cache)
    assert torch.equal(second.tokens, generate(model, whole, None, 5).tokens)


# Batches


@pytest.mark.parametrize(("press", "name"), PRESSES_AND_MODELS, ids=[*COMPRESSING, "knorm-neox"])
def test_rows_of_3_17_and_64_tokens_get_the_tokens_that_they_have_alone(press: Press, name: str) -> None:
    """Rows of different lengths generate the tokens of runs alone, under compression that changes them."""
    model = architectures.shared(name)
    lengths = [3, 17, 64]
    ids, mask = architectures.padded(lengths)
    together = generate(model, ids, press, NEW, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = generate(model, ids[row : row + 1, -length:], press, NEW)
        assert torch.equal(together.tokens[row, -NEW:], alone.tokens[0, -NEW:])
        if length > 3:
            assert isinstance(alone.cache, PressedCache)
            assert alone.cache.evictions > 0
    free = generate(model, ids, None, NEW, attention_mask=mask)
    assert not torch.equal(together.tokens, free.tokens), "this press is to make a difference"


# The clock


class Clock:
    """A clock that advances only in a model: two seconds in a first pass, a quarter in each later one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.now = 100.0
        self.passes = 0
        model.register_forward_hook(self.tick)

    def tick(self, *_: object) -> None:
        self.now += 0.25 if self.passes else 2.0
        self.passes += 1


@pytest.mark.parametrize("press", [None, COMPRESSING["knorm"]], ids=["uncompressed", "knorm"])
def test_ttft_is_the_first_pass_and_tpot_the_mean_of_the_later_ones(
    press: Press | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TTFT is two seconds, TPOT a quarter, and throughput counts the tokens of all rows."""
    model = own_model()
    clock = Clock(model)
    monkeypatch.setattr("pressgauge.decoder.time", SimpleNamespace(perf_counter=lambda: clock.now))
    answer = generate(model, architectures.tokens(3, 10), press, 9)
    assert (answer.ttft, answer.tpot, clock.passes) == (2.0, 0.25, 9)
    assert answer.tokens_per_second == 3 * 9 / (2.0 + 8 * 0.25)


def test_a_single_token_has_no_time_per_later_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a single token TPOT is None, and throughput is that of the first token."""
    model = own_model()
    clock = Clock(model)
    monkeypatch.setattr("pressgauge.decoder.time", SimpleNamespace(perf_counter=lambda: clock.now))
    answer = generate(model, architectures.tokens(2, 10), None, 1)
    assert (answer.ttft, answer.tpot, answer.tokens_per_second) == (2.0, None, 1.0)


def test_times_are_positive_and_fit_into_the_time_of_the_call() -> None:
    """On the real clock, TTFT and all later tokens take no longer than the call."""
    started = time.perf_counter()
    answer = generate(architectures.shared("llama"), architectures.tokens(2, 10), COMPRESSING["knorm"], NEW)
    elapsed = time.perf_counter() - started
    assert answer.tpot is not None
    assert 0 < answer.ttft < elapsed
    assert 0 < answer.tpot < elapsed
    assert answer.ttft + (NEW - 1) * answer.tpot <= elapsed
    assert answer.tokens_per_second >= 2 * NEW / elapsed


def test_progress_changes_nothing() -> None:
    """A progress bar does not change the result."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 10)
    shown = generate(model, ids, COMPRESSING["knorm"], NEW, progress=True)
    assert torch.equal(shown.tokens, generate(model, ids, COMPRESSING["knorm"], NEW).tokens)


def test_the_result_begins_with_the_input_and_counts_new_tokens() -> None:
    """``tokens`` is the whole sequence, and ``new_tokens`` the number of columns after the input."""
    ids = architectures.tokens(2, 10)
    answer = generate(architectures.shared("llama"), ids, COMPRESSING["knorm"], 4)
    assert torch.equal(answer.tokens[:, :10], ids)
    assert (answer.tokens.shape, answer.tokens.dtype, answer.new_tokens) == ((2, 14), torch.int64, 4)


# Refusals

IDS = architectures.tokens(2, 9)
MASK = torch.ones_like(IDS)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one row without a batch": ({"input_ids": IDS[0]}, r"input_ids must be \[batch, tokens\] .* got \[9\]"),
    "no tokens": ({"input_ids": IDS[:, :0]}, r"at least one of each, got \[2, 0\]"),
    "no rows": ({"input_ids": IDS[:0]}, r"at least one of each, got \[0, 9\]"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    "temperature below 0": ({"temperature": -0.5}, r"temperature must be 0 \(greedy\) or above, got -0.5"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature"),
    "greedy top_k": ({"top_k": 5}, "top_k, top_p and seed are for sampling, which needs a temperature above 0"),
    "greedy top_p": ({"top_p": 0.5}, "top_k, top_p and seed are for sampling, which needs a temperature above 0"),
    "greedy seed": ({"seed": 0}, "top_k, top_p and seed are for sampling, which needs a temperature above 0"),
    "top_k 0": ({"temperature": 1.0, "top_k": 0}, "top_k"),
    "top_p below 0": ({"temperature": 1.0, "top_p": -0.1}, "top_p"),
    "top_p above 1": ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
    "a mask that is too short": ({"attention_mask": MASK[:, 1:]}, r"attention_mask .* got \[2, 8\]"),
    "a mask that is too long": (
        {"attention_mask": torch.ones(2, 11, dtype=torch.long)},
        r"attention_mask .* got \[2, 11\]",
    ),
    "a mask of fewer rows": ({"attention_mask": MASK[:1]}, r"attention_mask .* got \[1, 9\]"),
}


@pytest.mark.parametrize("press", [None, COMPRESSING["knorm"]], ids=["uncompressed", "knorm"])
@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_values_out_of_range_are_refused_before_anything_runs(
    arguments: dict[str, Any], sentence: str, press: Press | None
) -> None:
    """Values out of range are refused without changes to the cache, with and without a press."""
    model = architectures.shared("llama")
    cache = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match=sentence):
        generate(model, press=press, cache=cache, **{"input_ids": IDS, "max_new_tokens": 3, **arguments})
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("press", [None, COMPRESSING["knorm"]], ids=["uncompressed", "knorm"])
@pytest.mark.parametrize("left", [0, 1])
def test_a_further_turn_without_new_tokens_is_refused(left: int, press: Press | None) -> None:
    """A further turn needs the whole sequence and new tokens, and a refusal does not change the cache."""
    model = architectures.shared("llama")
    first = generate(model, IDS, press, 4)
    with pytest.raises(ValueError, match=r"seen 12 tokens and input_ids has .*: pass the whole sequence"):
        generate(model, first.tokens[:, : 12 - left], press, 4, cache=first.cache)
    assert first.cache.get_seq_length() == 12


def test_a_cache_of_another_press_is_refused() -> None:
    """A cache of another press is refused, without changes to it or the model."""
    model = architectures.shared("llama")
    cache = KnormPress(0.6).cache(model.config)
    with pytest.raises(ValueError, match=r"the cache belongs to KnormPress\(keep_ratio=0.6"):
        generate(model, IDS, COMPRESSING["knorm"], 4, cache=cache)
    assert cache.get_seq_length() == 0


def test_an_uncompressed_cache_is_refused() -> None:
    """A press refuses the cache of an uncompressed conversation."""
    model = architectures.shared("llama")
    first = generate(model, IDS, None, 4)
    more = torch.cat([first.tokens, IDS], dim=1)
    with pytest.raises(ValueError, match="the cache holds 12 tokens that no press has seen"):
        generate(model, more, COMPRESSING["knorm"], 4, cache=first.cache)
    assert first.cache.get_seq_length() == 12


def test_padding_that_is_not_on_the_left_is_refused() -> None:
    """Padding after or between tokens is refused."""
    model = architectures.shared("llama")
    cache = DynamicCache(config=model.config)
    mask = MASK.clone()
    mask[1, -2:] = 0
    with pytest.raises(ValueError, match="row 1 has padding between or after its tokens: pad on the left"):
        generate(model, IDS, COMPRESSING["knorm"], 4, attention_mask=mask, cache=cache)
    assert cache.get_seq_length() == 0


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    """``skip_layers`` with a missing layer is refused."""
    model = architectures.shared("llama")
    with pytest.raises(ValueError, match="skip_layers names layer 3, but the model has 3 layers, 0 to 2"):
        generate(model, IDS, KnormPress(0.5, skip_layers=(3,)), 4)


# Tokens seen by a cache


@pytest.mark.parametrize("press", [None, COMPRESSING["knorm"]], ids=["uncompressed", "knorm"])
def test_a_cache_that_has_seen_other_tokens_is_refused(press: Press | None) -> None:
    """A cache is refused unless it has seen the same tokens, in every row and in order."""
    model = architectures.shared("llama")
    first = generate(model, IDS, press, 4)
    more = torch.cat([first.tokens, IDS], dim=1)
    other = more.clone()
    other[1, 3] = (other[1, 3] + 1) % 50
    was, now = int(more[1, 3]), int(other[1, 3])
    with pytest.raises(
        ValueError, match=f"in row 1, token 3 was {was} and is {now}; pass the tokens of that Generation"
    ):
        generate(model, other, press, 4, cache=first.cache)
    with pytest.raises(ValueError, match="the cache has seen other tokens than input_ids begins with: in row 0"):
        generate(model, more.flip(0), press, 4, cache=first.cache)
    with pytest.raises(ValueError, match="the cache has seen 2 rows and input_ids has 1: pass the same rows"):
        generate(model, more[:1], press, 4, cache=first.cache)
    assert first.cache.get_seq_length() == 12
    assert generate(model, more, press, 4, cache=first.cache).new_tokens == 4


@pytest.mark.parametrize("press", [None, KnormPress(0.5, prune_after=40)], ids=["uncompressed", "knorm"])
def test_a_cache_changed_by_its_own_methods_is_accepted(press: Press | None) -> None:
    """A cropped, reordered, extended or copied cache is accepted if its known tokens agree."""
    model = architectures.shared("llama")

    def turn() -> tuple[Any, torch.Tensor]:
        first = generate(model, IDS, press, 4)
        return first.cache, torch.cat([first.tokens, IDS], dim=1)

    cache, more = turn()
    cache.crop(-6)
    other = more.clone()
    other[0, 6:] = 5  # not what was cropped away, and need not be
    with pytest.raises(ValueError, match="the cache has seen other tokens"):
        generate(model, other.roll(1, dims=1), press, 1, cache=cache)
    assert generate(model, other, press, 1, cache=cache).new_tokens == 1
    cache, more = turn()
    cache.reorder_cache(torch.tensor([1, 0]))
    assert generate(model, more.flip(0), press, 1, cache=cache).new_tokens == 1
    cache, more = turn()
    cache.batch_select_indices(torch.tensor([1]))
    assert generate(model, more[1:], press, 1, cache=cache).new_tokens == 1
    cache, more = turn()
    assert generate(model, more, press, 1, cache=copy.deepcopy(cache)).new_tokens == 1
    cache.crop(-6)
    with attached(press, model):
        feed(model, IDS[:, :2], using(cache))
    by_hand = torch.cat([more[:, :6], IDS[:, :2], IDS], dim=1)
    assert generate(model, by_hand, press, 1, cache=cache).new_tokens == 1


def test_a_cache_of_rows_that_moved_is_compared_with_their_tokens() -> None:
    """Reordered rows of a compressed cache are compared with their own tokens."""
    model, press = architectures.shared("llama"), COMPRESSING["knorm"]
    first = generate(model, IDS, press, 4)
    more = torch.cat([first.tokens, IDS], dim=1)
    first.cache.reorder_cache(torch.tensor([1, 0]))  # type: ignore[arg-type]  # as transformers has it
    with pytest.raises(ValueError, match="the cache has seen other tokens"):
        generate(model, more, press, 1, cache=first.cache)


def test_padding_of_a_further_turn_may_be_any_token() -> None:
    """Ids at padding are not compared."""
    model, press = architectures.shared("llama"), COMPRESSING["knorm"]
    mask = MASK.clone()
    mask[1, :3] = 0
    first = generate(model, IDS, press, 4, attention_mask=mask)
    more = torch.cat([first.tokens, IDS], dim=1)
    more[1, :3] = 1
    mask = torch.cat([mask, torch.ones(2, 13, dtype=torch.long)], dim=1)
    assert generate(model, more, press, 2, attention_mask=mask, cache=first.cache).new_tokens == 2
