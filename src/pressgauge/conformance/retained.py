"""Checks of which entries a trace retains, and in which order."""

from collections.abc import Callable

import torch

from pressgauge.conformance.audit import GONE, Audit
from pressgauge.conformance.checks import TELLING_APART
from pressgauge.conformance.oracle import Attention
from pressgauge.conformance.outcomes import Departure
from pressgauge.conformance.session import Trace
from pressgauge.conformance.subjects import Subject


def check_order(audit: Audit) -> None:
    """Check that entries read from the cache are in the order of positions.

    Raises:
        Departure: if they are not.
    """
    for number, layers in enumerate(audit.held):
        for layer, held in enumerate(layers):
            if held.ambiguous:
                continue
            for row, heads in enumerate(held.positions.tolist()):
                for head, positions in enumerate(heads):
                    real = [position for position in positions if position != GONE]
                    if real != sorted(real):
                        raise Departure(
                            f"layer {layer}, row {row}, KV head {head} holds tokens {first_of(real)} in this order "
                            f"after pass {number}"
                        )


def first_of(items: list[int]) -> str:
    """The first of some numbers, for findings."""
    shown = ", ".join(map(str, items[:8]))
    return f"{shown}, ..." if len(items) > 8 else shown


def check_best(audit: Audit) -> None:
    """Check that every pass retained the entries of highest score, except for indistinguishable scores.

    Raises:
        Departure: if a lower score was retained.
    """
    trace, subject = audit.trace, audit.trace.subject
    for layer in range(trace.layers):
        rules = subject.rules(trace.options, layer)
        for row in range(trace.ids.shape[0]):
            scores = _scores(trace, layer, row)
            before: list[set[int]] = [set() for _ in range(audit.alive[layer][0].shape[1])]
            for number, one in enumerate(trace.passes):
                present = [sorted(held | set(range(one.start, one.end))) for held in before]
                before = [set(torch.nonzero(head)[:, 0].tolist()) for head in audit.alive[layer][number][row]]
                scores_of = scores(present, one.start, one.end)
                for head, (were, now) in enumerate(zip(present, before, strict=True)):
                    if now != set(were):
                        newest = one.end - rules.newest(len(now))
                        free = [t for t in were if rules.sinks <= t < newest]
                        where = f"layer {layer}, row {row}, KV head {head}"
                        _check_pair(subject, scores_of(head), now, free, where, number)


def _scores(
    trace: Trace, layer: int, row: int
) -> Callable[[list[list[int]], int, int], Callable[[int], dict[int, float]]]:
    """Function that scores one pass after the other.

    It takes the tokens present in each KV head, the first token of the pass and its end, and returns a function from a
    head to the scores of its tokens.
    """
    declares = trace.subject.declares
    keys = trace.arrived(layer)[0][row].double().tolist()
    if declares.votes:
        assert trace.queries is not None
        queries = trace.queries[row].double().tolist()
        attention = Attention(keys, queries, trace.queries.shape[3] ** -0.5)
        voter = declares.votes(attention, trace.subject.rules(trace.options, layer).recent)
        return lambda present, start, end: voter.feed(present, start, end).__getitem__
    assert declares.score is not None
    of_head = [declares.score(vectors, layer, head) for head, vectors in enumerate(keys)]
    return lambda present, start, end: lambda head: dict(zip(present[head], of_head[head](present[head]), strict=True))


def _check_pair(
    subject: Subject, scores: dict[int, float], now: set[int], free: list[int], where: str, number: int
) -> None:
    retained, evicted = [t for t in free if t in now], [t for t in free if t not in now]
    if not retained or not evicted:
        return
    # Fast path for the usual case.
    if max(scores[t] for t in evicted) < min(scores[t] for t in retained) and sum(scores.values()) == sum(
        scores.values()
    ):
        return
    for worst in retained:
        for best in evicted:
            low, high = scores[worst], scores[best]
            if subject.declares.nan == "any" and (low != low or high != high):
                continue
            if low == high or (low != low and high != high):
                wrong = best < worst and subject.declares.ties == "earlier"
                rule = "of equal scores the earlier token is retained"
            else:
                apart = max(TELLING_APART, 2 * torch.finfo(subject.dtype).eps) * max(abs(high), abs(low))
                told_apart = subject.declares.exact or high - low > apart
                # NaN is below every number.
                wrong = (high > low and told_apart) or (high == high and low != low)
                rule = "NaN ranks below every number" if low != low else "the higher score is retained"
            if wrong:
                raise Departure(
                    f"{where} evicted token {best} in pass {number} and retained token {worst}; their scores are "
                    f"{high:.6g} and {low:.6g}, and {rule}"
                )
