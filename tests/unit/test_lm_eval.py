"""lm-eval's model with a press: its log-likelihoods and texts are those of decoding with the compressed cache.

The oracle decodes token by token with the stock model and ``press.cache``, and knows neither lm-eval nor one pass.
"""

import importlib
import json
import logging
import math
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import DynamicCache, GPTNeoConfig, GPTNeoForCausalLM, T5Config

from pressgauge import KnormPress, Press, PressedCache, RandomPress, SnapKVPress, StreamingLLMPress, TOVAPress
from pressgauge.conformance.versions import cache_of, using
from pressgauge.models import interface, load
from pressgauge.onepass import OnePass
from pressgauge.reference.language import TOKENS, document

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: nox -s lm_eval runs these tests")
pytest.importorskip("accelerate", reason="lm-eval's extra hf is not installed: nox -s lm_eval runs these tests")

from lm_eval._cli import HarnessCLI  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from pressgauge import lm_eval as ours  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "lm-eval.md").read_text(encoding="utf-8")
CHOICES, LETTERS, ROLLING, GENERATE = "local_choices", "local_letters", "local_rolling", "local_generate"
TASKS = (CHOICES, LETTERS, ROLLING, GENERATE)
PRESSES: dict[str, Press] = {
    "knorm": KnormPress(0.5, prune_after=16),
    "random": RandomPress(0.6, prune_after=10, skip_layers=(1,)),
    "streaming-llm": StreamingLLMPress(0.4, prune_after=20, schedule="step"),
    "snapkv": SnapKVPress(0.5, prune_after=16, recent=8),
    "tova": TOVAPress(0.5, prune_after=24, skip_layers=(0,)),
}
PRESS = KnormPress(0.4, prune_after=16)
UNTIL: dict[str, Any] = {"until": ["."], "max_gen_toks": 12}


