"""Perplexity in one pass: every press, schedule and ratio, on documents of 1,024 tokens."""

import hashlib
from collections.abc import Container, Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge import Perplexity, perplexity
from pressgauge.history import count_evictions
from pressgauge.presses import PRESSES
from pressgauge.rules import usual_prompt
from regression.baseline import Row
from regression.cases import presses

TOKENS = 1024
EXACT = 1e-9
"""Relative tolerance in float64, for another order of summation."""


def digest(tables: Iterable[Tensor]) -> str:
    """Digest of integers, the same on every machine."""
    state = hashlib.sha256()
    for table in tables:
        state.update(repr(list(table.shape)).encode())
        state.update(table.cpu().long().contiguous().numpy().astype("<i8").tobytes())
    return state.hexdigest()[:16]


def row(result: Perplexity, exact: bool) -> Row:
    """Recorded fields of a result.

    Evictions are the same on every machine only in float64. A float64 row therefore has a digest of ``evicted_at``, and
    the number of evictions per layer to explain a changed digest.
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
    """A row per press of these classes, and one without a press; or the requested rows."""
    exact = model.dtype == torch.float64
    cases = [("uncompressed r=1", None, 1), *presses(ids.shape[1], usual_prompt(["prefill"], ids.shape[1]), kinds)]
    return {
        name: row(perplexity(model, ids, press, prompt), exact)
        for name, press, prompt in cases
        if wanted is None or name in wanted
    }
