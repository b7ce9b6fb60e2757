"""Answers with a compressed cache."""

from functools import cache
from typing import Any

import pytest
import torch

from pressgauge import H2OPress, KnormPress, Press, RandomPress, SnapKVPress, StreamingLLMPress
from pressgauge.bench.answering import Answers, answers
from pressgauge.conformance.versions import using
from pressgauge.models import load
from pressgauge.tasks import TASKS
from pressgauge.tasks.fitting import Prompt, Prompts, fitted
from pressgauge.tasks.sample import Sample


@cache
def loaded(name: str = "reference") -> tuple[Any, Any]:
    return load(name)


def answered(press: Press | None, samples: int = 6, tokens: int = 256, name: str = "reference") -> Answers:
    model, tokenizer = loaded(name)
    return answers(model, tokenizer, fitted(TASKS["recall"], tokenizer, samples=samples, tokens=tokens), press)


@pytest.mark.parametrize("name", ["reference", "reference-neox"])
def test_the_reference_models_recall_at_least_80_percent(name: str) -> None:
    assert answered(None, samples=20, tokens=384, name=name).recall >= 0.8


@pytest.mark.parametrize("press", [KnormPress, StreamingLLMPress, H2OPress, SnapKVPress, RandomPress])
@pytest.mark.parametrize("schedule", ["prefill", "budget"])
def test_a_ratio_of_one_answers_as_the_uncompressed_model(press: type[Press], schedule: Any) -> None:
    """All of the answers are the same words, and nothing is evicted."""
    plain, same = answered(None), answered(press(1.0, prune_after=16, schedule=schedule))
    assert (same.texts, same.recalls, same.kv_bytes) == (plain.texts, plain.recalls, plain.kv_bytes)
    assert (same.evictions, same.affected_tokens, same.vacuous) == (0, 0, False)


def _at(depth: float) -> Prompts:
    """Prompts whose fact is at a depth."""
    _, tokenizer = loaded()
    found = []
    for seed in range(6):
        sample = TASKS["recall"].draw(seed, 200, seed)
        words = sample.context.split(" . ")
        fact = next(part for part in words if sample.question.split()[-1] in part.split())
        rest = [part for part in words if part is not fact]
        rest.insert(round(depth * (len(rest) - 1)), fact)
        moved = Sample(" . ".join(rest), sample.question, sample.hidden)
        found.append(Prompt(moved, tuple(tokenizer(moved.prompt).input_ids)))
    return Prompts(tuple(found), 1)


@pytest.mark.parametrize("schedule", ["prefill", "budget"])
def test_streaming_llm_recalls_what_is_recent_and_not_what_is_in_the_middle(schedule: Any) -> None:
    """Its entries are the first and the last tokens, so a fact is recalled if and only if it is among them."""
    model, tokenizer = loaded()
    press = StreamingLLMPress(0.2, prune_after=16, schedule=schedule)
    recalled = {at: answers(model, tokenizer, _at(at), press).recall for at in (0.3, 0.5, 0.7, 0.97)}
    assert answers(model, tokenizer, _at(0.5), None).recall == 1
    assert max(recalled[0.3], recalled[0.5], recalled[0.7]) <= 2 / 6
    assert recalled[0.97] == 1


def test_the_first_token_of_an_answer_is_predicted_after_the_eviction() -> None:
    """Answers of one token are affected, under a press that evicts once after the prompt."""
    found = answered(KnormPress(0.2, prune_after=16, schedule="prefill"))
    assert (found.answer_tokens, found.affected_tokens, found.vacuous) == (6, 6, False)
    assert found.evictions > 0


def test_a_press_that_evicts_nothing_is_vacuous() -> None:
    found = answered(KnormPress(0.2, prune_after=1000))
    assert (found.evictions, found.affected_tokens, found.vacuous) == (0, 0, True)


def test_an_eviction_within_the_answer_affects_the_tokens_after_it() -> None:
    """If the cache exceeds P with the third token fed after the prompt, the query of that pass is not affected yet."""
    model, tokenizer = loaded()
    sample = TASKS["recall"].draw(0, 60, 0)
    ids = tuple(tokenizer(sample.prompt).input_ids)
    # The pass of the prompt has one token less, and ten queries follow, of which three see no eviction.
    press = KnormPress(0.5, prune_after=len(ids) + 1)
    found = answers(model, tokenizer, Prompts((Prompt(sample, ids),), 10), press)
    assert (found.answer_tokens, found.affected_tokens) == (10, 7)


@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_answers_are_those_of_feeding_the_cache_by_hand(ratio: float) -> None:
    """The answer is the greedy continuation of a cache that got the prompt in one pass but for its last token."""
    model, tokenizer = loaded()
    prompts = fitted(TASKS["recall"], tokenizer, samples=4, tokens=128)
    found = answers(model, tokenizer, prompts, StreamingLLMPress(ratio, prune_after=16, schedule="prefill"))
    for prompt, text in zip(prompts.prompts, found.texts, strict=True):
        press = StreamingLLMPress(ratio, prune_after=16, schedule="prefill")
        ids = torch.tensor([prompt.ids])
        with torch.no_grad(), press(model):
            cache = press.cache(model.config)
            model(ids[:, :-1], **using(cache))
            logits = model(ids[:, -1:], **using(cache)).logits[0, -1]
        assert tokenizer.decode([int(logits.argmax())]) == text