def documents() -> list[dict[str, Any]]:
    """Texts of different lengths that state facts, each with a fact to recall."""
    rows = []
    for seed in range(6):
        words = document(seed, 80 + 9 * seed).text.split()
        words = words[: len(words) - words[::-1].index(".")]
        name, value = words[words.index("remember") + 1 : words.index("remember") + 3]
        others = [each for each in TOKENS[69:101] if each != value][:3]
        values = [value, *others]
        random.Random(seed).shuffle(values)
        rows.append(
            {
                "text": " ".join(words),
                "name": name,
                "values": values,
                "choices": [f"recall {name} {each} ." for each in values],
                "label": values.index(value),
            }
        )
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and tasks on local texts."""
    place = tmp_path_factory.mktemp("lm_eval")
    model, tokenizer = load("reference")
    # lm-eval ends texts at the end of sequence, which the reference language does not have.
    tokenizer.eos_token = "<pad>"
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents()))
    base = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data.jsonl")}, "cache_dir": str(place / "datasets")},
        "test_split": "test",
    }
    choice = {"output_type": "multiple_choice", "doc_to_target": "label"}
    accuracy = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    tasks: dict[str, dict[str, Any]] = {
        CHOICES: {**choice, "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}", "metric_list": accuracy},
        LETTERS: {
            **choice,
            "doc_to_text": "{{text}} recall {{name}}",
            "doc_to_choice": "{{values}}",
            "metric_list": accuracy,
        },
        ROLLING: {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [
                {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
            ],
        },
        GENERATE: {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{choices[label]}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }
    (place / "tasks").mkdir()
    for name, task in tasks.items():
        (place / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **base, **task}))
    return place


def made(folder: Path, press: Press | str = "none", **options: Any) -> Any:
    """The model of a press, in float64."""
    given: dict[str, Any] = {"press": press} if isinstance(press, str) else arguments(press)
    return ours.PressLM(str(folder / "model"), **{"dtype": "float64", "device": "cpu", **given, **options})


def arguments(press: Press) -> dict[str, Any]:
    """What lm-eval is given for a press."""
    names = {type(each): name for name, each in PRESSES.items()}
    return {"press": names[type(press)], **asdict(press)}


def evaluated(folder: Path, model: Any, tasks: Sequence[str] = TASKS, **options: Any) -> dict[str, Any]:
    """What ``lm_eval.simple_evaluate`` returns."""
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options
    )
    return found


def responses(results: dict[str, Any], task: str) -> list[Any]:
    """The answers to the requests of a task: (log-likelihood, greedy), log-likelihoods, or texts."""
    samples = sorted(results["samples"][task], key=lambda sample: int(sample["doc_id"]))
    return [answer for sample in samples for answers in sample["resps"] for answer in answers]


def requests(pairs: Sequence[tuple[Any, ...]], kind: str = "loglikelihood") -> list[Any]:
    """Requests of lm-eval, of one task."""
    return [Instance(kind, {}, pair, 0, metadata=("task", index, 1)) for index, pair in enumerate(pairs)]


# The oracle


@cache
def stock() -> tuple[Any, Any]:
    """The model, in float64, and its tokenizer."""
    return load("reference", dtype="float64")


@cache
def decoded(given: tuple[int, ...], prompt: int, press: Press | None, end: int = 0) -> tuple[list[int], Tensor, int]:
    """Decode token by token after a prompt: the tokens that are given, or those of highest probability.

    Args:
        given: the prompt, and what comes after it; the last token is not fed.
        prompt: tokens of the prompt.
        press: the press; None for none.
        end: where nothing is given after the prompt, the number of tokens at which to stop, or else after a full stop.

    Returns:
        All tokens, the log-probabilities ``[n, V]`` of those after the prompt, and how many of these were affected.
    """
    model, tokenizer = stock()
    attached: Any = nullcontext()
    cache: Any = DynamicCache(config=model.config)
    if press is not None and press.needs_queries:
        cache, attached = PressedCache(press, model.config, prompt_length=prompt), press(model)
    elif press is not None:
        cache = press.cache(model.config, prompt_length=prompt)
    ids, logits, feed = list(given), [], given[:prompt]
    with torch.no_grad(), attached:
        for column in range(prompt, end or len(given)):
            logits.append(model(torch.tensor([feed]), **using(cache)).logits[0, -1])
            if column == len(ids):
                ids.append(int(logits[-1].argmax()))
            feed = (ids[column],)
            if end and feed[0] == tokenizer.convert_tokens_to_ids("."):
                break
    first = min([int(table.min()) for table in getattr(cache, "evicted_at", [])], default=sys.maxsize)
    affected = sum(query >= first for query in range(prompt - 1, len(ids) - 1))
    return ids, torch.stack(logits).log_softmax(dim=-1), affected


def scored(ids: Sequence[int], prompt: int, press: Press | None) -> tuple[float, bool, int]:
    """Log-likelihood of the tokens after the prompt, whether each is top-1, and the number of affected ones."""
    _, log_probabilities, affected = decoded(tuple(ids), prompt, press)
    answer = torch.tensor(ids[prompt:])
    likelihood = float(log_probabilities.gather(1, answer[:, None]).sum())
    return likelihood, bool((log_probabilities.argmax(dim=-1) == answer).all()), affected


def written(text: str, press: Press | None) -> tuple[str, int, int]:
    """What is generated after a text up to a full stop, its tokens, and the number of affected ones."""
    tokenizer = stock()[1]
    ids = tuple(tokenizer(text).input_ids)
    found, _, affected = decoded(ids, len(ids), press, len(ids) + UNTIL["max_gen_toks"])
    words = tokenizer.decode(found[len(ids) :], skip_special_tokens=True)
    return words.split(".")[0], len(found) - len(ids), affected


def windows(ids: Sequence[int], prefix: int, length: int) -> list[tuple[list[int], int]]:
    """The windows of a long text, and the context of each: at most ``length`` tokens are fed, each is scored once."""
    whole = [prefix, *ids]
    found = []
    for start in range(0, len(ids), length):
        stop = min(start + length, len(ids)) + 1
        window = whole[max(0, stop - length - 1) : stop]
        found.append((window, len(window) - (stop - 1 - start)))
    return found


def alike(found: Sequence[Any], wanted: Sequence[Any], tolerance: float = 1e-9) -> bool:
    """Whether log-likelihoods agree, and flags and texts are the same."""
    for one, other in zip(found, wanted, strict=True):
        both = [each if isinstance(each, tuple | list) else (each, None) for each in (one, other)]
        if isinstance(one, str):
            if one.strip() != other.strip():
                return False
        elif both[0][1] != both[1][1] or not math.isclose(both[0][0], both[1][0], rel_tol=tolerance, abs_tol=tolerance):
            return False
    return True


def pairs() -> list[tuple[str, str]]:
    """Contexts and continuations of different lengths, in no order; several continuations of a context, some greedy."""
    found = []
    for row in documents():
        words = row["text"].split()
        for cut, end in ((40, 41), (55, 60), (55, 68), (30, len(words))):
            found.append((" ".join(words[:cut]), " " + " ".join(words[cut:end])))
        # What is generated with and without a press is greedy with and without it.
        found += [(row["text"], " " + written(row["text"], press)[0].strip()) for press in (None, PRESS)]
    random.Random(0).shuffle(found)
    return found


def expected(press: Press | None, asked: Sequence[tuple[str, str]], most: int = 2048) -> list[tuple[float, bool, int]]:
    """The oracle's answers. The last ``most + 1`` tokens are left of a longer text."""
    tokenizer = stock()[1]
    found = []
    for context, continuation in asked:
        ids, prompt = tokenizer(context + continuation).input_ids, len(tokenizer(context).input_ids)
        beyond = max(0, len(ids) - most - 1)
        found.append(scored(ids[beyond:], prompt - beyond, press))
    return found


