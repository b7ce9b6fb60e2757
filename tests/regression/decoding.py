"""Decoding with a cache: the NLL of a plain loop, and the entries read from the cache, in their order."""

from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pressgauge import Press, PressedCache
from pressgauge.conformance.scripted import queries_of, scripted
from pressgauge.conformance.strategies import DIMENSION, HEADS
from pressgauge.conformance.versions import using
from pressgauge.presses import PRESSES
from regression.baseline import Row
from regression.cases import SCHEDULES
from regression.perplexities import digest

PROMPT = 48
"""Tokens of the prompt, and of the tokens fed singly afterwards."""
SHORT, LATER = 120, 40
"""Prompt and later tokens of the texts for entries; long enough that slots of evicted entries are reused."""


def cases(prune_after: int) -> Iterator[tuple[str, Press]]:
    """Every press under every schedule, with and without protected tokens."""
    for name, kind in PRESSES.items():
        for schedule in SCHEDULES:
            yield f"{name} {schedule}", kind(keep_ratio=0.7, prune_after=prune_after, schedule=schedule)
            protected = kind(keep_ratio=0.7, prune_after=prune_after, schedule=schedule, sinks=2, recent=3)
            yield f"{name} {schedule} sinks=2 recent=3", protected


def begun(press: Press, model: PreTrainedModel) -> tuple[Any, AbstractContextManager[None]]:
    """Context manager of a plain cache; for a press that needs queries, with the press attached."""
    if press.needs_queries:
        return PressedCache(press, model.config), press(model)
    return press.cache(model.config), nullcontext()


@torch.no_grad()
def decode(model: PreTrainedModel, ids: Tensor, press: Press) -> Row:
    """Feed a prompt and single tokens with only tokens and the cache as arguments, so the cache provides positions."""
    cache, attachment = begun(press, model)
    with attachment:
        logits = [model(ids[:, :PROMPT], **using(cache)).logits[:, -1]]
        for token in range(PROMPT, ids.shape[1] - 1):
            logits.append(model(ids[:, token : token + 1], **using(cache)).logits[:, -1])
    nll = cross_entropy(torch.cat(logits).double(), ids[0, PROMPT:])
    found: dict[str, float | int | str] = {"nll": float(nll), "held": " ".join(map(str, cache.held))}
    return found | {"evicted_at": digest(cache.evicted_at)} if model.dtype == torch.float64 else found


def decoding(model: PreTrainedModel, ids: Tensor, wanted: Container[str] | None = None) -> dict[str, Row]:
    """A row per case, or for the requested ones, on the first ``2 * PROMPT`` tokens of a document."""
    return {
        name: decode(model, ids[:1, : 2 * PROMPT], press)
        for name, press in cases(32)
        if wanted is None or name in wanted
    }


def runs(tokens: Sequence[int]) -> str:
    """Numbers in order, with ascending runs as ranges: ``0-3 9 7 11-12``.

    >>> runs([0, 1, 2, 3, 9, 7, 11, 12])
    '0-3 9 7 11-12'
    """
    found: list[list[int]] = []
    for token in tokens:
        if found and token == found[-1][-1] + 1:
            found[-1][1:] = [token]
        else:
            found.append([token])
    return " ".join("-".join(map(str, run)) for run in found)


@torch.no_grad()
def read(press: Press, dtype: torch.dtype) -> Row:
    """Tokens held at the end by the first head of the first layer, in the order of its values; a digest of those of all
    layers and heads after every pass; and a digest of their positions."""
    # Integers, so that norms are the same on every machine.
    generator = torch.Generator().manual_seed(5)
    keys = torch.randint(-4, 5, (1, HEADS, SHORT + LATER, DIMENSION), generator=generator).to(dtype)
    model, ids = scripted(keys, queries_of(keys) if press.needs_queries else None)
    cache, attachment = begun(press, model)
    held, positions = [], []
    with attachment:
        for start, stop in [(0, SHORT), *((token, token + 1) for token in range(SHORT, SHORT + LATER))]:
            model(ids[:, start:stop].to(model.device), **using(cache))
            # The first number of a value is 1 plus its token.
            held += [layer.values[..., 0].long() - 1 for layer in cache.layers]
            positions += [layer.positions for layer in cache.layers]
    return {
        "tokens": runs(held[-len(cache.layers)][0, 0].tolist()),
        "order": digest(held),
        "positions": digest(positions),
    }


def entries(dtype: torch.dtype, wanted: Container[str] | None = None) -> dict[str, Row]:
    """A row per case, or for the requested ones."""
    return {name: read(press, dtype) for name, press in cases(64) if wanted is None or name in wanted}
