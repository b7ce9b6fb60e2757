"""Which entries stay, and that they are the ones that came in, in the order in which they came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pressgauge.conformance.audit import GONE, Audit
from pressgauge.conformance.checks import TELLING_APART, check_counts
from pressgauge.conformance.oracle import NEVER, Attention
from pressgauge.conformance.session import Departure, Trace, not_applicable
from pressgauge.conformance.strategies import (
    DIMENSION,
    FEW,
    HEADS,
    key_tensors,
    normal_keys,
    options_of,
    pruning,
    ratios,
)
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited, drawn, kept, run_scripted


@FEW
@given(data=st.data())
def test_entries_are_those_that_came_in(subject: Subject, data: st.DataObject) -> None:
    """Rule 5: every key that is held is one that came in, with the value that came with it (C1 of the bug catalogue),
    and none is held twice."""
    assert audited(drawn(subject, data, options_of(subject), pruning())).alive


@FEW
@given(data=st.data())
def test_what_is_read_is_in_the_order_of_positions(subject: Subject, data: st.DataObject) -> None:
    """Rule 5: whatever anyone reads from a cache is in the order of the text (C2 of the bug catalogue)."""
    if subject.declares.order == "any":
        not_applicable("the subject declares that its order is any")
    audit = audited(drawn(subject, data, options_of(subject), pruning()))
    for number, layers in enumerate(audit.held):
        for layer, held in enumerate(layers):
            if held.ambiguous:
                continue
            for row, heads in enumerate(held.positions.tolist()):
                for head, positions in enumerate(heads):
                    real = [position for position in positions if position != GONE]
                    if real != sorted(real):
                        raise Departure(
                            f"layer {layer}, row {row}, KV head {head} holds tokens {_few(real)} in this order after "
                            f"pass {number}"
                        )


def _few(items: list[int]) -> str:
    shown = ", ".join(map(str, items[:8]))
    return f"{shown}, ..." if len(items) > 8 else shown


@FEW
@given(data=st.data())
def test_an_evicted_entry_never_comes_back(subject: Subject, data: st.DataObject) -> None:
    """Appending tokens never revives an evicted one: what a layer holds, it held before or has just been handed."""
    assert audited(drawn(subject, data, options_of(subject), pruning())).evicted_at


def check_best(audit: Audit) -> None:
    """In every pass the entries of highest score stayed, as far as scores can be told apart."""
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
    """For one pass after the other: from what is there in each KV head, and the pass's first token and end, to the
    scores of a head's."""
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
    stays, goes = [t for t in free if t in now], [t for t in free if t not in now]
    if not stays or not goes:
        return
    # Most often all is well, and two numbers tell.
    if max(scores[t] for t in goes) < min(scores[t] for t in stays) and sum(scores.values()) == sum(scores.values()):
        return
    for worst in stays:
        for best in goes:
            low, high = scores[worst], scores[best]
            if subject.declares.nan == "any" and (low != low or high != high):
                continue
            if low == high or (low != low and high != high):
                wrong = best < worst and subject.declares.ties == "earlier"
                rule = "of equal scores the earlier token is retained"
            else:
                told_apart = subject.declares.exact or high - low > TELLING_APART * max(abs(high), abs(low))
                # NaN is below every number.
                wrong = (high > low and told_apart) or (high == high and low != low)
                rule = "NaN ranks below every number" if low != low else "the higher score is retained"
            if wrong:
                raise Departure(
                    f"{where} evicted token {best} in pass {number} and retained token {worst}; their scores are "
                    f"{high:.6g} and {low:.6g}, and {rule}"
                )


@FEW
@given(data=st.data())
def test_the_best_entries_stay(subject: Subject, data: st.DataObject) -> None:
    """Rule 4: the entries of highest score stay; of equal ones the earlier (S3, S8 of the bug catalogue)."""
    if not subject.declares.scored:
        not_applicable("the subject does not declare its score")
    check_best(audited(drawn(subject, data, options_of(subject), pruning())))