# Laws, each of which is shown to fail for a broken model below


def scores_are_those_of_decoding(folder: Path) -> None:
    """Of rows of different lengths in a batch: likelihood and greediness."""
    for press in (PRESS, KnormPress(0.4, prune_after=16, schedule="prefill")):
        found = made(folder, press, batch_size=8).loglikelihood(requests(pairs()), disable_tqdm=True)
        assert alike(found, [answer[:2] for answer in expected(press, pairs())])


def long_contexts_are_truncated_on_the_left(folder: Path) -> None:
    """As by lm-eval: the last tokens are left, and the very last is not fed."""
    asked = [pair for pair in pairs() if len(pair[1].split()) <= 52]
    lm = made(folder, PRESS, batch_size=4, max_length=52)
    found = lm.loglikelihood(requests(asked), disable_tqdm=True)
    assert alike(found, [answer[:2] for answer in expected(PRESS, asked, 52)])


def long_texts_are_scored_in_windows(folder: Path) -> None:
    """Each window is decoded; the last begins with tokens of the one before, as its prompt."""
    tokenizer = stock()[1]
    texts = [row["text"] for row in documents()]
    wanted = []
    for text in texts:
        cut = windows(tokenizer(text).input_ids, tokenizer.bos_token_id, 40)
        assert len(cut) > 1
        wanted.append(sum(scored(ids, prompt, PRESS)[0] for ids, prompt in cut))
    lm = made(folder, PRESS, batch_size=4, max_length=40)
    found = lm.loglikelihood_rolling(requests([(text,) for text in texts], "loglikelihood_rolling"), disable_tqdm=True)
    assert alike(found, wanted)


def texts_are_those_of_decoding(folder: Path) -> None:
    """After prompts of different lengths in a batch."""
    texts = [row["text"] for row in documents()]
    lm = made(folder, PRESS, batch_size=4)
    found = lm.generate_until(requests([(text, UNTIL) for text in texts], "generate_until"), disable_tqdm=True)
    assert alike(found, [written(text, PRESS)[0] for text in texts])


def nothing_stays_attached(folder: Path) -> None:
    """After an evaluation, and after one that failed."""
    lm = made(folder, PRESS, batch_size=4)
    for options in (UNTIL, {**UNTIL, "assistant_model": lm.model}):
        with suppress(ValueError):
            lm.generate_until(requests([("the old river runs .", options)], "generate_until"), disable_tqdm=True)
        assert not interface.carries_a_press(interface.decoder_of(lm.model))
        assert "generate" not in vars(lm.model)
        assert not lm.model._forward_pre_hooks
        assert not interface.decoder_of(lm.model)._forward_pre_hooks
    lm.loglikelihood(requests(pairs()[:4]), disable_tqdm=True)
    assert not interface.carries_a_press(interface.decoder_of(lm.model))


