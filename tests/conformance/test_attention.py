"""Laws about attention: in every pass to the held entries, at true positions."""

from typing import Any

import torch

from pressgauge.conformance import architectures
from pressgauge.conformance.checks import check_attention, check_same_logits, wrong_tokens
from pressgauge.conformance.operations import copied
from pressgauge.conformance.outcomes import Departure, Refused, not_applicable, note
from pressgauge.conformance.quantised import after, settled
from pressgauge.conformance.rotation import check_rotation
from pressgauge.conformance.session import Session, run
from pressgauge.conformance.severity import check_same_entries
from pressgauge.conformance.subjects import Subject

LENGTH = 20
FEEDINGS: dict[str, list[int]] = {
    "whole, and one more": [LENGTH - 1, 1],
    "prompt and single tokens": [11] + [1] * (LENGTH - 11),
    "single tokens": [1] * LENGTH,
    "chunks": [4, 4, 4, 4, 4],
    "prompt, answer, prompt, answer": [7, 1, 1, 6, 1, 1, 3],
}
VARIANTS: list[dict[str, Any]] = [
    {"prune_after": 6},
    {"prune_after": 4, "sinks": 2, "recent": 3},
    {"prune_after": 6, "interval": 3},
    {"prune_after": 6, "skip_layers": (1,)},
]


def options(subject: Subject, turn: int) -> dict[str, Any]:
    """One of the variants, restricted to options that the subject takes."""
    takes = {"prune_after", "skip_layers", *subject.declares.takes}
    return {"keep_ratio": 0.5, **{name: value for name, value in VARIANTS[turn % 4].items() if name in takes}}


def test_logits_are_those_of_attention_to_the_held_entries(subject: Subject, model: architectures.Model) -> None:
    """Rules 1, 6 and 12: each pass attends to the held entries and causally to itself, at true positions, and evicts
    afterwards, however the text is fed (C3 and C8 of the bug catalogue)."""
    refusals = []
    for turn, lengths in enumerate(FEEDINGS.values()):
        ids = architectures.text(model, 1, LENGTH)
        try:
            check_attention(run(subject, model, ids, lengths, **options(subject, turn)))
        except Refused as refusal:
            refusals.append(refusal)
    if len(refusals) == len(FEEDINGS):
        raise refusals[0]


LONGEST = 1200
"""Tokens of the longest text that is fed to see an eviction."""


def test_a_token_is_rotated_by_the_number_of_tokens_seen(subject: Subject, model: architectures.Model) -> None:
    """Rule 6: a query's position is the number of tokens seen before it, never the number held (C3). If keys are
    declared as rotated anew, it is the number held, and held keys are rotated by the positions 0, 1, 2, ..."""
    anew = subject.declares.positions == "rerotated"
    feedings = [[14] + [1] * (LENGTH - 14), FEEDINGS["prompt, answer, prompt, answer"]]
    if LENGTH < subject.evicts_from <= LONGEST:
        feedings.append([subject.evicts_from + 2, 1, 1])
    for lengths in feedings:
        ids = architectures.text(model, 1, sum(lengths))
        trace = run(subject, model, ids, lengths, keep_ratio=0.5, prune_after=4)
        for number, one in enumerate(trace.passes):
            if one.positions is None:
                not_applicable("the model does not tell by which positions it rotates")
            held = max(keys.shape[2] for keys, _ in trace.passes[number - 1].held) if number else 0
            expected = torch.arange(one.start, one.end)
            if anew:
                expected = torch.arange(held, held + one.length)
            given = one.positions[0].cpu()
            if not torch.equal(given, expected):
                place = int(torch.nonzero(given != expected)[0])
                before = [keys.shape[2] for keys, _ in trace.passes[number - 1].held]
                raise Departure(
                    f"token {one.start + place} was rotated by position {int(given[place])} in pass {number}; "
                    f"{one.start + place} tokens were seen before it, and {min(before)} to {max(before)} entries were "
                    f"held{', and keys are declared as rotated anew' if anew else ''}"
                )
        if anew and subject.declares.entries == "kept":
            check_rotation(trace)


