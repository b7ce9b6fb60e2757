"""Laws about which entries are retained, their content and their order."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pressgauge.conformance.checks import check_counts
from pressgauge.conformance.oracle import NEVER
from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.quantised_inputs import check_scaled_head
from pressgauge.conformance.retained import check_best, check_order, first_of
from pressgauge.conformance.session import Trace
from pressgauge.conformance.strategies import (
    DIMENSION,
    HEADS,
    few,
    key_tensors,
    normal_keys,
    options_of,
    pruning,
    ratios,
)
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited, drawn, kept, run_scripted


@few
@given(data=st.data())
def test_retained_entries_are_those_passed_in(subject: Subject, data: st.DataObject) -> None:
    """Rule 5: every held entry is a key that was passed in, with its own value, and none is held twice (C1 of the bug
    catalogue)."""
    assert audited(drawn(subject, data, options_of(subject), pruning())).alive


@few
@given(data=st.data())
def test_entries_are_in_the_order_of_positions(subject: Subject, data: st.DataObject) -> None:
    """Rule 5: entries read from a cache are in the order of positions (C2 of the bug catalogue)."""
    if subject.declares.order == "any":
        not_applicable("the subject declares that its order is any")
    check_order(audited(drawn(subject, data, options_of(subject), pruning())))


@few
@given(data=st.data())
def test_an_evicted_entry_never_returns(subject: Subject, data: st.DataObject) -> None:
    """An entry held after a pass was held before it or is new in it."""
    assert audited(drawn(subject, data, options_of(subject), pruning())).evicted_at


@few
@given(data=st.data())
def test_the_best_entries_are_retained(subject: Subject, data: st.DataObject) -> None:
    """Rule 4: the entries of highest score are retained; of equal ones, the earlier (S3, S8 of the bug catalogue)."""
    if not subject.declares.scored:
        not_applicable("the subject does not declare its score")
    check_best(audited(drawn(subject, data, options_of(subject), pruning())))


def test_the_best_entries_of_a_long_text_are_retained(subject: Subject) -> None:
    """Rule 4 for texts longer than the blocks in which keys may be scored."""
    if not subject.declares.scored:
        not_applicable("the subject does not declare its score")
    # The oracle of attention is slow, since it computes in lists.
    length = 120 if subject.declares.votes else 300
    keys = normal_keys(length)
    for lengths in ([*subject.once(length - 4), *[1] * 4], [200 * length // 300, 100 * length // 300]):
        check_best(audited(run_scripted(subject, keys, lengths, keep_ratio=0.5, prune_after=4)))


def test_of_equal_entries_the_earlier_is_retained(subject: Subject) -> None:
    """Rule 4: of entries with equal scores, the earlier is retained."""
    # All keys of a head are equal; values identify the tokens.
    if subject.declares.ties == "any":
        not_applicable("the subject declares that ties may go either way")
    if subject.declares.score is None or subject.declares.exact:
        not_applicable("equal keys need not have equal scores, since the subject's score is not one of keys alone")
    keys = torch.ones(1, HEADS, 20, DIMENSION, dtype=torch.float64)
    for lengths in ([20], [14] + [1] * 6):
        check_best(audited(run_scripted(subject, keys, lengths, keep_ratio=0.4, prune_after=4)))


def check_protected(trace: Trace, sinks: int, recent: int) -> None:
    """Check that the first ``sinks`` and, after every pass, the last ``recent`` tokens are retained.

    Raises:
        Departure: if one is evicted.
    """
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
    """Rule 4: the first ``sinks`` and the last ``recent`` tokens are retained even if their scores are the lowest, and
    a window of 0 protects nothing (S6, S7, S11 of the bug catalogue)."""
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
            # Long keys score lowest by norm, and equal keys by difference.
            keys = normal_keys(16)
            keys[:, :, :sinks] = protected_score
            keys[:, :, 8 - recent : 8] = protected_score
            keys[:, :, 16 - recent :] = protected_score
            for lengths in ([16], [8, 1, 1, 1, 1, 4]):
                trace = run_scripted(subject, keys, lengths, keep_ratio=0.2, prune_after=3, **given)
                check_protected(trace, sinks, recent)
                check_counts(subject, trace)


@few
@given(data=st.data(), length=st.integers(4, 24))
def test_a_larger_ratio_retains_a_superset(subject: Subject, data: st.DataObject, length: int) -> None:
    """Entries retained at a lower keep ratio are retained at a higher one, for a single eviction."""
    if subject.declares.target and not subject.declares.quantised:
        not_applicable("the subject follows a rule of its own")
    keys = data.draw(key_tensors(length))
    # A pair on both sides of one half, and a pair that is drawn.
    for low, high in ((0.3, 0.8), sorted([data.draw(ratios()), data.draw(ratios())])):
        check_nested(subject, keys, low, high)


def check_nested(subject: Subject, keys: Tensor, low: float, high: float) -> None:
    """Check that entries of keys ``[B, K, T, D]`` retained at the lower ratio are retained at the higher one.

    Raises:
        Departure: if one is not.
    """
    length = keys.shape[2]
    passes = subject.once(length)
    fewer, many = (kept(run_scripted(subject, keys, passes, keep_ratio=r, prune_after=2)) for r in (low, high))
    for row, (some, more) in enumerate(zip(fewer, many, strict=True)):
        for head, (small, large) in enumerate(zip(some, more, strict=True)):
            if not small <= large:
                raise Departure(
                    f"of {length} tokens, row {row}, KV head {head} retains token {min(small - large)} with "
                    f"keep_ratio {low} and not with {high}"
                )


def test_permuting_heads_permutes_the_result(subject: Subject) -> None:
    """KV heads are independent and equivalent: exchanging their keys exchanges their retained tokens (S8)."""
    if subject.declares.exact and subject.declares.score is not None and subject.declares.sinks == 0:
        not_applicable("the subject's score looks at the index of the head")
    keys = normal_keys(20)
    for lengths in ([20], [14] + [1] * 6):
        one, other = (
            kept(run_scripted(subject, k, lengths, keep_ratio=0.4, prune_after=4))[0] for k in (keys, keys.flip(1))
        )
        if one != other[::-1]:
            raise Departure(
                f"KV head 0 retains tokens {first_of(sorted(one[0]))}, and KV head 1 with the same keys retains "
                f"{first_of(sorted(other[1]))}"
            )


def test_scaling_a_head_by_a_power_of_two_changes_nothing(subject: Subject) -> None:
    """Scores by norms or directions of keys do not depend on the scale of a head, nor do codes of a quantised cache."""
    if subject.declares.quantised:
        check_scaled_head(subject)
    if subject.declares.quantised and not subject.declares.scored:
        return
    if subject.declares.score is None or subject.declares.exact:
        not_applicable("the subject does not declare a score of keys alone")
    if subject.declares.held == "per-head":
        not_applicable("the heads of a layer are declared to compete for what it holds")
    keys = normal_keys(20)
    for lengths in ([20], [14] + [1] * 6):
        one = kept(run_scripted(subject, keys, lengths, keep_ratio=0.4, prune_after=4))[0]
        # In float16, keys are exact to 2**-14.
        for exponent in (-12, 9) if subject.dtype != torch.float16 else (-2, 3):
            scaled = keys.clone()
            scaled[:, 1] *= 2.0**exponent
            other = kept(run_scripted(subject, scaled, lengths, keep_ratio=0.4, prune_after=4))[0]
            if one != other:
                raise Departure(
                    f"KV head 1 retains tokens {first_of(sorted(one[1]))}, and {first_of(sorted(other[1]))} with its "
                    f"keys times 2**{exponent}"
                )


EXTREMES = ["zeros", "huge", "tiny", "alike", "NaN"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_rules_hold_for_extreme_keys(subject: Subject, dtype: torch.dtype) -> None:
    """Counts, order, alignment and ranking follow the rules for keys of zero, of 6e4, tiny, equal or NaN (S12 of the
    bug catalogue)."""
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
        # A key with a NaN scores NaN, which ranks below all others.
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
def test_dtype_and_device_are_preserved(subject: Subject, dtype: torch.dtype) -> None:
    """Held entries have the dtype and the device of those passed in (the session checks the device)."""
    trace = run_scripted(subject, normal_keys(16, dtype=dtype), [12] + [1] * 4, keep_ratio=0.4, prune_after=4)
    for one in trace.passes:
        for layer, held in enumerate(one.held):
            for name, mine, own in zip(("keys", "values"), held, one.arrived[layer], strict=True):
                if mine.dtype != own.dtype:
                    raise Departure(f"layer {layer} was passed {name} in {own.dtype} and holds them in {mine.dtype}")


def test_later_keys_change_no_earlier_decision(subject: Subject) -> None:
    """Causality: tokens after t do not affect evictions by passes that ended at or before t."""
    # Two texts that differ from t on, in case the second depends on the first.
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
