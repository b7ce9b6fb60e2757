"""``watch`` around kvpress: what its presses evict is missing for the queries after the prompt, and for no other."""

import copy
from typing import Any

import pytest
import torch
from kvpress import AdaKVPress, DecodingPress, KnormPress, PyramidKVPress, SnapKVPress
from transformers import DynamicCache, QuantizedCache, pipeline

from pressgauge import watch
from pressgauge.conformance.architectures import Model, build, tokens
from pressgauge.conformance.versions import cache_of, using
from pressgauge.models import load


@pytest.fixture
def model() -> Model:
    """A model for one test: kvpress leaves attributes behind."""
    return build("llama")


def decode(model: Model, cache: Any, start: int, passes: int) -> None:
    """Feed single tokens at their true positions, as kvpress's pipeline does."""
    with torch.no_grad():
        for position in range(start, start + passes):
            model(tokens(1, 1), position_ids=torch.tensor([[position]]), **using(cache))


def test_an_evaluation_in_one_pass_is_vacuous(model: Model) -> None:
    """kvpress evicts after the attention of the prompt, and nothing is fed afterwards."""
    with watch(model) as seen, KnormPress(0.5)(model):
        model(tokens(1, 20))
    assert (seen.vacuous, seen.held, seen.longest) == (True, [10, 10, 10], 20)


def test_generation(model: Model) -> None:
    """Every token after the prompt meets the eviction, at its true position."""
    with watch(model) as seen, KnormPress(0.5)(model):
        model.generate(tokens(1, 20), max_new_tokens=6, do_sample=False)
    assert (seen.passes, seen.tokens, seen.affected_queries, seen.affected_logits) == (6, 25, 5, 5)
    assert (seen.held, seen.unreadable_queries, seen.wrong_positions) == ([15, 15, 15], 0, 0)


def test_positions_that_a_model_counts_for_itself_are_wrong(model: Model) -> None:
    """A cache of kvpress's reports what it holds, from which the model counts."""
    cache = DynamicCache()
    with watch(model) as seen, torch.no_grad(), KnormPress(0.5)(model):
        model(tokens(1, 20), **using(cache))
        model(tokens(1, 1), **using(cache))
    assert (seen.affected_queries, seen.positions, seen.wrong_positions) == (1, 21, 1)


def test_layers_of_different_lengths(model: Model) -> None:
    """PyramidKV retains more in the first layers."""
    cache = DynamicCache()
    with watch(model) as seen, torch.no_grad():
        with PyramidKVPress(0.5, window_size=4, beta=2)(model):
            model(tokens(1, 40), **using(cache))
        decode(model, cache, 40, 3)
    held = [layer.keys.shape[2] for layer in cache.layers]  # type: ignore[union-attr]
    assert len(set(held)) > 1
    assert (seen.held, seen.affected_queries, seen.unreadable_queries) == (held, 3, 0)


def test_eviction_while_decoding(model: Model) -> None:
    """A decoding press evicts after later passes, each of which is met by the next."""
    cache = DynamicCache()
    press = DecodingPress(base_press=KnormPress(), compression_interval=2, target_size=12)
    with watch(model) as seen, torch.no_grad(), press(model):
        model(tokens(1, 20), **using(cache))
        decode(model, cache, 20, 5)
    # The second single token's pass evicts.
    assert (seen.affected_queries, seen.tokens, seen.wrong_positions) == (3, 25, 0)


def test_heads_with_budgets_of_their_own(model: Model) -> None:
    """AdaKV leaves entries in the cache and masks them, which its queries meet all the same."""
    cache = DynamicCache()
    with watch(model) as seen, torch.no_grad(), AdaKVPress(SnapKVPress(0.5, window_size=4))(model):
        model(tokens(1, 20), **using(cache))
        assert seen.vacuous
        decode(model, cache, 20, 3)
        assert (seen.affected_queries, seen.held) == (3, [23, 23, 23])
        # Another text: its prompt meets nothing.
        model(tokens(1, 20), **using(DynamicCache()))
    assert seen.affected_queries == 3


@pytest.mark.parametrize("quantised", [False, True])
def test_the_pipeline(quantised: bool) -> None:
    """kvpress's pipeline compresses a context, answers one question after another, and crops each answer.

    From a quantised cache it does not: the answer is among the entries that are not quantised yet, which are fewer than
    the context, and stay. So the next question is fed at positions of tokens that the cache still holds.
    """
    model, tokenizer = load("reference")
    model = copy.deepcopy(model)
    parts: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    begin: Any = pipeline
    answer = begin("kv-press-text-generation", **parts)
    context = "remember bado red . the old river runs . " * 4
    questions = [" recall bado", " every bird sings . recall bado"]
    cache = QuantizedCache("quanto", config=model.config, q_group_size=16) if quantised else DynamicCache()
    lengths: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with watch(model, require="evictions") as seen:
        answer(context, questions=questions, press=KnormPress(0.5), cache=cache, max_new_tokens=4)
    handle.remove()
    prompt, *rest = lengths
    assert len(rest) == 8  # each question, and three more tokens
    assert (seen.passes, seen.tokens) == (len(lengths), sum(lengths))
    assert (seen.affected_queries, seen.unreadable_queries, seen.window_queries) == (sum(rest), 0, 0)
    assert (seen.positions, seen.wrong_positions) == (sum(lengths), sum(rest[4:]) if quantised else 0)
    assert seen.logits == len(rest)
    assert max(entries for entries in seen.held if entries is not None) < prompt


def test_no_bit_changes(model: Model) -> None:
    """Tokens and entries under a press of kvpress's are the same with a watch."""
    results = []
    for observed in (False, True):
        with KnormPress(0.5)(model):
            if observed:
                with watch(model):
                    output = model.generate(tokens(1, 20), max_new_tokens=8, return_dict_in_generate=True)
            else:
                output = model.generate(tokens(1, 20), max_new_tokens=8, return_dict_in_generate=True)
        layers = cache_of(output).layers
        results.append([output.sequences, *(states for layer in layers for states in (layer.keys, layer.values))])
    assert all(one.equal(other) for one, other in zip(*results, strict=True))