def affected_tokens_of_scores_are_counted(folder: Path) -> None:
    """Those whose query came after a first eviction, and the requests without any."""
    press = KnormPress(0.4, prune_after=60)
    lm = made(folder, press, batch_size=4)
    lm.loglikelihood(requests(pairs()), disable_tqdm=True)
    affected = [answer[2] for answer in expected(press, pairs())]
    # Those with one token, and those that end before the press acts.
    assert 6 < affected.count(0) < len(affected)
    assert lm.requests["task"] == {
        "requests": len(affected),
        "vacuous": affected.count(0),
        "tokens": sum(len(continuation.split()) for _, continuation in pairs()),
        "affected_tokens": sum(affected),
    }


def affected_tokens_of_texts_are_counted(folder: Path) -> None:
    """Up to each row's own stop sequence, after which it goes on as long as the others do."""
    press = KnormPress(0.4, prune_after=44)
    texts = [" ".join(row["text"].split()[:end]) for row, end in zip(documents(), range(34, 46, 2), strict=True)]
    _, tokens, affected = zip(*(written(text, press) for text in texts), strict=True)
    assert 0 < affected.count(0) < len(affected)
    assert len(set(tokens)) > 1
    lm = made(folder, press, batch_size=6)
    lm.generate_until(requests([(text, UNTIL) for text in texts], "generate_until"), disable_tqdm=True)
    assert lm.requests["task"]["tokens"] == sum(tokens)
    alone = []
    for text in texts:
        lm.generate_until(requests([(text, UNTIL)], "generate_until"), disable_tqdm=True)
        alone.append(lm.requests["task"])
    assert [counts["affected_tokens"] for counts in alone] == list(affected)
    assert [counts["vacuous"] for counts in alone] == [int(not each) for each in affected]


LAWS: dict[str, Callable[[Path], None]] = {
    law.__name__: law
    for law in (
        scores_are_those_of_decoding,
        long_contexts_are_truncated_on_the_left,
        long_texts_are_scored_in_windows,
        texts_are_those_of_decoding,
        nothing_stays_attached,
        affected_tokens_of_scores_are_counted,
        affected_tokens_of_texts_are_counted,
    )
}


@pytest.mark.parametrize("law", LAWS)
def test_law(law: str, folder: Path) -> None:
    """The model obeys it."""
    LAWS[law](folder)


# Broken models


def with_prompt(change: Callable[[int, int], int]) -> Callable[[pytest.MonkeyPatch], None]:
    """Breaks where the prompt ends: ``change`` gets its length and that of the row."""

    class Broken(OnePass):
        def logits(self, model: Any, input_ids: Tensor) -> Tensor:
            self.prompt = change(self.prompt, input_ids.shape[1])
            return super().logits(model, input_ids)

    return lambda patch: patch.setattr(ours, "OnePass", Broken)


