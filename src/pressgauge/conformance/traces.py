"""Traces of drawn cases and their audits, on which laws decide."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor
from transformers import Cache, DynamicCache

from pressgauge.conformance.audit import Audit
from pressgauge.conformance.nearest import QuantisedAudit
from pressgauge.conformance.outcomes import Refused, not_applicable
from pressgauge.conformance.precision import rounding
from pressgauge.conformance.scripted import queries_of, scripted
from pressgauge.conformance.session import Trace, run
from pressgauge.conformance.strategies import WIDE, key_tensors, normal_entries, normal_keys
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import using


def drawn(
    subject: Subject,
    data: st.DataObject,
    options: st.SearchStrategy[dict[str, Any]],
    passes: st.SearchStrategy[list[int]],
) -> Trace:
    """Trace of a subject on drawn keys and passes, under drawn options.

    A case that the subject refuses is drawn again.
    """
    chosen = data.draw(options, label="options")
    lengths = data.draw(passes, label="passes")
    keys = data.draw(key_tensors(sum(lengths)), label="keys")
    if subject.declares.quantised:
        # Quantised entries are told apart by their distances, so that all have to be different.
        keys = normal_keys(sum(lengths), seed=data.draw(st.integers(0, 2**16), label="seed"))
    try:
        return run_scripted(subject, keys, lengths, **chosen)
    except Refused:
        reject()


def run_scripted(subject: Subject, keys: Tensor, lengths: list[int], compressor: Any = None, **options: Any) -> Trace:
    """Trace of a subject on given keys ``[B, HEADS, T, DIMENSION]``, the same in every layer, or of each layer.

    For a subject that scores by attention, queries are derived from the keys. For a quantised cache, keys are repeated
    to a usual head dimension, and values are normally distributed.
    """
    queries, values = None, None
    if subject.declares.quantised:
        keys = keys.repeat(*[1] * (keys.dim() - 1), WIDE // keys.shape[-1])
        rows, heads, length, _ = keys.shape[-4:]
        values = normal_entries(rows, heads, length, seed=length, dtype=keys.dtype)[1]
    if subject.declares.votes:
        queries = torch.stack([queries_of(own) for own in keys]) if keys.dim() == 5 else queries_of(keys)
    model, ids = scripted(keys, queries, values)
    trace = run(subject, model, ids, lengths, compressor=compressor, **options)
    trace.queries = queries
    return trace


@torch.no_grad()
def uncompressed(
    model: Any, ids: Tensor, lengths: Sequence[int], stored: torch.dtype | None = None
) -> tuple[Tensor, Cache]:
    """Logits ``[B, T, V]`` on the CPU, and the cache, of a text fed in passes without a compressor.

    Args:
        model: the model.
        ids: ``[B, T]``.
        lengths: lengths of the passes, which sum to T.
        stored: dtype in which the cache stores entries; that of the model by default.
    """
    cache = rounding(DynamicCache(config=model.config), stored)
    passes = ids.to(model.device).split(list(lengths), dim=1)
    return torch.cat([model(one, **using(cache)).logits.cpu() for one in passes], dim=1), cache


def audited(trace: Trace) -> Audit:
    """Audit of a trace; the law is not applicable if stored entries cannot be matched."""
    declares = trace.subject.declares
    if not declares.matchable:
        altered = "altered" if declares.entries == "altered" else "rotated anew"
        not_applicable(f"entries are declared as {altered}, so that they cannot be told from what came in")
    if trace.audit is None:
        trace.audit = QuantisedAudit(trace) if declares.quantised else Audit(trace)
    return trace.audit  # type: ignore[no-any-return]


def kept(trace: Trace, layer: int = 0) -> list[list[set[int]]]:
    """Tokens that a layer retains at the end, per row and KV head."""
    alive = audited(trace).alive[layer][-1]
    return [[set(torch.nonzero(head)[:, 0].tolist()) for head in row] for row in alive]
