"""Laws about passes of every size and number, and about the keys that attention receives in them."""

from typing import Any

import torch
from torch import Tensor

from pressgauge.conformance import architectures
from pressgauge.conformance.audit import Audit
from pressgauge.conformance.checks import check_attention, check_counts
from pressgauge.conformance.operations import go_on, in_words, started, state
from pressgauge.conformance.outcomes import Departure, Refused, not_applicable
from pressgauge.conformance.precision import tolerance
from pressgauge.conformance.retained import check_best, check_order
from pressgauge.conformance.session import Trace, provided_for, run
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited
from pressgauge.conformance.versions import mask_sizes

# Ratios are exact in binary: another law is about those that are not.
SIZES: list[tuple[list[int], dict[str, Any]]] = [
    # Longer than the budget, and than twice what is held.
    ([4, 7, 1, 8], {"keep_ratio": 0.125, "prune_after": 4}),
    ([20, 3, 11, 2, 30, 1, 1], {"keep_ratio": 0.25, "prune_after": 6}),
    # The first passes shorter than what is retained.
    ([1, 2, 1, 3, 9, 1], {"keep_ratio": 0.375, "prune_after": 3}),
    # As long as what is held under budget, step and prefill.
    ([12, 6, 9, 1], {"keep_ratio": 0.5, "prune_after": 2}),
    ([10, 5, 10, 13], {"keep_ratio": 0.5, "prune_after": 5}),
]


def check_runs(subject: Subject, model: architectures.Model, runs: list[tuple[list[int], dict[str, Any]]]) -> None:
    """Check counts, attention, and the order and the scores of entries, in runs of the given passes and options.

    Scores by attention are not checked: the queries of a real model are not at hand.

    Raises:
        Departure: if either is wrong.
        Refused: if the subject refuses every run.
    """
    refusals = []
    for lengths, options in runs:
        try:
            with in_words(f"a run in passes of {lengths} tokens"):
                trace = run(subject, model, architectures.text(model, 1, sum(lengths)), lengths, **options)
        except Refused as refusal:
            refusals.append(refusal)
            continue
        check_counts(subject, trace)
        if subject.declares.matchable:
            check_attention(trace)
        if subject.declares.matchable and not subject.declares.quantised:
            if subject.declares.order != "any" and _in_order_at_first(audited(trace)):
                check_order(audited(trace))
            if subject.declares.scored and not subject.declares.votes:
                check_best(audited(trace))
    _answer(refusals, len(runs))


def _in_order_at_first(audit: Audit) -> bool:
    """Whether the first pass that evicts leaves entries in order; if not, another law is broken already."""
    for one, layers in zip(audit.trace.passes, audit.held, strict=True):
        if any(held.positions.shape[-1] < one.end for held in layers):
            return all(bool((held.positions.diff() > 0).all()) for held in layers)
    return True


def test_a_later_pass_may_have_any_length(subject: Subject, one_model: architectures.Model) -> None:
    """Rules 1, 2, 4 and 5: later passes longer than the budget, than twice what is held, or as long as what is held
    attend to all held entries and to themselves, and leave the best entries in order, in the number that the schedule
    sets."""
    check_runs(subject, one_model, SIZES)


def test_a_later_pass_may_be_as_long_as_what_is_held(subject: Subject, one_model: architectures.Model) -> None:
    """Rules 1 and 2: passes as long as what is held, one shorter, one longer and twice as long attend to all held
    entries and to themselves."""
    options: dict[str, Any] = {"keep_ratio": 0.375, "prune_after": 4}
    ids = architectures.text(one_model, 1, 400)
    refusals = []
    for factor, extra in ((1, 0), (1, -1), (1, 1), (2, 1)):
        with started(subject, one_model, options, 11) as session:
            try:
                session.feed(ids[:, :11])
                for _ in range(3):
                    held = max(keys.shape[2] for keys, _ in session.passes[-1].held)
                    length = min(max(1, factor * held + extra), 100)
                    with in_words(f"a pass of {length} tokens, with {held} entries held,"):
                        session.feed(ids[:, session.seen : session.seen + length])
            except Refused as refusal:
                refusals.append(refusal)
                continue
        trace = Trace(subject, options, one_model, ids[:, : session.seen], session.passes)
        check_counts(subject, trace)
        if subject.declares.matchable:
            check_attention(trace)
    _answer(refusals, 4)


def _answer(refusals: list[Refused], cases: int) -> None:
    if len(refusals) == cases:
        raise refusals[0]


FLOAT32 = 2.0**-16
"""Relative error of logits between two implementations: eager attention takes the softmax in float32."""

STEPS: list[tuple[list[int], dict[str, Any]]] = [
    ([127, 1, 1, 126, 1, 1, 1], {"keep_ratio": 1.0}),
    ([129, 126, 1, 1, 1], {"keep_ratio": 0.5, "prune_after": 127}),
    ([139, 1, 1, 1, 1, 2], {"keep_ratio": 0.875, "prune_after": 4}),
    ([255, 1, 1, 1], {"keep_ratio": 0.5, "prune_after": 4}),
]