def test_later_tokens_change_no_earlier_logit(subject: Subject, one_model: architectures.Model) -> None:
    """Causality: changing later tokens changes no earlier logit, also within one pass."""
    ids = architectures.text(one_model, 1, LENGTH)
    other = ids.clone()
    other[:, 15:] = architectures.text(one_model, 1, LENGTH, seed=5)[:, 15:]
    for lengths in ([13] + [1] * (LENGTH - 13), [9, 11]):
        one, two = (run(subject, one_model, i, lengths, keep_ratio=0.5, prune_after=4) for i in (ids, other))
        wrong = wrong_tokens(one.logits[:, :15], two.logits[:, :15])
        if subject.declares.quantised and wrong and wrong[0] >= next(p.start for p in one.passes if p.end > 15):
            note("within a pass, scales are made with later tokens, so that earlier logits depend on them")
        else:
            check_same_logits(one, one.logits[:, :15], two.logits[:, :15], "depend on tokens from 15 on")


def check_first_layer(subject: Subject, model: architectures.Model) -> None:
    """Check that the first layer's entries of a model are read back the same, however a text is fed.

    Raises:
        Departure: if they are not.
    """
    ids = architectures.text(model, 1, LENGTH)
    runs = [run(subject, model, ids, lengths, keep_ratio=1.0, prune_after=LENGTH) for lengths in FEEDINGS.values()]
    arrived, expected = runs[0].arrived(0), runs[0].passes[-1].held[0]
    for feeding, other in zip(list(FEEDINGS)[1:], runs[1:], strict=True):
        for index, name in enumerate(("keys", "values")):
            old = min(settled(subject, index, after(each)) for each in (runs[0], other))
            own, also = arrived[index][:, :, :old], other.arrived(0)[index][:, :, :old]
            # Projections of other lengths may be rounded otherwise before they arrive.
            found = other.passes[-1].held[0][index][:, :, :old] - (also - own)
            what = f"{name} of the first layer are read back otherwise when fed as {feeding!r} than as"
            check_same_entries(found, expected[index][:, :, :old], own, f"{what} {next(iter(FEEDINGS))!r},")


def test_passes_do_not_matter_while_nothing_is_evicted(subject: Subject, one_model: architectures.Model) -> None:
    """While ``prune_after`` is not exceeded, logits do not depend on how the text is split into passes; nor does what a
    quantised cache reads back of the first layer beyond the residual."""
    if subject.declares.quantised:
        check_first_layer(subject, one_model)
        return
    if not subject.declares.prune_after:
        not_applicable("the subject takes no prune_after")
    if subject.declares.target or subject.declares.entries != "kept":
        not_applicable("the subject follows a rule of its own")
    ids = architectures.text(one_model, 1, LENGTH)
    runs = [run(subject, one_model, ids, f, keep_ratio=0.3, prune_after=LENGTH) for f in FEEDINGS.values()]
    for feeding, other in zip(list(FEEDINGS)[1:], runs[1:], strict=True):
        if wrong := wrong_tokens(other.logits, runs[0].logits):
            raise Departure(
                f"nothing may be evicted, but the logits of token {wrong[0]} differ between the passes "
                f"{next(iter(FEEDINGS))!r} and {feeding!r}"
            )


def test_a_copied_cache_is_independent(subject: Subject, one_model: architectures.Model) -> None:
    """A cache and a copy of it, both continued, do not affect each other."""
    ids = architectures.text(one_model, 1, LENGTH)
    with Session(
        subject, subject(keep_ratio=0.5, prune_after=4, model=one_model, prompt_length=12), one_model
    ) as session:
        session.feed(ids[:, :12])
        for token in range(12, 15):
            session.feed(ids[:, token : token + 1])
        copy = copied(session)
        # In turns, since what one wrote may be overwritten by the other.
        for token in range(15, LENGTH):
            session.feed(ids[:, token : token + 1])
            copy.feed(ids[:, token : token + 1] * 0 + 3)
    alone = run(subject, one_model, ids, [12] + [1] * (LENGTH - 12), keep_ratio=0.5, prune_after=4)
    found = torch.cat([one.logits for one in session.passes], dim=1)
    check_same_logits(alone, found, alone.logits, "changed because a copy of the cache was continued")
