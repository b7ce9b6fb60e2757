"""Laws about operations on a cache: afterwards it continues as a fresh cache fed the same, or it refuses."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from pressgauge.conformance import architectures
from pressgauge.conformance.machine import check_pairs, run_machine
from pressgauge.conformance.operations import (
    GOING_ON,
    Moment,
    Reference,
    attempt,
    attends,
    check_crop,
    check_rows,
    check_same,
    excused,
    fresh,
    go_on,
    in_words,
    is_refusal,
    last_eviction,
    moments,
    restart,
    rows_are_independent,
    started,
    state,
    tolerance,
)
from pressgauge.conformance.outcomes import REFUSALS, Departure, Refused, not_applicable
from pressgauge.conformance.session import Session, provided_for
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import using

NEW = sum(GOING_ON)
BEAM_STEPS = 4


def _answer(done: int, refusals: list[str]) -> None:
    """End a law about an operation that was refused whenever it was called."""
    if not done and refusals:
        raise Refused(refusals[-1])


def test_a_crop_leaves_the_tokens_before_it(subject: Subject, one_model: architectures.Model) -> None:
    """After a crop by any number of tokens, every layer holds its entries of the tokens before them, and the cache
    continues as if the others had never been fed; or the crop is refused before anything is touched."""
    provided_for(subject, "operations")
    done, refusals = 0, []
    for moment in moments(subject):
        seen = sum(moment.passes)
        ids = architectures.text(one_model, 1, seen + NEW)
        ids, new = ids[:, :seen], ids[:, seen:]
        untouched = fresh(subject, one_model, torch.cat([ids, new], dim=1), moment.passes + GOING_ON, moment.options)
        right = attends(subject, one_model, torch.cat([ids, new], dim=1), moment, untouched)
        counts = _counts(subject, moment, untouched)
        while counts:
            with started(subject, one_model, moment.options, moment.passes[0]) as session:
                go_on(session, ids, moment.passes, "without any operation")
                while counts:
                    count = counts.pop(0)
                    when = f"{moment.words}, with {seen} tokens seen, a crop by {count}"
                    if _excused(session, count, seen):
                        continue
                    refused, before = attempt(session, when, _crop(count))
                    if not refused:
                        done += 1
                        check_crop(subject, session, moment, before, ids, new, count, when, right)
                        break
                    refusals.append(refused)
                else:
                    when = f"{moment.words}, after a refused crop"
                    accepted = go_on(session, new, GOING_ON, when)
                    allowed = tolerance(subject, one_model, torch.cat([ids, new], dim=1), untouched)
                    check_same(subject, session, accepted, untouched, len(moment.passes), when, allowed)
    _answer(done, refusals)


def _crop(count: int) -> Callable[[Any], Any]:
    return lambda cache: cache.crop(-count)


def _excused(session: Session, count: int, seen: int) -> bool:
    """Whether a crop is inherited from a release of transformers that does not do it."""
    flaw = "crop by 0" if count == 0 else "crop by more than was seen" if count > seen else "none"
    return bool(excused(session.cache, "crop", flaw))


def _counts(subject: Subject, moment: Moment, untouched: Reference) -> list[int]:
    """Numbers of tokens to remove: around the number held, and around the number seen."""
    passes = untouched.passes[: len(moment.passes)]
    if len(passes) < len(moment.passes):
        return []
    seen = passes[-1].end
    held = max((keys.shape[2] for keys, _ in passes[-1].held), default=seen)
    counts = sorted({0, 1, held - 1, held, held + 1, 2 * held, seen, seen + 1})
    if subject.declares.positions == "caller":
        # The cache's length is the number held, by which only tokens since the last eviction can be removed.
        return [count for count in counts if count <= seen - last_eviction(passes)]
    return counts


def test_a_reset_cache_is_as_new(subject: Subject, one_model: architectures.Model) -> None:
    """After a reset, a cache is empty and processes another text, longer or shorter, as a new one does.

    Not applicable to a reset inherited from a release of transformers that sets entries to zero instead, if it does.
    """
    provided_for(subject, "operations")
    done, refusals, inherited = 0, [], ""
    for moment in moments(subject):
        for lengths in ((moment.passes[0] - 5, 1, 1, 2), (moment.passes[0] + 5, 1, 4)):
            ids = architectures.text(one_model, 1, sum(moment.passes))
            other = architectures.text(one_model, 1, sum(lengths), seed=3)
            when = f"{moment.words}, a reset"
            with started(subject, one_model, moment.options, moment.passes[0]) as session:
                if go_on(session, ids, moment.passes, "without any operation") < len(moment.passes):
                    continue
                inherited = excused(session.cache, "reset")
                refused, before = attempt(session, when, lambda cache: cache.reset())
                if inherited:
                    _check_zeroed(session, other, lengths, when)
                    continue
                if refused:
                    refusals.append(refused)
                    continue
                done += 1
                for layer, length in enumerate(state(session, f"after {when}").lengths):
                    if length and before.lengths[layer]:
                        raise Departure(f"{when} leaves get_seq_length {length} in layer {layer}")
                restart(session)
                accepted = go_on(session, other, lengths, when)
            reference = fresh(subject, one_model, other, lengths, moment.options)
            allowed = tolerance(subject, one_model, other, reference)
            check_same(subject, session, accepted, reference, 0, when, allowed)
    if inherited:
        not_applicable(inherited)
    _answer(done, refusals)


def _check_zeroed(session: Session, other: torch.Tensor, lengths: tuple[int, ...], when: str) -> None:
    """Check that a reset does what that of older releases of transformers does: entries become zeros, and a further
    text can be processed, after them."""
    for layer, entries in enumerate(state(session, f"after {when}").held):
        if any(bool(each.any()) for each in entries):
            raise Departure(f"{when} leaves entries of the last text in layer {layer}, neither freed nor set to zero")
    go_on(session, other, lengths, when)


def test_reordered_rows_continue_as_the_rows_they_were(subject: Subject, one_model: architectures.Model) -> None:
    """After ``reorder_cache``, as beam search calls it, row i continues as the former row ``beam_idx[i]``, in every
    layer."""
    provided_for(subject, "operations")
    order = [2, 0, 0]
    _on_rows(subject, one_model, order, lambda cache: cache.reorder_cache(_index(one_model, order)), "reorder_cache")


def test_selected_rows_continue_as_the_rows_they_were(subject: Subject, one_model: architectures.Model) -> None:
    """After ``batch_select_indices``, the selected rows continue as if they had been alone, in every layer."""
    provided_for(subject, "operations")
    for rows in ([2, 0], [1]):
        _on_rows(
            subject,
            one_model,
            rows,
            lambda cache, rows=rows: cache.batch_select_indices(_index(one_model, rows)),  # type: ignore[misc]
            "batch_select_indices",
        )


def test_repeated_rows_continue_as_the_rows_they_were(subject: Subject, one_model: architectures.Model) -> None:
    """After ``batch_repeat_interleave``, every copy of a row continues as that row, in every layer."""
    provided_for(subject, "operations")
    for rows in ([0, 0, 1, 1], [0, 0, 0]):
        repeats = rows.count(0)
        _on_rows(
            subject,
            one_model,
            rows,
            lambda cache, repeats=repeats: cache.batch_repeat_interleave(repeats),  # type: ignore[misc]
            f"batch_repeat_interleave by {repeats}",
            of=len(rows) // repeats,
        )


def test_rows_of_a_padded_batch_continue_as_the_rows_they_were(
    subject: Subject, one_model: architectures.Model
) -> None:
    """In a batch padded on the left, rows that are reordered, selected (with and without the longest) or repeated
    continue as the rows they were."""
    provided_for(subject, "operations")
    provided_for(subject, "padding")
    if not subject.declares.padding:
        not_applicable("the subject declares that it does not support padded rows")
    padding = (7, 3, 0)
    for rows in ([0, 1], [2, 0]):
        _on_rows(
            subject,
            one_model,
            rows,
            lambda cache, rows=rows: cache.batch_select_indices(_index(one_model, rows)),  # type: ignore[misc]
            f"batch_select_indices of rows {rows}",
            padded=padding,
        )
    # Of a row as short as P everything stays, which is more than half of a longer one.
    moment = Moment("after evictions from the longer of two rows", {"keep_ratio": 0.5, "prune_after": 12}, (20,))
    call = lambda cache: cache.batch_select_indices(_index(one_model, [1]))  # noqa: E731
    check_rows(subject, one_model, moment, [1], call, "batch_select_indices of the longer row", 2, (9, 0))
    order = [1, 0, 0]
    _on_rows(
        subject,
        one_model,
        order,
        lambda cache: cache.reorder_cache(_index(one_model, order)),
        f"reorder_cache to rows {order}",
        padded=padding,
    )
    rows = [0, 0, 1, 1, 2, 2]
    _on_rows(
        subject,
        one_model,
        rows,
        lambda cache: cache.batch_repeat_interleave(2),
        "batch_repeat_interleave by 2",
        padded=padding,
    )


def _index(model: architectures.Model, rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, device=model.device)


def _on_rows(
    subject: Subject,
    model: architectures.Model,
    rows: list[int],
    call: Callable[[Any], Any],
    name: str,
    *,
    of: int = 3,
    padded: tuple[int, ...] = (),
) -> None:
    """Check an operation after which row i of ``of`` rows is the former row ``rows[i]``, at every moment.

    Raises:
        Departure: if a row does not continue as in a fresh cache.
        Refused: if the subject refused it at every moment.
    """
    refusals = [check_rows(subject, model, m, rows, call, name, of, padded) for m in moments(subject)]
    if all(refusals):
        raise Refused(refusals[-1])


class _Scores(LogitsProcessor):
    """Records the candidates of each step of beam search, and the model's logarithmic probabilities."""

    def __init__(self) -> None:
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.steps.append((input_ids.cpu().clone(), scores.cpu().clone()))
        return scores