def test_lengths_around_128_and_256_are_no_exception(subject: Subject) -> None:
    """Rules 1 and 2 hold where tokens seen, or entries held, pass 128 and 256: common windows, and common steps of
    storage."""
    check_runs(subject, architectures.small(), STEPS)


MANY = 280
FEW_ENTRIES = 40
"""Number of held entries up to which every pass of a long run is audited."""


def test_hundreds_of_passes_follow_the_schedule(subject: Subject) -> None:
    """Rules 1, 2 and 3: after hundreds of single tokens every layer still holds the number that the schedule sets, and
    attention still reads what is held."""
    model = architectures.small()
    lengths = [20] + [1] * MANY
    ids = architectures.text(model, 1, sum(lengths))
    every: list[dict[str, Any]] = [{"keep_ratio": 0.0625, "prune_after": 8}, {"keep_ratio": 0.75, "prune_after": 12}]
    for options in every:
        with in_words(f"a run of {len(lengths)} passes"):
            trace = run(subject, model, ids, lengths, **options)
        check_counts(subject, trace)
        held = max(keys.shape[2] for one in trace.passes for keys, _ in one.held)
        if subject.declares.matchable and held <= FEW_ENTRIES:
            check_attention(trace)


def test_the_mask_is_announced_for_the_keys_that_are_returned(subject: Subject, one_model: architectures.Model) -> None:
    """In every layer and pass, ``get_mask_sizes`` announces the number of keys that ``update`` then returns to
    attention, and all layers have seen the same number of tokens."""
    provided_for(subject, "operations")
    if subject.adapter.kind == "context":
        not_applicable("a context around the model may give its layers masks of their own")
    refusals = []
    for lengths, options in (
        ([12, 1, 1, 4, 1, 8], {"keep_ratio": 0.5, "prune_after": 4}),
        ([4, 7, 1, 8], {"keep_ratio": 0.125, "prune_after": 4}),
        ([12, 1, 3], {"keep_ratio": 1.0}),
        ([126, 1, 1, 1, 1, 4], {"keep_ratio": 0.5, "prune_after": 130}),
    ):
        ids = architectures.text(one_model, 1, sum(lengths))
        try:
            _check_announced(subject, one_model, ids, lengths, options)
        except Refused as refusal:
            refusals.append(refusal)
    _answer(refusals, 4)


def _check_announced(
    subject: Subject, model: architectures.Model, ids: Tensor, lengths: list[int], options: dict[str, Any]
) -> None:
    with started(subject, model, options, lengths[0]) as session:
        recording = session.cache.update
        returned: dict[int, int] = {}

        def update(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            result = recording(keys, values, layer, *args, **kwargs)
            returned[layer] = result[0].shape[2]
            return result

        session.cache.update = update
        for number, length in enumerate(lengths):
            announced = {}
            for layer in range(model.config.num_hidden_layers):
                with in_words(f"get_mask_sizes of layer {layer} for {length} tokens"):
                    announced[layer] = mask_sizes(session.cache, session.seen, length, layer, model.device)[0]
            with in_words(f"pass {number} of {length} tokens"):
                session.feed(ids[:, session.seen : session.seen + length])
            seen = state(session, f"after pass {number}").lengths[: len(returned)]
            if len(set(seen)) > 1 and not session.supplies_positions:
                raise Departure(f"after pass {number} get_seq_length of the layers is {seen}, of one text")
            for layer, count in returned.items():
                if announced[layer] != count:
                    raise Departure(
                        f"before pass {number} of {length} tokens get_mask_sizes announces {announced[layer]} keys in "
                        f"layer {layer}, and update returns {count}"
                    )


def test_eager_attention_gives_what_sdpa_gives(subject: Subject) -> None:
    """With ``attn_implementation="eager"``, logits are those with ``"sdpa"``, which may hide a mask of a wrong size."""
    provided_for(subject, "operations")
    models = {name: architectures.attending_by(name) for name in ("sdpa", "eager")}
    refusals = []
    feedings: list[tuple[list[int], dict[str, Any]]] = [
        ([12, 1, 1, 5, 1], {"keep_ratio": 0.5, "prune_after": 4}),
        *SIZES[:1],
        ([12, 6, 6, 1], {"keep_ratio": 0.5, "prune_after": 12}),
        ([9, 9, 18], {"keep_ratio": 1.0}),
    ]
    for lengths, options in feedings:
        ids = architectures.text(models["sdpa"], 1, sum(lengths))
        accepted, passes = {}, {}
        for name, model in models.items():
            with started(subject, model, options, lengths[0]) as session:
                accepted[name] = go_on(session, ids, tuple(lengths), f"with {name} attention")
                passes[name] = session.passes
        if not accepted["eager"]:
            refusals.append(Refused(f"the subject refuses eager attention with {options}"))
        for number, (one, other) in enumerate(zip(passes["eager"], passes["sdpa"], strict=False)):
            error = float((one.logits - other.logits).abs().max() / other.logits.abs().max())
            if not error < (FLOAT32 if subject.dtype == torch.float64 else tolerance(subject.dtype)):
                raise Departure(
                    f"the logits of pass {number} of {one.length} tokens, after {one.start} tokens, differ between "
                    f"eager and sdpa attention by up to {error:.2g} of the largest"
                )
    _answer(refusals, len(feedings))