def changed(name: str, change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Breaks a method: ``change`` gets the right one, the model, and the arguments."""

    def breaks(patch: pytest.MonkeyPatch) -> None:
        real = getattr(ours.PressLM, name)
        patch.setattr(ours.PressLM, name, lambda self, *args, **options: change(real, self, *args, **options))

    return breaks


def shortest_prompt(patch: pytest.MonkeyPatch) -> None:
    """All rows have the prompt of the shortest context."""
    shortest = [0]

    def tokens(real: Any, self: Any, asked: Any, **options: Any) -> Any:
        shortest[0] = min(len(context) for _, context, _ in asked)
        return real(self, asked, **options)

    changed("_loglikelihood_tokens", tokens)(patch)
    with_prompt(lambda prompt, columns: shortest[0])(patch)


def uncompressed_greediness(real: Any, self: Any, asked: Any, **options: Any) -> Any:
    """``is_greedy`` is that of lm-eval's own model."""
    found = real(self, asked, **options)
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(ours.PressLM, "_model_call", HFLM._model_call)
        plain = HFLM._loglikelihood_tokens(self, asked, **options)
    return [(likelihood, greedy) for (likelihood, _), (_, greedy) in zip(found, plain, strict=True)]


def first_token_dropped(real: Any, self: Any, asked: Any, **options: Any) -> Any:
    """The first token of a continuation counts as context."""
    moved = [(key, context + more[:1], more[1:]) if more[1:] else (key, context, more) for key, context, more in asked]
    return real(self, moved, **options)


def truncated_on_the_right(real: Any, self: Any, asked: Any, **options: Any) -> Any:
    """The first tokens of a long context are left."""
    most = self.max_length + 1
    return real(self, [(key, context[: most - len(more)], more) for key, context, more in asked], **options)


def padding_is_seen(real: Any, self: Any, inps: Tensor, **options: Any) -> Tensor:
    """Two columns in front of the rows, without a mask."""
    self._prompt += 2
    logits: Tensor = real(self, torch.cat([torch.zeros_like(inps[:, :2]), inps], dim=1), **options)
    self._prompt -= 2
    return logits[:, 2:]


def padding_is_seen_in_generation(real: Any, self: Any, *args: Any, **options: Any) -> Any:
    """The attention mask is left out."""
    mask = torch.ones_like(options["attention_mask"])
    return real(self, *args, **options | {"attention_mask": mask})


LEFT = ExitStack()
"""Presses that broken models left attached."""


def press_that_stays(real: Any, self: Any, *args: Any, **options: Any) -> Any:
    """The press is attached and not detached."""
    with suppress(ValueError):
        LEFT.enter_context(self.press(self.model))
    return HFLM._model_generate(self, *args, **options)


def ratio_evicted(patch: pytest.MonkeyPatch) -> None:
    """``keep_ratio`` is taken for the share that is evicted."""
    real = ours.make_press

    def made_press(name: str, given: dict[str, Any]) -> Any:
        given["keep_ratio"] = 1 - given["keep_ratio"]
        return real(name, given)

    patch.setattr(ours, "make_press", made_press)


def counting(change: Callable[[int, int, int], int]) -> Callable[[pytest.MonkeyPatch], None]:
    """Breaks the count of affected tokens, of the prompt, the answer and the first eviction."""
    return lambda patch: patch.setattr(ours, "count_affected", change)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "the continuation is part of the prompt": (with_prompt(lambda p, t: t), "scores_are_those_of_decoding"),
    "the window is the prompt": (with_prompt(lambda p, t: t), "long_texts_are_scored_in_windows"),
    "the context is fed singly": (with_prompt(lambda p, t: 1), "scores_are_those_of_decoding"),
    "the prompt lacks its last token": (with_prompt(lambda p, t: max(1, p - 1)), "scores_are_those_of_decoding"),
    "one prompt for all rows": (shortest_prompt, "scores_are_those_of_decoding"),
    "greediness of the uncompressed logits": (
        changed("_loglikelihood_tokens", uncompressed_greediness),
        "scores_are_those_of_decoding",
    ),
    "the first token of a continuation is dropped": (
        changed("_loglikelihood_tokens", first_token_dropped),
        "scores_are_those_of_decoding",
    ),
    "padding is seen": (changed("_model_call", padding_is_seen), "scores_are_those_of_decoding"),
    "padding is seen in generation": (
        changed("_model_generate", padding_is_seen_in_generation),
        "texts_are_those_of_decoding",
    ),
    "the wrong end is truncated": (
        changed("_loglikelihood_tokens", truncated_on_the_right),
        "long_contexts_are_truncated_on_the_left",
    ),
    "keep_ratio is the share that is evicted": (ratio_evicted, "scores_are_those_of_decoding"),
    "generation without the press": (
        lambda patch: patch.setattr(ours.PressLM, "_model_generate", HFLM._model_generate),
        "texts_are_those_of_decoding",
    ),
    "the press stays attached": (changed("_model_generate", press_that_stays), "nothing_stays_attached"),
    "every token is affected": (counting(lambda p, a, f: a), "affected_tokens_of_scores_are_counted"),
    "a token of the evicting pass is affected": (
        counting(lambda p, a, f: max(0, min(a, p + a - f))),
        "affected_tokens_of_scores_are_counted",
    ),
    "what follows a stop sequence counts": (
        changed("_stops", lambda real, self, tokens, stop: False),
        "affected_tokens_of_texts_are_counted",
    ),
}
"""By what is broken: how, and the law that must find it."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_law_kills_the_mutant(mutant: str, folder: Path) -> None:
    """By its own assertion."""
    breaks, law = MUTANTS[mutant]
    with pytest.MonkeyPatch.context() as patch, LEFT.pop_all():
        breaks(patch)
        with pytest.raises(AssertionError) as found:
            LAWS[law](folder)
        LEFT.close()
    assert str(found.traceback[-1].path) == __file__


# Evaluations


@pytest.mark.parametrize("press", [{"press": "none"}, {"press": "knorm", "keep_ratio": 1, "prune_after": 16}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-6)])
def test_at_ratio_1_all_is_that_of_the_own_model_of_lm_eval(
    folder: Path, press: dict[str, Any], dtype: str, tolerance: float
) -> None:
    """Likelihoods, greediness, texts and metrics, of tasks of every kind."""
    options = {"pretrained": str(folder / "model"), "dtype": dtype}
    own = evaluated(folder, "hf", model_args=options, device="cpu", batch_size=4)
    found = evaluated(folder, "pressgauge", model_args=options | press, device="cpu", batch_size=4)
    for task in TASKS:
        assert alike(responses(found, task), responses(own, task), tolerance)
        metrics = [name for name, value in own["results"][task].items() if not isinstance(value, str)]
        for metric in metrics:
            assert found["results"][task][metric] == pytest.approx(own["results"][task][metric], rel=tolerance)
    assert found["config"]["pressgauge"]["requests"] == {}


def answers_of(press: Press | None) -> dict[str, list[Any]]:
    """The oracle's answers to all requests of the tasks."""
    tokenizer = stock()[1]
    choices, rolling, texts = [], [], []
    for row in documents():
        for choice in row["choices"]:
            prompt = len(tokenizer(row["text"]).input_ids)
            choices.append(scored(tokenizer(f"{row['text']} {choice}").input_ids, prompt, press)[:2])
        ((ids, prompt),) = windows(tokenizer(row["text"]).input_ids, tokenizer.bos_token_id, 2048)
        rolling.append(scored(ids, prompt, press)[0])
        texts.append(written(row["text"], press)[0])
    return {CHOICES: choices, ROLLING: rolling, GENERATE: texts}


