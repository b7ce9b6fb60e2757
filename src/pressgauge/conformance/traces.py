"""What laws are decided by: traces of drawn cases, and what the audit says of them."""

from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

from pressgauge.conformance.audit import Audit
from pressgauge.conformance.scripted import queries_of, scripted
from pressgauge.conformance.session import Refused, Trace, not_applicable, run
from pressgauge.conformance.strategies import key_tensors
from pressgauge.conformance.subjects import Subject


def drawn(
    subject: Subject,
    data: st.DataObject,
    options: st.SearchStrategy[dict[str, Any]],
    passes: st.SearchStrategy[list[int]],
) -> Trace:
    """What the subject makes of drawn keys, fed in drawn passes, under drawn options. A case that it refuses is drawn
    again."""
    chosen = data.draw(options, label="options")
    lengths = data.draw(passes, label="passes")
    keys = data.draw(key_tensors(sum(lengths)), label="keys")
    try:
        return run_scripted(subject, keys, lengths, **chosen)
    except Refused:
        reject()


def run_scripted(subject: Subject, keys: Tensor, lengths: list[int], compressor: Any = None, **options: Any) -> Trace:
    """What the subject makes of given keys ``[B, HEADS, T, DIMENSION]``, which every layer is handed; with queries
    that belong to them if attention is what it goes by."""
    queries = queries_of(keys) if subject.declares.votes else None
    model, ids = scripted(keys, queries)
    trace = run(subject, model, ids, lengths, compressor=compressor, **options)
    trace.queries = queries
    return trace


def audited(trace: Trace) -> Audit:
    """The audit of a trace, where what is held can be compared with what came in."""
    declares = trace.subject.declares
    if not declares.matchable:
        altered = "altered" if declares.entries == "altered" else "rotated anew"
        not_applicable(f"entries are declared as {altered}, so that they cannot be told from what came in")
    return Audit(trace)


def kept(trace: Trace, layer: int = 0) -> list[list[set[int]]]:
    """Per row and KV head, the tokens that a layer holds at the end."""
    alive = audited(trace).alive[layer][-1]
    return [[set(torch.nonzero(head)[:, 0].tolist()) for head in row] for row in alive]
