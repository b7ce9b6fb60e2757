"""Rows of a real model: perplexities of two texts, and recall in tasks."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressgauge import Press, perplexity
from pressgauge.bench.answering import answers
from pressgauge.presses import PRESSES
from pressgauge.tasks import TASKS
from pressgauge.tasks.fitting import fitted
from regression.baseline import Row
from regression.cases import SCHEDULES
from regression.perplexities import row

MODEL = "PRESSGAUGE_REAL_MODEL"
"""Environment variable with the path of the model."""
TEXTS = {"wikitext-2": "wikitext-2/test.txt", "shakespeare": "books/shakespeare.txt"}
"""Files of texts, by name."""
RATIOS = (0.9, 0.5, 0.2)
PRUNE_AFTER = 64


def presses(ratios: tuple[float, ...]) -> Iterator[tuple[str, Press]]:
    """Every press under ``budget`` at these ratios, by name and ratio."""
    for name, kind in PRESSES.items():
        for ratio in ratios:
            yield f"{name} r={ratio}", kind(keep_ratio=ratio, prune_after=PRUNE_AFTER)


def perplexities_of_real_text(model: PreTrainedModel, ids: Tensor) -> dict[str, Row]:
    """A row per press, schedule and ratio, and one without a press; scored is the last quarter."""
    prompt = ids.shape[1] * 3 // 4
    found = {"uncompressed r=1": row(perplexity(model, ids, None, prompt), exact=True)}
    for name, press in presses(RATIOS):
        for schedule in SCHEDULES:
            result = perplexity(model, ids, replace(press, schedule=schedule), prompt)
            found[f"{schedule} {name}"] = row(result, exact=True)
    return found


TASKS_OF_REAL = ("niah", "passkey")
TASK_RATIOS = (0.5, 0.2)


def recalls(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Row]:
    """A row per task, press and ratio, under ``prefill``, and one per task without a press."""
    found: dict[str, Row] = {}
    for task in TASKS_OF_REAL:
        prompts = fitted(TASKS[task], tokenizer, samples=2, tokens=640)
        for name, press in [("uncompressed r=1", None), *presses(TASK_RATIOS)]:
            own = None if press is None else replace(press, schedule="prefill")
            result = answers(model, tokenizer, prompts, own)
            found[f"{task} {name}"] = {"recall": result.recall, "evictions": result.evictions}
    return found
