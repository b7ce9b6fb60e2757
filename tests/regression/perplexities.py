"""Perplexity by the one pass: every press, schedule and ratio, on documents of 1,024 tokens."""

import hashlib
from collections.abc import Container, Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge import Perplexity, perplexity
from pressgauge.history import count_evictions
from pressgauge.presses import PRESSES
from regression.baseline import Row
from regression.cases import presses

TOKENS = 1024
EXACT = 1e-9
"""Relative tolerance in float64: sums are taken in other orders elsewhere, and that is all."""


def digest(tables: Iterable[Tensor]) -> str:
    """Of integers, the same on every machine."""
    state = hashlib.sha256()
    for table in tables:
        state.update(repr(list(table.shape)).encode())
        state.update(table.cpu().long().contiguous().numpy().astype("<i8").tobytes())
    return state.hexdigest()[:16]


def row(result: Perplexity, exact: bool) -> Row:
    """What is recorded of a result. Which entries were evicted is the same everywhere in float64 only.

    In float64 the row has a digest of ``evicted_at``, and how many entries went in each layer, so that a digest that
    changed can be read.
    """
    found: dict[str, float | int | str] = {
        "nll": float(result.nll[result.scored].mean()),
        "hits": int(result.hits.sum()),
        "affected": result.affected_tokens,
        "held": " ".join(map(str, result.held)),
        "evictions": " ".join(str(count_evictions([table])) for table in result.evicted_at) or "0",
    }
    return found | {"evicted_at": digest(result.evicted_at)} if exact else found


def perplexities(
    model: PreTrainedModel, ids: Tensor, kinds: Container[str] = PRESSES, wanted: Container[str] | None = None
) -> dict[str, Row]:
    """A row for each press of these kinds, and one for none; or those of them that are wanted."""
    exact = model.dtype == torch.float64
    cases = [("uncompressed r=1", None, 1), *presses(ids.shape[1], ids.shape[1] * 3 // 4, kinds)]
    return {
        name: row(perplexity(model, ids, press, prompt), exact)
        for name, press, prompt in cases
        if wanted is None or name in wanted
    }
