"""Laws of identity: without evictions, nothing changes; and laws about ``model.generate``."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge.conformance import architectures
from pressgauge.conformance.checks import allowance, expected_logits, follows_its_own_rule, off, wrong_tokens
from pressgauge.conformance.outcomes import Departure, Refused, not_applicable
from pressgauge.conformance.precision import EXACT, rounding, tolerance
from pressgauge.conformance.read_back import check_attention_to_what_is_read_back
from pressgauge.conformance.session import Session, Trace, provided_for, run
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited, uncompressed
from pressgauge.conformance.versions import using

PASSES = [9, 1, 1, 5, 1, 1]
LENGTH = sum(PASSES)
NEW = 6


def _leave_out_rules_at_any_ratio(trace: Trace) -> None:
    """Skip a law for a subject that evicts by its own rule although the ratio is 1."""
    held = min(keys.shape[2] for keys, _ in trace.passes[-1].held)
    if held < trace.passes[-1].end and follows_its_own_rule(trace):
        not_applicable("the subject follows a rule of its own, at any ratio")


def check_identity(subject: Subject, trace: Trace, why: str) -> None:
    """Check that logits and cache equal those of a ``DynamicCache``.

    Bit-identical, except for functions, which run on attention of the harness.

    Raises:
        Departure: if they differ.
    """
    _leave_out_rules_at_any_ratio(trace)
    logits, cache = uncompressed(trace.model, trace.ids, PASSES, trace.subject.entries_dtype)
    exact = subject.adapter.exact
    if not torch.equal(trace.logits, logits) if exact else wrong_tokens(trace.logits, logits):
        error = off(trace.logits, logits)
        first = torch.nonzero(~(error <= (0 if exact else EXACT)))[0]
        raise Departure(
            f"{why}, but the logits differ from those with a DynamicCache, from token {int(first)} on, by up to "
            f"{float(error.max()):.2g} of the largest"
        )
    for layer, (keys, values) in enumerate(trace.passes[-1].held):
        own: Any = cache.layers[layer]
        own_keys, own_values = own.keys.cpu(), own.values.cpu()
        same = keys.shape == own_keys.shape and (
            (torch.equal(keys, own_keys) and torch.equal(values, own_values))
            if exact
            else all(
                (mine - its).double().abs().max() < EXACT for mine, its in ((keys, own_keys), (values, own_values))
            )
        )
        if not same:
            what = "other entries, or the same in another order"
            if keys.shape != own_keys.shape:
                what = f"keys {list(keys.shape)} instead of {list(own_keys.shape)}"
            raise Departure(f"{why}, but layer {layer} does not hold the entries of a DynamicCache: {what}")


def check_all_held(trace: Trace) -> None:
    """Check that a quantised cache holds all tokens, in order.

    Raises:
        Departure: if it does not.
    """
    for number, layers in enumerate(audited(trace).held):
        end = trace.passes[number].end
        for layer, held in enumerate(layers):
            if not torch.equal(
                held.positions, torch.arange(end).expand_as(held.positions[..., :1].expand(-1, -1, end))
            ):
                raise Departure(
                    f"nothing may be evicted, but layer {layer} does not hold the {end} tokens seen by pass {number}, "
                    "in order"
                )


def test_a_ratio_of_one_changes_nothing(subject: Subject, model: architectures.Model) -> None:
    """Rule 7: with keep_ratio 1, logits and cache are those of transformers' ``DynamicCache``; a quantised cache holds
    all tokens, and attention is to what is read back."""
    if subject.declares.quantised:
        trace = run(subject, model, architectures.text(model, 1, LENGTH), PASSES, keep_ratio=1.0, prune_after=0)
        check_all_held(trace)
        check_attention_to_what_is_read_back(trace)
        return
    if subject.declares.entries == "altered":
        not_applicable("entries are declared as altered")
    ids = architectures.text(model, 1, LENGTH)
    check_identity(subject, run(subject, model, ids, PASSES, keep_ratio=1.0, prune_after=0), "keep_ratio is 1")


def test_a_short_sequence_changes_nothing(subject: Subject, one_model: architectures.Model) -> None:
    """Rule 7: for a sequence that never exceeds ``prune_after``, logits and cache are those of a ``DynamicCache``."""
    if not subject.declares.prune_after:
        not_applicable("the subject takes no prune_after")
    if subject.declares.entries == "altered":
        not_applicable("entries are declared as altered")
    ids = architectures.text(one_model, 1, LENGTH)
    # If a layer may evict at exactly P entries, the text stays below P.
    longest = LENGTH + (subject.declares.boundary == ">=")
    trace = run(subject, one_model, ids, PASSES, keep_ratio=0.1, prune_after=longest)
    if subject.declares.quantised:
        check_all_held(trace)
        return
    check_identity(subject, trace, f"{LENGTH} tokens were seen and prune_after is {longest}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_ratio_of_one_changes_nothing_in_any_dtype(subject: Subject, dtype: torch.dtype) -> None:
    """Rule 7 holds in float32, float16 and bfloat16; a quantised cache holds all tokens, and its logits are finite."""
    if subject.declares.quantised:
        model = architectures.under_test("llama", dtype)
        trace = run(subject, model, architectures.text(model, 1, LENGTH), PASSES, keep_ratio=1.0, prune_after=0)
        check_all_held(trace)
        if not trace.logits.isfinite().all():
            raise Departure(f"the logits are not finite in {dtype}")
        return
    if subject.declares.entries == "altered":
        not_applicable("entries are declared as altered")
    provided_for(subject, "dtypes")
    model = architectures.under_test("llama", dtype)
    ids = architectures.text(model, 1, LENGTH)
    check_identity(
        subject, run(subject, model, ids, PASSES, keep_ratio=1.0, prune_after=0), f"keep_ratio is 1 ({dtype})"
    )


def test_generate_with_a_ratio_of_one_is_unchanged(subject: Subject, one_model: architectures.Model) -> None:
    """Rule 7: with keep_ratio 1, ``model.generate`` gives the tokens of the plain model; with a quantised cache, those
    of a greedy loop of passes with the same cache."""
    provided_for(subject, "generate")
    if subject.declares.quantised:
        check_greedy_loop(subject, one_model)
        return
    if subject.declares.entries == "altered":
        not_applicable("entries are declared as altered")
    ids = architectures.text(one_model, 1, 11).to(one_model.device)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    model = subject.model_of(one_model)
    cache = rounding(DynamicCache(config=model.config), subject.entries_dtype)
    expected = model.generate(ids, **using(cache), **settings)[:, 11:].cpu()
    with Session(
        subject, subject(keep_ratio=1.0, prune_after=0, model=one_model, prompt_length=11), one_model
    ) as session:
        tokens = session.generate(ids, NEW)[:, 11:]
    _leave_out_rules_at_any_ratio(Trace(subject, {"keep_ratio": 1.0}, one_model, ids.cpu(), session.passes))
    if not torch.equal(tokens, expected):
        raise Departure(
            f"keep_ratio is 1, but model.generate gives {tokens[0].tolist()} instead of {expected[0].tolist()}"
        )


def check_greedy_loop(subject: Subject, model: architectures.Model) -> None:
    """Check that ``model.generate`` gives the tokens of a greedy loop.

    Raises:
        Departure: if it does not.
    """
    ids = architectures.text(model, 1, 11)

    def started() -> Any:
        return subject(keep_ratio=1.0, prune_after=0, model=model, prompt_length=ids.shape[1])

    with Session(subject, started(), model) as session:
        tokens = session.generate(ids, NEW)[0, 11:].tolist()
    with Session(subject, started(), model) as session:
        expected = [int(session.feed(ids)[0, -1].argmax())]
        while len(expected) < NEW:
            expected.append(int(session.feed(torch.tensor([expected[-1:]]))[0, -1].argmax()))
    if tokens != expected:
        raise Departure(f"model.generate gives {tokens}, and a greedy loop of passes gives {expected}")


def check_quantised_generation(trace: Trace, whole: Tensor) -> None:
    """Check that tokens ``whole`` were generated from attention to what is read back.

    Raises:
        Departure: if logits are others, or tokens are not theirs.
    """
    # generate may compute logits of the last token of the prompt only.
    prompt = trace.passes[0]
    prompt.logits = torch.nn.functional.pad(prompt.logits, (0, 0, prompt.length - prompt.logits.shape[1], 0))
    check_attention_to_what_is_read_back(trace, prompt.length - 1)
    for step, one in enumerate(trace.passes):
        chosen, token = int(one.logits[0, -1].argmax()), int(whole[0, prompt.length + step])
        if chosen != token:
            raise Departure(
                f"step {step} of model.generate gives token {token}, and its logits are largest for {chosen}"
            )


def test_generate_attends_to_the_held_entries(subject: Subject, model: architectures.Model) -> None:
    """Rules 1 and 6: in ``model.generate``, the logits of each step are those of attention to the held entries."""
    provided_for(subject, "generate")
    ids = architectures.text(model, 1, 16)
    options: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}
    try:
        with Session(subject, subject(**options, model=model, prompt_length=16), model) as session:
            whole = session.generate(ids, NEW)
    except Refused as refusal:
        not_applicable(str(refusal))
    # The last token was never fed.
    trace = Trace(subject, options, session.model, whole[:, :-1], session.passes)
    if subject.declares.quantised:
        check_quantised_generation(trace, whole)
        return
    expected = expected_logits(trace, audited(trace).evicted_at)[0, 15:]
    logits = torch.stack([one.logits[0, -1] for one in session.passes])
    error = ((logits - expected).abs().amax(-1) / expected.abs().max()).tolist()
    if wrong := [step for step, value in enumerate(error) if not value < tolerance(logits.dtype)]:
        raise Departure(
            f"the logits of step {wrong[0]} of model.generate are off by {error[wrong[0]]:.2g} of the largest"
            f"{allowance(logits)}: they are not those of attention to the held entries at true positions"
        )
