"""Checks shared by several laws: counts, threshold, attention."""

import functools
from dataclasses import replace

import torch
from torch import Tensor

from pressgauge.conformance import oracle
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.outcomes import Departure, not_applicable, note
from pressgauge.conformance.precision import MULTIPLE, tolerance
from pressgauge.conformance.read_back import check_attention_to_what_is_read_back
from pressgauge.conformance.session import Pass, Trace
from pressgauge.conformance.severity import Severity
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited

TELLING_APART = 2.0**-9
"""Relative difference below which unequal scores may be ranked in either order."""


def follows_its_own_rule(trace: Trace, layer: int = 0) -> bool:
    """Whether a layer holds what the subject's own rule says, which need not depend on the ratio, not even on 1."""
    rules = replace(trace.subject.rules(trace.options, layer), keep_ratio=0.5)
    held = [one.held[layer][0].shape[2] for one in trace.passes]
    return rules.size is not None and held == oracle.counts(rules, trace.lengths)


def check_counts(subject: Subject, trace: Trace) -> None:
    """Check the number of retained entries after each pass against the schedule.

    Raises:
        Departure: if it differs.
    """
    declares = subject.declares
    for layer in range(trace.layers):
        rules = subject.rules(trace.options, layer)
        expected = oracle.counts(rules, trace.lengths)
        if declares.target and follows_its_own_rule(trace, layer):
            continue
        for number, (one, wanted) in enumerate(zip(trace.passes, expected, strict=True)):
            held = one.held[layer][0].shape[2]
            if declares.held == "per-head":
                keys, values = one.held[layer]
                real = ((keys != 0).any(-1) | (values != 0).any(-1)).sum(-1)
                if int(real.sum()) == wanted * real.numel():
                    continue
                held = round(float(real.double().mean()), 2)  # type: ignore[assignment]
            if held != wanted:
                rule = f"{rules.schedule} with keep_ratio {rules.keep_ratio} and prune_after {rules.prune_after}"
                if declares.target:
                    rule = "its own rule"
                if layer in trace.options.get("skip_layers", ()):
                    rule = "a layer in skip_layers"
                raise Departure(
                    f"layer {layer} holds {held} entries after pass {number} ({one.end} tokens seen); {rule} retains "
                    f"{wanted}"
                )


def check_threshold(subject: Subject, trace: Trace) -> None:
    """Check that no layer with ``prune_after`` entries or fewer evicts.

    Raises:
        Departure: if one does.
    """
    for layer in range(trace.layers):
        before = 0
        rules = subject.rules(trace.options, layer)
        for one in trace.passes:
            arrived = before + one.length
            before = one.held[layer][0].shape[2]
            if before < arrived and not (rules.may_prune(arrived) or rules.keep_ratio == 1):
                raise Departure(
                    f"layer {layer} evicted while it held {arrived} entries; prune_after is {rules.prune_after}"
                )


