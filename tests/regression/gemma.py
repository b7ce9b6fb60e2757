"""Perplexities and recalls of Gemma 3 270M under every press."""

from collections.abc import Iterator

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
from support.last_logits import last_logits

COMMAND = "nox -s real -- --regen-all"
"""Command that records the baselines of this model."""
TOKENS, PROMPT = 192, 160
"""Tokens of the text, and of its first pass; the others are scored."""
CLOSE = 2.5e-7
"""Relative tolerance of NLL: four times the largest change between AVX2 and no vector instructions, and one and two
threads. The model takes norms in float32 whatever its dtype."""
PRUNE_AFTER = 32
RATIOS = (0.9, 0.5, 0.2)
TASK_TOKENS, TASK_SAMPLES, TASK_RATIO = 192, 1, 0.5
TASK_NAMES = ("niah", "recall")
"""Tasks that the uncompressed model solves, so that they say something about a press."""


def cases() -> Iterator[tuple[str, Press | None]]:
    """No press, and every press under every schedule, by name."""
    yield "uncompressed", None
    for name, kind in PRESSES.items():
        for schedule in SCHEDULES:
            for ratio in RATIOS:
                yield f"{name} {schedule} r={ratio}", kind(ratio, prune_after=PRUNE_AFTER, schedule=schedule)


def perplexities(model: PreTrainedModel, ids: Tensor) -> dict[str, Row]:
    """A row per press, and one without a press."""
    with last_logits(model, ids.shape[1] - PROMPT + 1):
        return {name: row(perplexity(model, ids, press, PROMPT), True) for name, press in cases()}


def recalls(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Row]:
    """A row per task and press, which acts on the prompt, and one per task without a press."""
    presses: dict[str, Press | None] = {"uncompressed": None}
    presses |= {name: kind(TASK_RATIO, prune_after=PRUNE_AFTER, schedule="prefill") for name, kind in PRESSES.items()}
    found: dict[str, Row] = {}
    with last_logits(model, 1):
        for task in TASK_NAMES:
            prompts = fitted(TASKS[task], tokenizer, samples=TASK_SAMPLES, tokens=TASK_TOKENS)
            for name, press in presses.items():
                result = answers(model, tokenizer, prompts, press)
                found[f"{task} {name}"] = {
                    "recalls": " ".join(f"{one:g}" for one in result.recalls),
                    "answers": " | ".join(result.texts),
                    "affected": result.affected_tokens,
                    "evictions": result.evictions,
                }
    return found