def test_beam_search_scores_each_beam_by_its_own_tokens(subject: Subject, one_model: architectures.Model) -> None:
    """In ``model.generate(num_beams=3)``, the model's probabilities for a candidate are those of a fresh cache that was
    fed that candidate alone."""
    provided_for(subject, "operations")
    provided_for(subject, "generate")
    refusals = []
    for moment in moments(subject):
        prompt = moment.passes[0]
        ids = architectures.text(one_model, 1, prompt).to(one_model.device)
        scores = _Scores()
        when = f"{moment.words}, model.generate with 3 beams"
        with started(subject, one_model, moment.options, moment.passes[0]) as session, in_words(when):
            try:
                one_model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    **using(session.cache),
                    num_beams=3,
                    max_new_tokens=BEAM_STEPS,
                    do_sample=False,
                    eos_token_id=None,
                    logits_processor=LogitsProcessorList([scores]),
                )
            except Exception as error:
                if not is_refusal(error):
                    raise
                refusals.append(f"{type(error).__name__}: {error}")
                continue
        _check_beams(subject, one_model, moment, prompt, scores, when)
    if len(refusals) == len(moments(subject)):
        raise Refused(refusals[-1])


def _check_beams(
    subject: Subject, model: architectures.Model, moment: Moment, prompt: int, scores: _Scores, when: str
) -> None:
    known: dict[tuple[int, ...], torch.Tensor] = {}
    # model.generate rounds logits to float32.
    allowed = 2.0**-20
    # Longest first, so that a run of one candidate answers for those from which it was continued.
    for candidates, found in reversed(scores.steps):
        for row, probabilities in zip(candidates, found, strict=True):
            if tuple(row.tolist()) not in known:
                lengths = (prompt, *[1] * (len(row) - prompt))
                alone = fresh(subject, model, row[None], lengths, moment.options)
                if not alone.complete:
                    not_applicable(f"the subject refuses a candidate alone: {REFUSALS[-1]}")
                allowed = max(allowed, tolerance(subject, model, row[None], alone))
                for one in alone.passes:
                    known[tuple(row[: one.end].tolist())] = one.logits[0, -1].log_softmax(-1)
            expected = known[tuple(row.tolist())]
            error = float((probabilities - expected).abs().max() / expected.abs().max())
            if not error <= allowed:
                raise Departure(
                    f"{when}, the probabilities after {len(row)} tokens are off by {error:.2g} of the largest: "
                    "they are not those of a fresh cache fed this beam's tokens"
                )


def test_two_operations_leave_a_cache_as_fresh(subject: Subject, one_model: architectures.Model) -> None:
    """After any two operations, with passes before, between and after them, a cache holds and computes what a fresh
    cache fed the same rows does."""
    provided_for(subject, "operations")
    check_pairs(subject, one_model, rows_are_independent(subject, one_model))


def test_operations_in_any_order_leave_a_cache_as_fresh(subject: Subject, one_model: architectures.Model) -> None:
    """Passes, crops, resets, reordered, selected and repeated rows and copies, in any order, leave what a fresh cache
    fed the same rows holds and computes."""
    provided_for(subject, "operations")
    run_machine(subject, one_model, rows_are_independent(subject, one_model))
