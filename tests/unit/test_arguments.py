"""Invalid arguments are refused in one sentence each, before any work."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast

import pytest
import torch
from transformers import DynamicCache, FalconConfig, GPT2Config, LlamaConfig

from pressgauge import KnormPress, generate, perplexity, replay
from pressgauge.arguments import check_context, context_of
from pressgauge.conformance import architectures

IDS = architectures.tokens(2, 9)
KEYS = torch.zeros(1, 1, 4, 2)
PRESS = KnormPress(0.5, prune_after=2)
IS_A_PRESS = "press must be a press such as KnormPress(0.5), or None for no press, got "
IS_A_MODEL = "model must be a transformers model, got "


def measure(**given: Any) -> object:
    """``perplexity`` of the shared model."""
    return perplexity(**cast(Any, {"model": architectures.shared("llama"), "input_ids": IDS, "press": PRESS, **given}))


def decode(**given: Any) -> object:
    """``generate`` with the shared model."""
    usual = {"model": architectures.shared("llama"), "input_ids": IDS, "press": PRESS, "max_new_tokens": 2}
    return generate(**cast(Any, usual | given))


def play(**given: Any) -> object:
    """``replay`` of one layer."""
    return replay(**cast(Any, {"press": PRESS, "keys": KEYS, "passes": [4], **given}))


PRESSES: dict[str, tuple[Any, str]] = {
    "class": (KnormPress, "the class KnormPress"),
    "name": ("knorm", "'knorm'"),
    "ratio": (0.5, "0.5"),
    "list": ([PRESS] * 3, "a list"),
}
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    **{
        f"{work.__name__}: press, {name}": (lambda work=work, press=press: work(press=press), IS_A_PRESS + words)  # type: ignore[misc]
        for work in (measure, decode, play)
        for name, (press, words) in PRESSES.items()
    },
    **{
        f"{work.__name__}: {name}": (lambda work=work, given=given: work(**given), words)  # type: ignore[misc]
        for work in (measure, decode)
        for name, (given, words) in {
            "model name": ({"model": "gpt2"}, f"{IS_A_MODEL}'gpt2': load one with from_pretrained"),
            "model and tokenizer": ({"model": (1, 2)}, f"{IS_A_MODEL}(1, 2): load"),
            "list of ids": ({"input_ids": [[1, 2, 3]]}, "input_ids must be a tensor [batch, tokens], got [[1, 2, 3]]"),
            "text": ({"input_ids": "the river"}, "input_ids must be a tensor [batch, tokens], got 'the river': make"),
            "float ids": (
                {"input_ids": IDS.float()},
                "input_ids must be token ids, int64 or int32, got a tensor [2, 9] of float32: convert them",
            ),
            "bool ids": ({"input_ids": IDS > 3}, "input_ids must be token ids, int64 or int32, got a tensor [2, 9] of"),
            "list as mask": (
                {"attention_mask": [[1] * 9] * 9},
                "attention_mask must be a tensor [2, 9], got a list: make one with torch.tensor",
            ),
        }.items()
    },
    "prompt None": (lambda: measure(prompt=None), "prompt must be a whole number, got None"),
    "prompt True": (lambda: measure(prompt=True), "prompt must be a whole number, got True"),
    "prompt 1.5": (lambda: measure(prompt=1.5), "prompt must be a whole number, got 1.5"),
    "no new tokens": (lambda: decode(max_new_tokens=None), "max_new_tokens must be a whole number, got None"),
    "half a token": (lambda: decode(max_new_tokens=1.5), "max_new_tokens must be a whole number, got 1.5"),
    "temperature": (lambda: decode(temperature=None), "temperature must be a number, 0 (greedy) or above, got None"),
    "seed": (lambda: decode(temperature=1.0, seed="1"), "seed must be a whole number, got '1'"),
    "end": (lambda: decode(eos_token_id="."), "eos_token_id must be a list of whole numbers, got '.'"),
    "ends": (lambda: decode(eos_token_id=[1, "."]), "a number in eos_token_id must be a whole number, got '.'"),
    "tuple as cache": (lambda: decode(cache=()), "cache must be a DynamicCache, got (): give that of a Generation"),
    "replay: no press": (lambda: play(press=None), "press must be a press such as KnormPress(0.5), got None"),
    "replay: list of keys": (
        lambda: play(keys=[1.0]),
        "keys must be a tensor [batch, KV heads, tokens, dimension], got [1.0]",
    ),
    "replay: one number": (lambda: play(passes=4), "passes must be a list of whole numbers, got 4"),
    "replay: half a pass": (lambda: play(passes=[3.5, 0.5]), "a number in passes must be a whole number, got 3.5"),
    "replay: one padding": (lambda: play(padding=1), "padding must be a list of whole numbers, got 1"),
    "replay: layer": (lambda: play(layer=None), "layer must be a whole number, got None"),
    "replay: list of queries": (
        lambda: play(queries=[1.0]),
        "queries must be a tensor [batch, heads, tokens, dimension]",
    ),
    "compress: keys": (
        lambda: PRESS.compress(cast(Any, [[1.0]]), KEYS),
        "keys must be a tensor [batch, KV heads, tokens, dimension], got [[1.0]]: make one with torch.tensor",
    ),
    "compress: values": (lambda: PRESS.compress(KEYS, cast(Any, None)), "values must be a tensor"),
    "cache: name": (
        lambda: PRESS.cache(cast(Any, "gpt2")),
        "config must be a transformers configuration, got 'gpt2': give model.config",
    ),
    "cache: model": (
        lambda: PRESS.cache(cast(Any, architectures.shared("llama"))),
        "config must be a transformers configuration, got a LlamaForCausalLM: give model.config",
    ),
    "attach: name": (lambda: PRESS(cast(Any, "gpt2")), f"{IS_A_MODEL}'gpt2'"),
    "attach: class": (lambda: PRESS(cast(Any, GPT2Config)), f"{IS_A_MODEL}the class GPT2Config"),
    "resolve: name": (lambda: PRESS.resolved(cast(Any, "gpt2")), f"{IS_A_MODEL}'gpt2'"),
}


@pytest.mark.parametrize(("work", "words"), WRONG.values(), ids=WRONG)
def test_an_argument_of_the_wrong_kind_gets_one_sentence(work: Callable[[], object], words: str) -> None:
    """An argument of the wrong type is refused with its name, the required type and the given one."""
    with pytest.raises(TypeError, match=f"^{re.escape(words)}") as error:
        work()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("score", [None, 1.0, [1.0]])
def test_a_score_that_is_no_tensor_gets_one_sentence(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score that is not a tensor is refused, by every method."""
    monkeypatch.setattr(KnormPress, "score", lambda self, keys, **given: score)
    words = re.escape(
        "the scores of KnormPress must be a tensor [batch, KV heads, entries] with one score per key, got"
    )
    for work in (measure, decode, play, lambda: PRESS.compress(KEYS, KEYS)):
        with pytest.raises(TypeError, match=f"^{words}"):
            work()


