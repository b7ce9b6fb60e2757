"""Effect of a press on the perplexity of documents, paired with the same documents uncompressed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import torch
from scipy.stats import t
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from pressgauge import Perplexity, Press, generate, perplexity
from pressgauge.models import load
from pressgauge.presses import PRESSES
from pressgauge.reference.language import document
from pressgauge.rules import Schedule, usual_prompt
from pressgauge.texts import load_text

RATIOS = (0.8, 0.7, 0.5, 0.3, 0.2)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
PRUNE_AFTER = 64
SAMPLED = "sampled"
"""Name of the text sampled from the model itself."""


@dataclass(frozen=True)
class Case:
    """A model and a text.

    Attributes:
        name: name on the page.
        model: a model that ``pressgauge.models.load`` knows.
        text: a text that ``pressgauge.texts.load_text`` knows, or ``sampled``.
        documents, tokens: number of documents, and of tokens in each.
        remark: note for the interpretation of the results; ends with a full stop.
    """

    name: str
    model: str
    text: str
    documents: int
    tokens: int
    remark: str = ""


@dataclass(frozen=True)
class Change:
    """Mean over documents with its 95 % confidence interval, by Student's t."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Effect:
    """Effect of a press.

    Attributes:
        ppl: relative change of perplexity.
        recalled: change of the NLL of recalled facts, in nats, over the documents with such facts; None for fewer than
            two.
        held: mean number of entries that a layer holds at the end.
        vacuous: whether no scored token was affected by an eviction.
    """

    ppl: Change
    recalled: Change | None
    held: float
    vacuous: bool


def prepare() -> None:
    """Set up a process: one thread, and no progress bars of transformers."""
    torch.set_num_threads(1)
    disable_progress_bar()


def change(differences: Sequence[float]) -> Change:
    """Mean and confidence interval of paired differences, one per document."""
    count = len(differences)
    mean = math.fsum(differences) / count
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in differences) / (count - 1) / count)
    margin = float(t.ppf(0.975, count - 1)) * spread
    return Change(mean, mean - margin, mean + margin)


def sampled(model: Any, tokenizer: Any, documents: int, tokens: int) -> Tensor:
    """Texts ``[documents, tokens]`` sampled from a model."""
    start = torch.full((documents, 1), tokenizer.bos_token_id)
    # -1 disables the end-of-text token.
    return generate(model, start, None, tokens - 1, temperature=1.0, seed=0, eos_token_id=-1).tokens


@cache
def texts(case: Case) -> tuple[Any, Tensor]:
    """The model, in float64, and its documents ``[documents, tokens]``."""
    model, tokenizer = load(case.model, dtype="float64")
    if case.text != SAMPLED:
        return model, load_text(case.text, tokenizer, samples=case.documents, tokens=case.tokens)
    return model, sampled(model, tokenizer, case.documents, case.tokens)


@cache
def uncompressed(case: Case, prompt: int) -> Perplexity:
    """Perplexity of the uncompressed arm, on the same tokens."""
    model, ids = texts(case)
    return perplexity(model, ids, None, prompt)


def recalled(case: Case, prompt: int) -> Tensor | None:
    """Mask of recalled facts, ``[documents, scored]``, or None if unknown."""
    if case.text != "reference":
        return None
    return torch.tensor([document(seed, case.tokens).recalled for seed in range(case.documents)])[:, prompt:]


def press_of(name: str, schedule: Schedule, keep_ratio: float) -> Press:
    """A press with its defaults, except for ``prune_after``."""
    return PRESSES[name](keep_ratio=keep_ratio, prune_after=PRUNE_AFTER, schedule=schedule)


def effect(case: Case, name: str, schedule: Schedule, keep_ratio: float) -> Effect:
    """Effect of one press on the documents of a case."""
    model, ids = texts(case)
    prompt = usual_prompt([schedule], case.tokens)
    plain = uncompressed(case, prompt)
    pressed = perplexity(model, ids, press_of(name, schedule, keep_ratio), prompt)
    difference = pressed.nll - plain.nll
    nats = change(difference.mean(dim=1).tolist())
    ppl = Change(*(math.expm1(value) for value in (nats.mean, nats.low, nats.high)))
    facts = recalled(case, prompt)
    of_facts = None
    if facts is not None:
        known = [float(row[mask].mean()) for row, mask in zip(difference, facts, strict=True) if mask.any()]
        of_facts = change(known) if len(known) > 1 else None
    return Effect(ppl, of_facts, sum(pressed.held) / len(pressed.held), pressed.vacuous)