@pytest.mark.parametrize(("name", "batch_size"), [("knorm", 1), *((name, 4) for name in PRESSES)])
def test_below_ratio_1_all_is_that_of_decoding(folder: Path, name: str, batch_size: int) -> None:
    """Likelihoods, greediness and texts; they are others than without a press, and no request is vacuous."""
    results = evaluated(folder, made(folder, PRESSES[name], batch_size=batch_size), (CHOICES, ROLLING, GENERATE))
    for task, wanted in answers_of(PRESSES[name]).items():
        assert alike(responses(results, task), wanted)
    uncompressed = answers_of(None)
    # Under prefill, a text without a context has nothing to compress.
    vacuous = {CHOICES: 0, ROLLING: 6 if PRESSES[name].schedule == "prefill" else 0, GENERATE: 0}
    for task in (CHOICES, ROLLING):
        assert alike(responses(results, task), uncompressed[task]) == bool(vacuous[task])
    counts = results["config"]["pressgauge"]["requests"]
    assert {task: each["vacuous"] for task, each in counts.items()} == vacuous


def test_the_own_model_of_lm_eval_under_a_press_reports_the_uncompressed_perplexity(folder: Path) -> None:
    """To the last digit, while its cache shrinks: no query meets an eviction (lm-evaluation-harness, issue 3298)."""
    options = {"pretrained": str(folder / "model"), "device": "cpu"}
    press = KnormPress(0.2, prune_after=16)
    own, held = HFLM(**options), []
    uncompressed = evaluated(folder, own, (CHOICES, ROLLING))
    hook = own.model.register_forward_hook(lambda module, args, output: held.append(cache_of(output).held[0]))
    with press(own.model):
        attached = evaluated(folder, own, (CHOICES, ROLLING))
    hook.remove()
    assert max(held) <= math.ceil(0.2 * 140)
    for task in (CHOICES, ROLLING):
        assert responses(attached, task) == responses(uncompressed, task)
    perplexity = "word_perplexity,none"
    assert attached["results"][ROLLING][perplexity] == uncompressed["results"][ROLLING][perplexity]
    found = evaluated(folder, ours.PressLM(**options, **arguments(press)), (ROLLING,))
    assert found["results"][ROLLING][perplexity] > 2 * uncompressed["results"][ROLLING][perplexity]


