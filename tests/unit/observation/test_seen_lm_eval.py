"""``watch`` around lm-evaluation-harness: under an attached press its log-likelihoods are vacuous.

A task on local texts, and the model as lm-eval loads it from a folder.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pressgauge import KnormPress, VacuousWarning, watch
from pressgauge.models import load
from pressgauge.reference.language import document

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: nox -s lm_eval runs these tests")
pytest.importorskip("accelerate", reason="lm-eval's extra hf is not installed: nox -s lm_eval runs these tests")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

PRESS = KnormPress(keep_ratio=0.4, prune_after=16)
TEXTS = [" ".join(document(seed, 60 + 7 * seed).text.split()) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and three tasks on local texts."""
    place = tmp_path_factory.mktemp("watch")
    model, tokenizer = load("reference")
    # lm-eval ends texts at the end of sequence, which the reference language does not have.
    tokenizer.eos_token = "<pad>"
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    rows = [{"text": text, "choices": ["river", "bird"], "label": seed % 2} for seed, text in enumerate(TEXTS)]
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data.jsonl")}, "cache_dir": str(place / "datasets")},
        "test_split": "test",
    }
    tasks: dict[str, dict[str, Any]] = {
        "watched_choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_target": "label",
            "doc_to_choice": "{{choices}}",
        },
        "watched_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity"}],
        },
        "watched_generation": {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "river",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 5, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    (place / "tasks").mkdir()
    for name, task in tasks.items():
        # JSON is YAML.
        (place / "tasks" / f"{name}.yaml").write_text(json.dumps({"task": name, **base, **task}))
    return place


def evaluate(folder: Path, model: HFLM, task: str) -> Any:
    """The results of a task."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0)["results"][task]


@pytest.fixture
def model(folder: Path) -> HFLM:
    """The model as lm-eval loads it, two rows at a time."""
    return HFLM(pretrained=str(folder / "model"), device="cpu", batch_size=2, dtype="float64")


@pytest.mark.parametrize("task", ["watched_choices", "watched_rolling"])
def test_log_likelihoods_are_vacuous(folder: Path, model: HFLM, task: str) -> None:
    """lm-eval scores a text by one forward pass, which evicts when it is over: the result is the uncompressed one."""
    plain = evaluate(folder, model, task)
    with pytest.warns(VacuousWarning), watch(model.model) as seen, PRESS(model.model):
        pressed = evaluate(folder, model, task)
    assert pressed == plain
    assert seen.vacuous
    assert seen.logits > 0
    assert seen.unreadable_queries == seen.affected_queries == seen.wrong_positions == 0
    assert min(held for held in seen.held if held is not None) < seen.longest, "the press did evict"
    with (
        pytest.raises(ValueError, match=r"none of \d+ queries was seen to meet an eviction"),
        pytest.warns(VacuousWarning),
        watch(model.model, require="evictions"),
        PRESS(model.model),
    ):
        evaluate(folder, model, task)


def test_generation_is_not(folder: Path, model: HFLM) -> None:
    """Each generated token but the first comes of a query that met an eviction, in padded batches too."""
    with watch(model.model, require="evictions") as seen, PRESS(model.model):
        evaluate(folder, model, "watched_generation")
    # Two batches of two rows, five tokens each.
    assert seen.passes == 2 * 5
    assert seen.affected_queries == seen.affected_logits == 2 * 2 * 4
    assert seen.logits == 2 * 2 * 5
    assert (seen.unreadable_queries, seen.wrong_positions) == (0, 0)
