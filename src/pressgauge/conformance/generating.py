"""Functions ``generate(model, input_ids, max_new_tokens=...) -> tokens``, of which only the tokens show."""

from typing import Any

import torch
from torch import Tensor

from pressgauge.conformance import architectures
from pressgauge.conformance.outcomes import DECLINES, Departure, Vacuous, not_applicable, refusals
from pressgauge.conformance.subjects import Subject

PROMPT, NEW = 48, 12
"""Tokens of a prompt and of its continuation."""


def tokens_of(
    subject: Subject, model: Any, ids: Tensor, new: int = NEW, compressor: Any = None, **options: Any
) -> Tensor:
    """Tokens ``[B, T + new]`` on the CPU that a subject generates after a prompt.

    Args:
        subject: a subject of the kind ``generate``.
        model: the model.
        ids: ``[B, T]``.
        new: number of tokens to generate.
        compressor: an existing function; created from ``options`` by default.
        options: options of the compressor.

    Raises:
        Refused: if the subject declines.
        Departure: if the result is no tensor of that shape, does not begin with the prompt, or the prompt was changed.
    """
    if not subject.adapter.opaque:
        not_applicable("it is for functions that generate")
    model = subject.model_of(model)
    if compressor is None:
        compressor = subject(**options, model=model, prompt_length=ids.shape[1])
    own = ids.clone().to(model.device)
    with torch.no_grad(), refusals(*DECLINES):
        found = compressor(model, own, max_new_tokens=new)
    if not torch.equal(own.cpu(), ids):
        raise Departure("the prompt that was passed as input_ids has been written to")
    wanted = [ids.shape[0], ids.shape[1] + new]
    if not isinstance(found, Tensor) or list(found.shape) != wanted:
        shape = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise Departure(
            f"a prompt of {list(ids.shape)} with max_new_tokens {new} gives {shape} instead of the prompt and the new "
            f"tokens, {wanted}"
        )
    found = found.cpu()
    if not torch.equal(found[:, : ids.shape[1]], ids):
        place = int(torch.nonzero((found[:, : ids.shape[1]] != ids).any(0))[0])
        raise Departure(f"the tokens do not begin with the prompt: token {place} of {ids.shape[1]} is another")
    return found


def plain_tokens(model: Any, ids: Tensor, new: int = NEW) -> Tensor:
    """Greedy tokens ``[B, T + new]`` of the model without a compressor, by full passes without a cache."""
    found = ids.to(model.device)
    with torch.no_grad():
        for _ in range(new):
            logits = model(found, use_cache=False).logits[:, -1]
            found = torch.cat([found, logits.argmax(-1, keepdim=True)], dim=1)
    return found.cpu()


def comparable(subject: Subject) -> None:
    """Skip a law that compares tokens of two runs, unless they are in float64."""
    if subject.dtype != torch.float64:
        not_applicable(f"greedy tokens of two runs in {subject.dtype} may differ by rounding")


def check_compresses(subject: Subject) -> None:
    """Check that tokens are affected at the smallest ratio.

    Raises:
        Vacuous: if several prompts are continued as by the plain model.
    """
    model = architectures.under_test("llama")
    for seed in range(4):
        ids = architectures.text(model, 1, 120, seed=seed)
        if not torch.equal(
            tokens_of(subject, model, ids, 24, keep_ratio=0.05, prune_after=4), plain_tokens(model, ids, 24)
        ):
            return
    raise Vacuous(
        "nothing is compressed: with keep_ratio 0.05 and prune_after 4, four prompts of 120 tokens are continued by "
        "24 tokens as without a compressor"
    )


def difference(found: Tensor, expected: Tensor, prompt: int) -> str:
    """The first new token that differs, in words; empty if none does."""
    if torch.equal(found, expected):
        return ""
    row, place = torch.nonzero(found != expected)[0].tolist()
    return f"new token {place - prompt} of row {row} is {int(found[row, place])} instead of {int(expected[row, place])}"