def test_answers_of_one_token_are_called_vacuous(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each is predicted by the prompt's own pass, so their likelihoods are the uncompressed ones."""
    with caplog.at_level(logging.WARNING):
        found = evaluated(folder, made(folder, PRESS), (LETTERS, CHOICES))
    plain = evaluated(folder, made(folder), (LETTERS,))
    assert alike(responses(found, LETTERS), responses(plain, LETTERS))
    counts = found["config"]["pressgauge"]["requests"]
    assert counts[LETTERS] == {"requests": 24, "vacuous": 24, "tokens": 24, "affected_tokens": 0}
    assert counts[CHOICES] == {"requests": 24, "vacuous": 0, "tokens": 96, "affected_tokens": 72}
    (warning,) = [each.getMessage() for each in caplog.records if "vacuous" in each.getMessage()]
    assert warning.startswith("local_letters: 24 of 24 requests are vacuous: none of their tokens was predicted after")
    assert "use a task with longer answers" in warning
    assert "with 16 entries or fewer evicts nothing" in warning


def test_results_name_the_press_and_its_options(folder: Path) -> None:
    """Also those that were not given."""
    options = {"press": "snapkv", "keep_ratio": 0.5, "prune_after": 16, "skip_layers": "unprunable"}
    found = evaluated(
        folder, "pressgauge", (ROLLING,), model_args={"pretrained": str(folder / "model"), **options}, device="cpu"
    )
    counts = found["config"]["pressgauge"].pop("requests")
    assert set(counts) == {ROLLING}
    assert found["config"]["pressgauge"] == {
        "press": "snapkv",
        "keep_ratio": 0.5,
        "prune_after": 16,
        "skip_layers": (),
        "sinks": 0,
        "recent": 64,
        "schedule": "prefill",
        "interval": 1,
        "kernel": 5,
    }


@pytest.mark.parametrize(("given", "layers"), [(0, (0,)), ([2, 0], (0, 2)), ("unprunable", ()), ((), ())], ids=str)
def test_layers_are_skipped(folder: Path, given: Any, layers: tuple[int, ...]) -> None:
    """One as a number, several as a list."""
    lm = made(folder, "knorm", keep_ratio=0.5, skip_layers=given)
    assert lm.press == KnormPress(0.5, skip_layers=layers)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "press must be one of knorm, .*, or none for no compression, got ''"),
        ({"press": "knrom", "keep_ratio": 0.5}, "press must be one of knorm, .* got 'knrom'"),
        ({"press": "knorm"}, "press=knorm needs the fraction of the tokens to retain, got none: give keep_ratio=0.5"),
        ({"press": "knorm", "keep_ratio": 1.5}, r"keep_ratio must be in \(0, 1\], got 1.5"),
        ({"press": "knorm", "keep_ratio": 0.5, "schedule": "often"}, "schedule must be one of budget"),
        ({"press": "none", "keep_ratio": 0.5}, "press=none has no keep_ratio, got keep_ratio=0.5: leave it out"),
        ({"press": None, "prune_after": 16}, "press=none has no prune_after"),
        ({"press": "none", "mixed_precision_dtype": "bfloat16"}, "mixed_precision_dtype is not supported"),
        ({"press": "none", "tp_plan": "auto"}, "tp_plan is not supported"),
        ({"press": "none", "batch_size": "auto:2"}, "batch_size must be a number under a press, got 'auto:2'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_a_model_is_loaded(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """There is none."""
    with pytest.raises(ValueError, match=message):
        ours.PressLM(str(tmp_path / "nothing"), device="cpu", **options)


def test_an_argument_that_nobody_knows_is_refused(folder: Path) -> None:
    """By the model that it is handed on to."""
    with pytest.raises(TypeError, match="keep_ration"):
        made(folder, "knorm", keep_ratio=0.5, keep_ration=0.4)


def test_an_encoder_decoder_is_refused_before_its_weights_are_loaded(tmp_path: Path) -> None:
    """There are none."""
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pretrained must be a causal model, got one with the backend 'seq2seq'"):
        ours.PressLM(str(tmp_path), press="knorm", keep_ratio=0.5, device="cpu")


def test_a_model_that_the_press_does_not_support_is_refused(folder: Path, tmp_path: Path) -> None:
    """With the reason and the way out, before anything is evaluated."""
    config = GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global"], 2]], vocab_size=149)
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    options: dict[str, Any] = {"device": "cpu", "tokenizer": str(folder / "model"), "press": "knorm", "keep_ratio": 0.5}
    with pytest.raises(ValueError, match="does not go through transformers' attention interface"):
        ours.PressLM(str(tmp_path), **options)


def test_cached_responses_of_another_press_are_refused(folder: Path, tmp_path: Path) -> None:
    """Since the keys of lm-eval's file name the request only."""
    file = {"use_cache": str(tmp_path / "responses")}
    first = evaluated(folder, made(folder, PRESS), (CHOICES,), **file)
    again = evaluated(folder, made(folder, PRESS), (CHOICES,), **file)
    assert responses(again, CHOICES) == responses(first, CHOICES)
    assert again["config"]["pressgauge"]["requests"] == {}
    for other in (KnormPress(0.5, prune_after=16), "none"):
        with pytest.raises(ValueError, match=r'got a file of \{"press": "knorm", "keep_ratio": 0.4'):
            evaluated(folder, made(folder, other), (CHOICES,), **file)
    own = HFLM(pretrained=str(folder / "model"), device="cpu")
    evaluated(folder, own, (CHOICES,), use_cache=str(tmp_path / "own"))
    with pytest.raises(ValueError, match="got a file of another model: give another file"):
        evaluated(folder, made(folder, PRESS), (CHOICES,), use_cache=str(tmp_path / "own"))


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the error of the import."""
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    monkeypatch.delitem(sys.modules, "pressgauge.lm_eval")
    with pytest.raises(ModuleNotFoundError, match=r"install the extra lm-eval, python -m pip install .*\[lm-eval\]"):
        importlib.import_module("pressgauge.lm_eval")


# The command


def command(folder: Path, place: Path, options: str) -> subprocess.CompletedProcess[str]:
    """``python -m pressgauge.lm_eval``, on the task with choices."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pressgauge.lm_eval", "--model", "pressgauge"),
            *("--model_args", f"pretrained={folder / 'model'},dtype=float64,{options}", "--device", "cpu"),
            *(
                "--tasks",
                CHOICES,
                "--include_path",
                str(folder / "tasks"),
                "--output_path",
                str(place / "results.json"),
            ),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place)},
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_evaluates_with_a_press(folder: Path, tmp_path: Path) -> None:
    """As ``lm_eval`` does from Python; the results name the press."""
    ended = command(folder, tmp_path, "press=knorm,keep_ratio=0.5,prune_after=16,skip_layers=[0,2]")
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.glob("results*.json")
    results = json.loads(file.read_text())
    press = KnormPress(0.5, prune_after=16, skip_layers=(0, 2))
    wanted = evaluated(folder, made(folder, press), (CHOICES,))
    assert results["results"][CHOICES]["acc,none"] == wanted["results"][CHOICES]["acc,none"]
    found = results["config"]["pressgauge"]
    assert {name: found[name] for name in ("press", "keep_ratio", "prune_after", "skip_layers", "schedule")} == {
        "press": "knorm",
        "keep_ratio": 0.5,
        "prune_after": 16,
        "skip_layers": [0, 2],
        "schedule": "budget",
    }
    assert found["requests"] == {CHOICES: {"requests": 24, "vacuous": 0, "tokens": 96, "affected_tokens": 72}}
    assert CHOICES in ended.stdout


@pytest.mark.parametrize("line", re.findall(r"^\$ (python -m pressgauge\.lm_eval .*)$", PAGE, flags=re.MULTILINE))
def test_the_commands_of_the_page_name_a_press_and_what_it_takes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by lm-eval's own command line; they need a network."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "pressgauge.lm_eval"]
    monkeypatch.setattr(sys, "argv", words[2:])
    parsed = HarnessCLI().parse_args()
    assert parsed.model == "pressgauge"
    given = parsed.model_args
    press = ours.make_press(given.pop("press"), given)
    assert (press is None) == ("press=none" in line)
    assert set(given) == {"pretrained"}


def test_the_command_refuses_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    """Before anything is evaluated."""
    ended = command(folder, tmp_path, "press=knorm,keep_ratio=1.5")
    assert ended.returncode != 0
    assert "keep_ratio must be in (0, 1], got 1.5" in ended.stderr
    assert list(tmp_path.glob("results*.json")) == []