def test_the_best_entries_of_a_long_text_stay(subject: Subject) -> None:
    """Rule 4 where a text is longer than the blocks in which keys may be scored."""
    if not subject.declares.scored:
        not_applicable("the subject does not declare its score")
    # Attention is dear in lists.
    length = 120 if subject.declares.votes else 300
    keys = normal_keys(length)
    for lengths in ([*subject.once(length - 4), *[1] * 4], [200 * length // 300, 100 * length // 300]):
        check_best(audited(run_scripted(subject, keys, lengths, keep_ratio=0.5, prune_after=4)))


def test_of_equal_entries_the_earlier_stay(subject: Subject) -> None:
    """Rule 4: equal scores keep the earlier token. All keys of a head are alike here; values tell them apart."""
    if subject.declares.ties == "any":
        not_applicable("the subject declares that ties may go either way")
    if subject.declares.score is None or subject.declares.exact:
        not_applicable("equal keys need not have equal scores, since the subject's score is not one of keys alone")
    keys = torch.ones(1, HEADS, 20, DIMENSION, dtype=torch.float64)
    for lengths in ([20], [14] + [1] * 6):
        check_best(audited(run_scripted(subject, keys, lengths, keep_ratio=0.4, prune_after=4)))


def check_protected(trace: Trace, sinks: int, recent: int) -> None:
    """The first ``sinks`` and, at every moment, the last ``recent`` tokens are there."""
    audit = audited(trace)
    for layer, states in enumerate(audit.alive):
        for number, one in enumerate(trace.passes):
            wanted = [*range(min(sinks, one.end)), *range(max(0, one.end - recent), one.end)]
            missing = [t for t in wanted if not states[number][:, :, t].all()]
            if missing:
                which = "first" if missing[0] < sinks else "last"
                size = sinks if missing[0] < sinks else recent
                raise Departure(
                    f"layer {layer} evicted token {missing[0]} in pass {number} ({one.end} tokens seen), one of the "
                    f"{which} {size}, which are protected"
                )


def test_sinks_and_recent_tokens_are_never_evicted(subject: Subject) -> None:
    """Rule 4: the first and the last tokens stay even if their keys are the worst of all (S6, S7, S11 of the bug
    catalogue), and a window of none protects nothing."""
    declares = subject.declares
    windows = [(declares.sinks, declares.recent)]
    if "sinks" in declares.takes:
        windows += [(3, declares.recent)]
    if {"sinks", "recent"} <= set(declares.takes):
        windows += [(2, 4), (0, declares.recent)]
    if "recent" in declares.takes:
        windows += [(declares.sinks, 5)]
    if not any(map(sum, windows)):
        not_applicable("the subject protects nothing, and takes neither sinks nor recent")
    for sinks, recent in windows:
        given: dict[str, Any] = {
            name: size for name, size in (("sinks", sinks), ("recent", recent)) if name in declares.takes
        }
        for protected_score in (1e3, 0.0):
            # Long keys are the worst for norms, and keys that all are alike for what looks for differences.
            keys = normal_keys(16)
            keys[:, :, :sinks] = protected_score
            keys[:, :, 8 - recent : 8] = protected_score
            keys[:, :, 16 - recent :] = protected_score
            for lengths in ([16], [8, 1, 1, 1, 1, 4]):
                trace = run_scripted(subject, keys, lengths, keep_ratio=0.2, prune_after=3, **given)
                check_protected(trace, sinks, recent)
                check_counts(subject, trace)


@FEW
@given(data=st.data(), length=st.integers(4, 24))
def test_what_a_smaller_ratio_keeps_a_larger_one_keeps_too(subject: Subject, data: st.DataObject, length: int) -> None:
    """Nested: with r1 < r2, both pruned once, what r1 keeps is among what r2 keeps."""
    if subject.declares.target:
        not_applicable("the subject follows a rule of its own")
    keys = data.draw(key_tensors(length))
    # A pair on both sides of one half, and a pair that is drawn.
    for low, high in ((0.3, 0.8), sorted([data.draw(ratios()), data.draw(ratios())])):
        check_nested(subject, keys, low, high)


def check_nested(subject: Subject, keys: Tensor, low: float, high: float) -> None:
    """What is retained of keys ``[B, K, T, D]`` at the lower ratio is retained at the higher one."""
    length = keys.shape[2]
    passes = subject.once(length)
    few, many = (kept(run_scripted(subject, keys, passes, keep_ratio=r, prune_after=2)) for r in (low, high))
    for row, (some, more) in enumerate(zip(few, many, strict=True)):
        for head, (small, large) in enumerate(zip(some, more, strict=True)):
            if not small <= large:
                raise Departure(
                    f"of {length} tokens, row {row}, KV head {head} retains token {min(small - large)} with "
                    f"keep_ratio {low} and not with {high}"
                )


def test_permuting_heads_permutes_the_result(subject: Subject) -> None:
    """Heads decide for themselves and alike: with the keys of the heads exchanged, so is what they keep (S8)."""
    if subject.declares.exact and subject.declares.score is not None and subject.declares.sinks == 0:
        not_applicable("the subject's score looks at the index of the head")
    keys = normal_keys(20)
    for lengths in ([20], [14] + [1] * 6):
        one, other = (
            kept(run_scripted(subject, k, lengths, keep_ratio=0.4, prune_after=4))[0] for k in (keys, keys.flip(1))
        )
        if one != other[::-1]:
            raise Departure(
                f"KV head 0 retains tokens {_few(sorted(one[0]))}, and KV head 1 with the same keys retains "
                f"{_few(sorted(other[1]))}"
            )


def test_scaling_a_head_by_a_power_of_two_changes_nothing(subject: Subject) -> None:
    """For scores that are norms or directions of keys: in which units a head measures does not matter."""
    if subject.declares.score is None or subject.declares.exact:
        not_applicable("the subject does not declare a score of keys alone")
    if subject.declares.held == "per-head":
        not_applicable("the heads of a layer are declared to compete for what it holds")
    keys = normal_keys(20)
    for lengths in ([20], [14] + [1] * 6):
        one = kept(run_scripted(subject, keys, lengths, keep_ratio=0.4, prune_after=4))[0]
        for exponent in (-12, 9):
            scaled = keys.clone()
            scaled[:, 1] *= 2.0**exponent
            other = kept(run_scripted(subject, scaled, lengths, keep_ratio=0.4, prune_after=4))[0]
            if one != other:
                raise Departure(
                    f"KV head 1 retains tokens {_few(sorted(one[1]))}, and {_few(sorted(other[1]))} with its keys "
                    f"times 2**{exponent}"
                )


EXTREMES = ["zeros", "huge", "tiny", "alike", "NaN"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_extreme_keys_are_keys(subject: Subject, dtype: torch.dtype) -> None:
    """Zeros, 6e4 in float16, the smallest numbers, ties everywhere, NaN: counts, order and alignment are as ever, and
    the best stay (S12 of the bug catalogue)."""
    findings: dict[str, str] = {}
    for kind in EXTREMES:
        for lengths in ([16], [8, 1, 1, 1, 5]):
            try:
                _check_extreme(
                    run_scripted(subject, extreme_keys(kind, 16, dtype), lengths, keep_ratio=0.6, prune_after=4)
                )
            except Departure as finding:
                findings.setdefault(kind, str(finding))
    if findings:
        raise Departure(f"with keys of kind {', '.join(findings)}: {next(iter(findings.values()))}")


def extreme_keys(kind: str, length: int, dtype: torch.dtype) -> Tensor:
    """Keys ``[1, HEADS, length, DIMENSION]`` of one of the kinds in EXTREMES."""
    keys = normal_keys(length, dtype=dtype)
    if kind == "zeros":
        return torch.zeros_like(keys)
    if kind == "huge":
        sizes = torch.linspace(4e4, 6.4e4, length, dtype=torch.float64)[torch.arange(length) * 7 % length]
        return (sizes[:, None] * torch.ones(DIMENSION).double()).expand(1, HEADS, length, DIMENSION).to(dtype)
    if kind == "tiny":
        return keys * 2.0**-8
    if kind == "NaN":
        # A key with a NaN has the score NaN, which is below all others.
        keys[:, :, 2:length:3, 1] = torch.nan
        return keys
    return torch.ones_like(keys)


def _check_extreme(trace: Trace) -> None:
    declares = trace.subject.declares
    check_counts(trace.subject, trace)
    audit = audited(trace)
    assert audit.evicted_at
    check_protected(trace, declares.sinks, declares.recent)
    if declares.scored:
        check_best(audit)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_and_device_are_kept(subject: Subject, dtype: torch.dtype) -> None:
    """What is held has the dtype of what came in, and the device, which the session looks at before it copies."""
    trace = run_scripted(subject, normal_keys(16, dtype=dtype), [12] + [1] * 4, keep_ratio=0.4, prune_after=4)
    for one in trace.passes:
        for layer, held in enumerate(one.held):
            for name, mine, own in zip(("keys", "values"), held, one.arrived[layer], strict=True):
                if mine.dtype != own.dtype:
                    raise Departure(f"layer {layer} was passed {name} in {own.dtype} and holds them in {mine.dtype}")


def test_later_keys_change_no_earlier_decision(subject: Subject) -> None:
    """Causality: whatever comes after token t, what passes that ended at or before t decided stands. A later text may
    know of an earlier one what it should not, so that two texts go through that differ from t on."""
    for seed, (split, keep_ratio, prune_after) in enumerate([(5, 0.5, 2), (8, 0.3, 3), (10, 0.7, 0), (11, 0.5, 8)]):
        keys = normal_keys(14, seed=seed)
        other = keys.clone()
        other[:, :, split:] = normal_keys(14, seed=seed + 100)[:, :, split:]
        lengths = [split] + [1] * (14 - split)
        tables = [
            audited(run_scripted(subject, k, lengths, keep_ratio=keep_ratio, prune_after=prune_after)).evicted_at[0]
            for k in (keys, other)
        ]
        one, two = (table[:, :, :split].masked_fill(table[:, :, :split] > split, NEVER) for table in tables)
        if not torch.equal(one, two):
            row, head, token = torch.nonzero(one != two)[0].tolist()
            raise Departure(
                f"the eviction of token {token} from row {row}, KV head {head} within the first {split} tokens depends "
                "on later tokens"
            )