def test_a_score_of_another_shape_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score of another shape than the keys without their dimension is refused."""
    for score, shape in ((lambda keys: keys, [1, 1, 4, 2]), (lambda keys: keys[:, :, 0, 0], [1, 1])):
        monkeypatch.setattr(KnormPress, "score", lambda self, keys, score=score, **given: score(keys))
        words = re.escape(
            "the scores of KnormPress must be [1, 1, 4], [batch, KV heads, entries] with one score per key, "
            f"got {shape}"
        )
        for work in (play, lambda: PRESS.compress(KEYS, KEYS)):
            with pytest.raises(ValueError, match=f"^{words}$"):
                work()
        for attached in (measure, decode):
            with pytest.raises(ValueError, match=r"^the scores of KnormPress must be \["):
                attached()


# The context


def test_texts_beyond_the_context_are_refused_before_any_work() -> None:
    """Texts longer than the model's context of 512 tokens, without padding, are refused before any work."""
    model = architectures.build("llama")
    model.forward = None  # nothing may run
    words = r"must fit the model's context of 512 tokens, got 513: give fewer"
    for press in (None, PRESS):
        for method in ("onepass", "stepwise", "plain"):
            with pytest.raises(ValueError, match=f"^input_ids {words}"):
                perplexity(model, architectures.tokens(1, 513), press, 1, method)
        cache = DynamicCache(config=model.config)
        with pytest.raises(ValueError, match=f"^input_ids and max_new_tokens {words}"):
            generate(model, architectures.tokens(1, 511), press, 2, cache=cache)
    ids = architectures.tokens(1, 513)
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    whole = perplexity(architectures.shared("llama"), ids[:, 1:], None, 1, "plain")
    padded = perplexity(architectures.shared("llama"), ids, None, 2, "plain", attention_mask=mask)
    assert padded.ppl == pytest.approx(whole.ppl)
    assert generate(architectures.shared("llama"), ids[:, :510], None, 2).new_tokens == 2


def stretched(limit: int) -> LlamaConfig:
    """A configuration with YaRN from 100 to 400 tokens, which gives this limit."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 100}
    return LlamaConfig(max_position_embeddings=limit, rope_parameters=rope)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (GPT2Config(n_positions=32), 32),
        (FalconConfig(alibi=True), None),
        (FalconConfig(alibi=False, max_position_embeddings=16), 16),
        # As in Qwen: the limit before stretching.
        (stretched(100), 400),
        # As in DeepSeek: the limit after stretching.
        (stretched(400), 400),
    ],
)
def test_the_context_is_that_of_the_model(config: Any, limit: int | None) -> None:
    """The context is read under any name, and is None for unlimited positions."""
    assert context_of(config) == limit
    check_context(config, limit or 10**9, "it")
    if limit is not None:
        with pytest.raises(ValueError, match=f"^it must fit the model's context of {limit} tokens, got {limit + 1}"):
            check_context(config, limit + 1, "it")


def test_integers_of_other_libraries_are_integers() -> None:
    """Integers of other libraries are accepted, and decimals are not."""
    assert measure(prompt=torch.tensor(3)).nll.equal(measure(prompt=3).nll)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="prompt must be a whole number"):
        measure(prompt=Decimal(3))


@pytest.mark.parametrize("call", [measure, decode])
@pytest.mark.parametrize("wrong", [architectures.VOCABULARY, -1, 2**40])
def test_ids_without_an_embedding_are_refused(call: Callable[..., object], wrong: int) -> None:
    """An id outside of the model's vocabulary is refused with the vocabulary, before any pass."""
    ids = IDS.clone()
    ids[1, 3] = wrong
    sentence = (
        f"input_ids must be token ids from 0 to {architectures.VOCABULARY - 1}, the model's vocabulary, got {wrong}:"
    )
    with pytest.raises(ValueError, match=sentence):
        call(input_ids=ids)
