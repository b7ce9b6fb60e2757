"""What generation refuses, in whole sentences, and the small decisions around a pass."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import Generation, KnormPress, PressedCache, decoder, generate
from pressgauge.conformance import architectures
from pressgauge.models import interface

PRESS = KnormPress(0.5, prune_after=4)


def said(sentence: str) -> str:
    """A pattern for the whole of a sentence."""
    return f"^{re.escape(sentence)}$"


WORDS: list[tuple[type[Exception], dict[str, Any], str]] = [
    (
        TypeError,
        {"attention_mask": 3},
        "attention_mask must be a tensor [2, 5], got 3: make one with torch.tensor",
    ),
    (
        ValueError,
        {"attention_mask": torch.ones(2, 4)},
        "attention_mask must be [2, 5] like input_ids, got [2, 4]",
    ),
    (
        ValueError,
        {"attention_mask": torch.tensor([[1] * 5, [0, 1, 0, 1, 1]])},
        "row 1 has padding between or after its tokens: pad on the left",
    ),
    (TypeError, {"max_new_tokens": 1.5}, "max_new_tokens must be a whole number, got 1.5"),
    (ValueError, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    (TypeError, {"cache": 3}, "cache must be a DynamicCache, got 3: give that of a Generation, or none"),
    (TypeError, {"temperature": True}, "temperature must be a number, 0 (greedy) or above, got True"),
    (ValueError, {"temperature": -0.5}, "temperature must be 0 (greedy) or above, got -0.5"),
    *(
        (
            ValueError,
            {name: 1},
            "top_k, top_p and seed are for sampling, which needs a temperature above 0, got 0",
        )
        for name in ("top_k", "top_p", "seed")
    ),
    (TypeError, {"temperature": 1, "seed": 1.5}, "seed must be a whole number, got 1.5"),
    (TypeError, {"eos_token_id": "3"}, "eos_token_id must be a list of whole numbers, got '3'"),
    (TypeError, {"eos_token_id": [1, 2.5]}, "a number in eos_token_id must be a whole number, got 2.5"),
]


@pytest.mark.parametrize(("kind", "changes", "words"), WORDS, ids=[str(list(changes)) for _, changes, _ in WORDS])
def test_what_cannot_be_generated_from_is_refused(kind: type[Exception], changes: dict[str, Any], words: str) -> None:
    """In one sentence, with the argument, the rule and what was given."""
    with pytest.raises(kind, match=said(words)):
        generate(architectures.shared("llama"), architectures.tokens(2, 5), PRESS, **{"max_new_tokens": 2, **changes})


def test_the_text_has_to_fit_the_context_with_its_last_new_token() -> None:
    """Columns that are padding in every row do not count."""
    model = architectures.build("llama", max_position_embeddings=8)
    ids, mask = architectures.padded([5, 3])
    sentence = "input_ids and max_new_tokens must fit the model's context of 8 tokens, got 9: give fewer"
    assert generate(model, ids, PRESS, 3, attention_mask=mask).new_tokens == 3
    with pytest.raises(ValueError, match=said(sentence)):
        generate(model, ids, PRESS, 4, attention_mask=mask)
    assert generate(model, ids[1:], PRESS, 5, attention_mask=mask[1:]).new_tokens == 5
    with pytest.raises(ValueError, match=said(sentence)):
        generate(model, ids[1:], PRESS, 6, attention_mask=mask[1:])


def test_a_cache_that_has_seen_all_or_other_tokens_is_refused() -> None:
    """With the numbers, the place and the way out."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 5)
    first = generate(model, ids, PRESS, 3)
    sentence = "the cache has seen 7 tokens and input_ids has 7: pass the whole sequence so far and more"
    with pytest.raises(ValueError, match=said(sentence)):
        generate(model, first.tokens[:, :7], PRESS, 2, cache=first.cache)
    sentence = "the cache has seen 2 rows and input_ids has 1: pass the same rows"
    with pytest.raises(ValueError, match=said(sentence)):
        generate(model, first.tokens[:1], PRESS, 2, cache=first.cache)
    other = first.tokens.clone()
    was = int(other[1, 6])
    other[1, 6] = now = (was + 1) % architectures.VOCABULARY
    sentence = (
        f"the cache has seen other tokens than input_ids begins with: in row 1, token 6 was {was} and is {now}; pass "
        "the tokens of that Generation and more behind them, or no cache"
    )
    with pytest.raises(ValueError, match=said(sentence)):
        generate(model, other, PRESS, 2, cache=first.cache)
    other = first.tokens.clone()
    other[1, 7] = (other[1, 7] + 1) % architectures.VOCABULARY
    assert generate(model, other, PRESS, 2, cache=first.cache).tokens.shape == (2, 10)


MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


def test_padding_is_refused_where_a_model_would_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because it numbers positions itself, or selects keys by their columns; without padding there is nothing to
    refuse."""
    model = architectures.shared("llama")
    decoder.refuse_padding(model, MASK, 1)
    rest = (
        " and counts padding, so padded rows cannot be decoded as they are alone: feed rows of equal length, or one at "
        "a time"
    )
    monkeypatch.setattr(interface, "takes_positions", lambda _: False)
    decoder.refuse_padding(model, MASK[:1], 1)
    with pytest.raises(ValueError, match=said(f"LlamaForCausalLM numbers positions itself{rest}")):
        decoder.refuse_padding(model, MASK, 1)
    monkeypatch.setattr(interface, "takes_positions", lambda _: True)
    monkeypatch.setattr(interface, "selects_keys", lambda _: True)
    with pytest.raises(ValueError, match=said(f"LlamaForCausalLM selects keys by their columns{rest}")):
        decoder.refuse_padding(model, MASK, 1)


@pytest.mark.parametrize(("prompt", "padding", "refused"), [(1, 1, True), (2, 2, False), (2, 3, True), (3, 1, False)])
def test_layers_without_keys_take_padding_in_the_prompt(prompt: int, padding: int, refused: bool) -> None:
    """A prompt of one token is fed singly, too."""
    model = architectures.hybrid()
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :padding] = 0
    if not refused:
        decoder.refuse_padding(model, mask, prompt)
        return
    sentence = (
        f"{type(model).__name__} has recurrent layers, which treat padding fed singly as text; a row has "
        f"{padding} columns of padding and the prompt {prompt}: use a longer prompt, or feed rows of equal length"
    )
    with pytest.raises(ValueError, match=said(sentence)):
        decoder.refuse_padding(model, mask, prompt)


def test_a_cache_that_saw_other_tokens_than_the_model_was_fed_is_found_out() -> None:
    """A cache without keys cannot tell."""
    model = architectures.shared("llama")
    cache = DynamicCache(config=model.config)
    model(architectures.tokens(1, 3), **{interface.cache_argument(model): cache})
    decoder.prove(model, cache, 3)
    decoder.prove(model, SimpleNamespace(layers=[object()]), 4)  # type: ignore[arg-type]
    sentence = (
        f"LlamaForCausalLM ({interface.VERSION}) was fed 4 tokens, and the cache that it was given has seen 3: it "
        "keeps no such cache, so measure it by method='plain'"
    )
    with pytest.raises(ValueError, match=said(sentence)):
        decoder.prove(model, cache, 4)


def test_positions_count_the_tokens_of_each_row() -> None:
    """0 at padding."""
    assert decoder.own_positions(MASK).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert decoder.own_positions(MASK.bool()).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]


def test_a_mask_is_of_zeros_and_ones() -> None:
    """Whatever stands for a token in the mask that was given, and ones where none was."""
    ids = torch.zeros(2, 3, dtype=torch.int32)
    assert torch.equal(decoder.checked_mask(ids, None), torch.ones(2, 3, dtype=torch.int32))
    found = decoder.checked_mask(ids, torch.tensor([[0.0, 2.0, 0.5], [-1.0, 3.0, 1.0]]))
    assert torch.equal(found, torch.tensor([[0, 1, 1], [1, 1, 1]]))


def test_a_new_cache_is_pressed_where_there_is_a_press() -> None:
    """With the prompt's length; and the model is left alone where there is none."""
    model = architectures.shared("llama")
    cache = decoder.new_cache(PRESS, model, 5)
    assert isinstance(cache, PressedCache)
    assert (cache.press, cache.ledger.prompt_length, cache.unpadded) == (PRESS, 5, False)
    plain: Any = decoder.new_cache(None, model, 5)
    assert type(plain) is DynamicCache
    assert len(plain.layers) == architectures.LAYERS
    with decoder.attached(None, model):
        assert not interface.carries_a_press(model)
    with decoder.attached(PRESS, model):
        assert interface.carries_a_press(model)