def off(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Error of each token's logits, relative to the largest logit: ``[T]``."""
    return (found - expected).abs().amax(dim=(0, 2)) / expected.abs().max()


def comparable(dtype: torch.dtype) -> None:
    """Skip a law that compares two runs of a model, unless it is in float64."""
    if dtype != torch.float64:
        not_applicable(f"two runs in {dtype} may choose differently between nearly equal entries")


def wrong_tokens(found: torch.Tensor, expected: torch.Tensor) -> list[int]:
    """Tokens whose logits are NaN or off by more than the tolerance of their dtype.

    Not applicable to two runs in another dtype than float64: their last bits may differ, and with them the choice
    between two nearly equal entries.
    """
    if found.dtype == expected.dtype:
        comparable(found.dtype)
    return torch.nonzero(~(off(found, expected) < tolerance(found.dtype)))[:, 0].tolist()


def check_same_logits(trace: Trace, found: torch.Tensor, expected: torch.Tensor, finding: str) -> None:
    """Check that logits ``[B, T, V]`` are equal, up to noise for a quantised cache.

    Args:
        trace: an unpadded run, whose quantisation error tells what is noise.
        found, expected: the logits.
        finding: what is wrong with those of a token.

    Raises:
        Departure: if they differ.
    """
    if not (wrong := wrong_tokens(found, expected)):
        return
    most = float(off(found, expected).max())
    own = Severity.of_logits(trace)
    sentence = f"the logits of token {wrong[0]} {finding}, by up to {most:.2g} of the largest{own.beside(most)}"
    if not own.is_noise(most):
        raise Departure(sentence.rstrip(","))
    note(sentence.rstrip(","))


def _before_their_pass(
    trace: Trace, tables: list[Tensor], passes: list[Pass] | None = None, own: bool = False
) -> list[Tensor]:
    """``evicted_at`` as if passes evicted tokens before attention.

    Args:
        trace: the run.
        tables: ``evicted_at`` per layer.
        passes: those passes; all by default.
        own: whether a pass evicts its own tokens, too, and not only earlier ones.
    """
    result = []
    for table in tables:
        early = table.clone()
        tokens = torch.arange(table.shape[-1]).expand_as(table)
        for one in trace.passes if passes is None else passes:
            gone = table == one.end
            early = torch.where(gone & (tokens < one.start), one.start, early)
            if own:
                # From its own time on, no query attends to it.
                early = torch.where(gone & (tokens >= one.start), tokens, early)
        result.append(early)
    return result


def expected_logits(trace: Trace, tables: list[Tensor]) -> Tensor:
    """Logits ``[B, T, V]`` of attention to the held entries, from the oracle; in float64.

    For a subject that declares to evict before it attends, those of attention to what is held after each pass. The
    prompt, or every pass of several tokens, may attend to all that precedes; the nearest of the three counts.
    """
    masked = functools.partial(masked_logits, trace.model, trace.ids, stored=trace.subject.entries_dtype)
    if trace.subject.declares.attends == "before eviction":
        return masked(tables)
    choices = trace.passes, trace.passes[1:], [one for one in trace.passes if one.length == 1]
    candidates = [masked(_before_their_pass(trace, tables, passes, own=True)) for passes in choices]
    found = torch.stack([one.logits[:, -1] for one in trace.passes], dim=1)
    last = [one.end - 1 for one in trace.passes]
    return min(candidates, key=lambda logits: float((logits[:, last] - found).abs().max().nan_to_num(torch.inf)))


def check_attention(trace: Trace) -> None:
    """Check logits against full attention, masked by the subject's own evictions; for quantised entries, against full
    attention to what is read back.

    Raises:
        Departure: if they differ.
    """
    if trace.subject.declares.quantised:
        check_attention_to_what_is_read_back(trace)
        return
    audit = audited(trace)
    tables = audit.evicted_at
    expected = expected_logits(trace, tables)
    wrong = wrong_tokens(trace.logits, expected)
    if not wrong:
        return
    token = wrong[0]
    error = off(trace.logits, expected)
    number = next(n for n, one in enumerate(trace.passes) if token < one.end)
    one = trace.passes[number]
    counts = [keys.shape[2] for keys, _ in trace.passes[number - 1].held] if number else [0]
    masked = functools.partial(masked_logits, trace.model, trace.ids, stored=trace.subject.entries_dtype)
    if trace.subject.declares.attends == "before eviction":
        reason = "they are not those of attention to the held entries and, causally, to the pass itself"
        if token not in wrong_tokens(trace.logits, masked(_before_their_pass(trace, tables))):
            reason = "they are those of attention to the entries held after the pass, so it evicts before attention"
    else:
        reason = "they are not those of attention to the entries held after the pass"
        if token not in wrong_tokens(trace.logits, masked(tables)):
            reason = "they are those of attention to the entries held before it, so it evicts after attention"
    ambiguous = f" ({audit.ambiguous} entries match several tokens)" if audit.ambiguous else ""
    raise Departure(
        f"the logits of token {token} in pass {number} (tokens {one.start} to {one.end - 1}, {max(counts)} entries "
        f"held before it) are off by {float(error[token]):.2g} of the largest{allowance(trace.logits)}: {reason}"
        f"{ambiguous}"
    )


def allowance(logits: Tensor) -> str:
    """The tolerance in words, for findings; nothing in float64."""
    if logits.dtype == torch.float64:
        return ""
    name = str(logits.dtype).removeprefix("torch.")
    return (
        f" (allowed are {tolerance(logits.dtype):.2g}, {MULTIPLE} times the error of models without a compressor in "
        f"{name})"
    )