class Clock:
    """A clock that is read at given times."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def perf_counter(self) -> float:
        """The next of them."""
        return self.times.pop(0)


@pytest.mark.parametrize(
    ("new", "times", "ttft", "tpot", "speed"),
    [(3, (100, 107, 110, 120), 7, 6.5, 6 / 20), (1, (100, 104), 4, None, 2 / 4), (2, (5, 6, 9), 1, 3, 4 / 4)],
)
def test_times_are_those_between_tokens(
    new: int, times: tuple[float, ...], ttft: float, tpot: float | None, speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first from the start of prefill, the later ones from the first; read once the device is done."""
    waited: list[str] = []
    clock = Clock(*times)
    monkeypatch.setattr(decoder, "time", clock)
    monkeypatch.setattr(decoder, "_synchronise", lambda device: waited.append(f"{device} {len(clock.times)}"))
    found = generate(architectures.shared("llama"), architectures.tokens(2, 5), PRESS, new)
    assert not clock.times
    assert waited == [f"cpu {left}" for left in range(new + 1, 0, -1)]
    assert (found.ttft, found.tpot, found.new_tokens, found.generated) == (ttft, tpot, new, 2 * new)
    assert found.tokens_per_second == speed


def test_an_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is done when it returns."""
    waited: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    decoder._synchronise(torch.device("cpu"))
    assert not waited
    decoder._synchronise(torch.device("meta"))
    assert waited == [torch.device("meta")]


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_where_it_is_asked_for(progress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, and gone when all is done."""
    shown: list[Any] = []

    def track(steps: Any, **settings: Any) -> Any:
        shown.append((list(steps), settings))
        return steps

    monkeypatch.setattr(decoder, "track", track)
    asked: dict[str, Any] = {"progress": True} if progress else {}
    generate(architectures.shared("llama"), architectures.tokens(1, 5), PRESS, 3, **asked)
    assert shown == [([0, 1, 2], {"description": "generating", "disable": not progress, "transient": True})]


@pytest.mark.parametrize(("pad", "eos", "fill"), [(7, None, None), (7, 3, 7), (None, [3, 5], 3), (0, 3, 0)])
def test_rows_that_ended_are_filled(
    pad: int | None, eos: Any, fill: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the padding token of the model, or the first that ends a row."""
    model = architectures.build("llama")
    model.generation_config.pad_token_id = pad
    chosen = iter([[3, 9], [9, 9], [9, 3]])

    def feed(*_: Any) -> Any:
        logits = torch.zeros(2, 1, architectures.VOCABULARY)
        for row, token in enumerate(next(chosen)):
            logits[row, 0, token] = 1
        return logits

    monkeypatch.setattr(interface, "feed", feed)
    monkeypatch.setattr(decoder, "prove", lambda *_: None)
    found = generate(model, architectures.tokens(2, 5), None, 3, eos_token_id=eos)
    rows = found.tokens[:, 5:].tolist()
    assert rows == ([[3, 9, 9], [9, 9, 3]] if eos is None else [[3, fill, fill], [9, 9, 3]])
    assert (found.new_tokens, found.generated) == (3, 6 if eos is None else 4)


def test_64_tokens_are_generated_unless_another_number_is_given() -> None:
    """As the page of the function says."""
    model = architectures.shared("llama")
    assert generate(model, architectures.tokens(1, 3), PRESS, eos_token_id=[]).new_tokens == 64


def test_throughput_counts_the_time_of_all_tokens() -> None:
    """Also where a clock is too coarse for the later ones, and where there are none."""
    cache, tokens = DynamicCache(), torch.zeros(2, 5)
    for new, ttft, tpot, speed in ((3, 2.0, 0.5, 2.0), (3, 2.0, 0.0, 3.0), (1, 2.0, None, 1.0)):
        found = Generation(tokens, new, 2 * new, cache, ttft, tpot)
        assert found.tokens_per_second == speed


def test_sampling_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers, whatever dtype a model has; the model's own logits are not written to."""
    model, given = architectures.build("llama").bfloat16(), []

    def processors(temperature: float, top_k: int | None, top_p: float | None) -> Any:
        assert (temperature, top_k, top_p) == (0.5, 3, 0.9)

        def process(tokens: Tensor, logits: Tensor) -> Tensor:
            given.append((tokens.shape, logits.dtype))
            return logits

        return process

    monkeypatch.setattr(decoder, "_processors", processors)
    generate(model, architectures.tokens(2, 5), PRESS, 2, temperature=0.5, top_k=3, top_p=0.9, seed=0)
    assert given == [((2, 5), torch.float32), ((2, 6), torch.float32)]
