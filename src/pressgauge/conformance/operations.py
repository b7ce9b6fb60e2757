"""Operations on a cache between passes: crop, reset, reorder, select, repeat, deepcopy.

After an operation a cache continues as a fresh one fed the same, or it refuses before anything is touched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge.conformance import architectures
from pressgauge.conformance.checks import check_attention, comparable
from pressgauge.conformance.outcomes import (
    DECLINES,
    REFUSALS,
    Departure,
    Refused,
    Unreadable,
    not_applicable,
)
from pressgauge.conformance.precision import EXACT
from pressgauge.conformance.reading import Entries, layers_of, only_states
from pressgauge.conformance.session import Pass, Session, Trace
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited
from pressgauge.errors import raised_by

PROMPT = 12
ALTERED_PROMPT = 140
"""Prompt of subjects that alter entries, beyond the usual residual of 128 tokens."""
GOING_ON = (1, 4, 1)
"""Passes after an operation."""


@dataclass(frozen=True)
class Moment:
    """When an operation is called.

    Attributes:
        words: description for findings.
        options: options of the compressor.
        passes: lengths of the passes before.
    """

    words: str
    options: dict[str, Any]
    passes: tuple[int, ...]


def moments(subject: Subject) -> list[Moment]:
    """After a prompt of which nothing is evicted, and after evictions from a prompt and later tokens."""
    prompt = PROMPT if subject.declares.entries == "kept" else ALTERED_PROMPT
    return [
        Moment("while nothing is evicted", {"keep_ratio": 1.0, "prune_after": 0}, (prompt,)),
        Moment("after evictions", {"keep_ratio": 0.5, "prune_after": 4}, (prompt, 1, 1, 1)),
    ]


@dataclass(frozen=True)
class State:
    """What shows of a cache between passes."""

    held: list[Entries]
    """Entries of each layer, without layers that hold none."""
    lengths: list[int]
    """``get_seq_length`` of each layer; empty if the cache has none."""


def is_refusal(error: BaseException) -> bool:
    """Whether an exception was raised on purpose, with a message: by a statement, not by a failing expression."""
    if not isinstance(error, (*DECLINES, RuntimeError)) or not str(error):
        return False
    package, instruction = raised_by(error)
    return package != "torch" and instruction == "RAISE_VARARGS"


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """Turn a crash into a finding: "``what`` crashes: IndexError: ..."."""
    try:
        yield
    except (Departure, Refused):
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise Departure(f"{what} crashes: {type(error).__name__}: {line}".rstrip(": ")) from error


def state(session: Session, when: str) -> State:
    """What shows of a session's cache.

    Raises:
        Departure: if the cache cannot be read.
    """
    with in_words(f"reading the cache {when}"):
        try:
            held = session.held()
        except Unreadable:
            # An empty layer may have no keys at all.
            held = []
        count = getattr(session.cache, "get_seq_length", None)
        # A layer of linear attention has states, and no length.
        with_length = [index for index, layer in layers_of(session.cache).items() if not only_states(layer)]
        lengths = [] if count is None else [int(count(layer)) for layer in with_length]
    return State([(keys, values) for keys, values in held if keys.numel()], lengths)


def started(subject: Subject, model: Any, options: dict[str, Any], prompt: int) -> Session:
    """A session of a new compressor, for a prompt of ``prompt`` tokens."""
    # Known from now on: a compressor may change transformers' classes while it is at work.
    flaws()
    return Session(subject, subject(model=model, prompt_length=prompt, **options), model)


def restart(session: Session) -> None:
    """Let a session count from zero, after its cache was emptied."""
    session.passes = []
    session._devices.clear()


def attempt(session: Session, name: str, call: Callable[[Any], Any]) -> tuple[str, State]:
    """Call an operation on a session's cache.

    Args:
        session: the session.
        name: the operation in words.
        call: function of the cache.

    Returns:
        The refusal, empty if the operation was done; and the state before.

    Raises:
        Departure: if it crashes, or changes anything before it refuses.
    """
    before = state(session, f"before {name}")
    refusal = ""
    with in_words(name):
        try:
            call(session.cache)
        except Exception as error:
            if not is_refusal(error):
                raise
            refusal = f"{type(error).__name__}: {error}".splitlines()[0]
    if refusal:
        REFUSALS.append(refusal)
        after = state(session, f"after {name} was refused")
        if difference := _difference(after, before, EXACT):
            raise Departure(f"{name} is refused ({refusal}) after something was changed: {difference}")
    return refusal, before


def go_on(session: Session, ids: Tensor, lengths: tuple[int, ...], when: str, mask: Tensor | None = None) -> int:
    """Feed further passes.

    Args:
        session: the session.
        ids: ``[B, T]``, the tokens to be fed.
        lengths: lengths of the passes.
        when: description for findings.
        mask: ``[B, seen + T]``, for padded rows.

    Returns:
        Number of passes that the subject accepted.

    Raises:
        Departure: if a pass crashes.
    """
    start, seen = 0, session.seen
    for number, length in enumerate(lengths):
        end = start + length
        with in_words(f"{when}, a pass of {length} tokens"):
            try:
                session.feed(ids[:, start:end], None if mask is None else mask[:, : seen + end])
            except Refused:
                return number
        start = end
    return len(lengths)


def _difference(found: State, wanted: State, tolerance: float, *, sort: bool = False) -> str:
    """Description of the first difference between two caches; empty if there is none."""
    if found.lengths != wanted.lengths:
        if len(set(found.lengths)) == len(set(wanted.lengths)) == 1:
            return f"get_seq_length is {found.lengths[0]}, not {wanted.lengths[0]}"
        return f"get_seq_length of the layers is {found.lengths}, not {wanted.lengths}"
    if len(found.held) != len(wanted.held):
        return f"{len(found.held)} layers hold entries, not {len(wanted.held)}"
    for layer, (mine, own) in enumerate(zip(found.held, wanted.held, strict=True)):
        if sort:
            mine, own = _sorted(mine), _sorted(own)
        for name, one, other in zip(("keys", "values"), mine, own, strict=True):
            if one.shape != other.shape:
                return f"layer {layer} holds {name} {list(one.shape)}, not {list(other.shape)}"
            error = float((one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30))
            if not error <= tolerance:
                return f"layer {layer} holds other {name}, by up to {error:.2g} of the largest"
    return ""


def _sorted(entries: Entries) -> Entries:
    """Entries in the order of their keys' first components."""
    order = entries[0][..., 0].argsort(dim=-1)[..., None]
    keys, values = (tensor.gather(2, order.expand(-1, -1, -1, tensor.shape[3])) for tensor in entries)
    return keys, values


@dataclass(frozen=True)
class Reference:
    """A fresh cache that was fed the same, without the operation, up to the first pass that the subject refuses."""

    passes: list[Pass]
    state: State
    complete: bool
    """Whether the subject accepted all passes."""


def fresh(
    subject: Subject,
    model: Any,
    ids: Tensor,
    lengths: tuple[int, ...],
    options: dict[str, Any],
    mask: Tensor | None = None,
) -> Reference:
    """Feed a text to a fresh cache.

    Args:
        subject: the subject.
        model: the model.
        ids: ``[B, T]``.
        lengths: lengths of the passes.
        options: options of the compressor.
        mask: ``[B, T]``, for padded rows.
    """
    with started(subject, model, options, lengths[0]) as session:
        accepted = go_on(session, ids, lengths, "without any operation", mask)
        return Reference(session.passes, state(session, "without any operation"), accepted == len(lengths))


def off(found: Tensor, expected: Tensor) -> Tensor:
    """Error of each token's logits, relative to the largest logit: ``[B, T]``."""
    return (found - expected).abs().amax(dim=-1) / expected.abs().max()


def tolerance(subject: Subject, model: Any, ids: Tensor, reference: Reference, mask: Tensor | None = None) -> float:
    """Relative error of logits that is allowed between two runs: twice the subject's own, if it alters entries."""
    comparable(subject.model_dtype)
    if subject.declares.entries == "kept" or not reference.passes:
        return EXACT
    logits = torch.cat([one.logits for one in reference.passes], dim=1)
    given = {} if mask is None else {"attention_mask": mask.to(model.device)}
    with torch.no_grad():
        plain = model(ids[:, : logits.shape[1]].to(model.device), **given).logits.cpu()
    error = off(logits, plain)
    return max(EXACT, 2 * float(error.nan_to_num(0).max()))


@cache
def own_error(subject: Subject, model: Any, keep_ratio: float, prune_after: int) -> float:
    """Twice the relative error of a subject's logits on a text beyond any residual; 0 if it alters nothing."""
    if subject.declares.entries == "kept":
        return 0.0
    lengths = (ALTERED_PROMPT, 1, 1)
    ids = architectures.text(model, 1, sum(lengths))
    long = fresh(subject, model, ids, lengths, {"keep_ratio": keep_ratio, "prune_after": prune_after})
    return tolerance(subject, model, ids, long)


def check_same(
    subject: Subject,
    session: Session,
    new: int,
    reference: Reference,
    skip: int,
    when: str,
    allowed: float,
    hidden: Tensor | None = None,
) -> None:
    """Check that the last passes of a session are those of a reference.

    Args:
        subject: the subject.
        session: the session.
        new: number of passes that it accepted since the operation.
        reference: a fresh cache fed the same.
        skip: number of its passes before the operation.
        when: description for findings.
        allowed: relative error of logits.
        hidden: ``[B, T]``, 0 at padding.

    Raises:
        Departure: if logits, lengths or entries differ.
    """
    expected = reference.passes[skip:]
    if new < len(expected):
        raise Departure(f"{when}, a pass is refused that a fresh cache fed the same accepts: {REFUSALS[-1]}")
    mine = session.passes[len(session.passes) - new :] if new else []
    for number, (one, other) in enumerate(zip(mine, expected, strict=False)):
        error = off(one.logits, other.logits)
        if hidden is not None:
            error = error * hidden[:, one.start : one.end]
        if len(wrong := torch.nonzero(~(error <= allowed))):
            row, token = wrong[0].tolist()
            raise Departure(
                f"{when}, the logits of {f'row {row}, ' if len(error) > 1 else ''}token {one.start + token} (pass "
                f"{number} since) are off by {float(error[row, token]):.2g} of the largest: they are not those of a "
                "fresh cache fed the same"
            )
    if reference.complete and new == len(expected):
        # Altered entries may be altered otherwise, for example if fewer of them are still exact.
        exact = EXACT if subject.declares.entries == "kept" else float("inf")
        after, wanted = state(session, f"{when} and {new} passes"), reference.state
        if hidden is not None:
            # Padding slots may hold anything, and a cache may be wider than its longest row.
            after, wanted = State([], after.lengths), State([], wanted.lengths)
        if difference := _difference(after, wanted, exact, sort=subject.declares.order == "any"):
            raise Departure(f"{when} and {new} passes, {difference}, as in a fresh cache fed the same")


def truncated(passes: list[Pass], left: int, held: list[Entries]) -> list[Pass]:
    """Passes of the first ``left`` tokens, after the last of which the cache holds ``held``."""
    result = []
    for one in passes:
        if one.start >= left:
            break
        length = min(one.length, left - one.start)
        arrived = {layer: (k[:, :, :length], v[:, :, :length]) for layer, (k, v) in one.arrived.items()}
        positions = None if one.positions is None else one.positions[:, :length]
        result.append(Pass(one.start, length, one.logits[:, :length], arrived, one.held, positions))
    if result:
        result[-1] = replace(result[-1], held=held)
    return result


def last_eviction(passes: list[Pass]) -> int:
    """Tokens seen by the end of the last pass from which a layer evicted; 0 if none did."""
    last = 0
    for number, one in enumerate(passes):
        for layer, (keys, _) in enumerate(one.held):
            before = passes[number - 1].held[layer][0].shape[2] if number else 0
            if keys.shape[2] < before + one.length:
                last = one.end
    return last


def check_survivors(trace: Trace, passes: list[Pass], ids: Tensor, kept: int, when: str) -> None:
    """Check that a crop left the held entries among the remaining tokens, and those only.

    Args:
        trace: passes after the crop, preceded by those that it left.
        passes: passes before the crop.
        ids: ``[1, T]``, their tokens.
        kept: number of passes that the crop left.
        when: description for findings.

    Raises:
        Departure: if it left others.
    """
    left = trace.passes[kept - 1].end
    old, new = audited(replace(trace, passes=passes, ids=ids, audit=None)), audited(trace)
    with _prefixed(when):
        new = audited(trace)
        for layer in range(trace.layers):
            held, now = old.alive[layer][-1][..., :left], new.alive[layer][kept - 1][..., :left]
            # Entries that only cropped passes evicted may return, as if these had never been fed.
            may_return = old.alive[layer][kept - 2][..., :left] if kept > 1 else torch.zeros_like(held)
            may_return = may_return | (torch.arange(left) >= trace.passes[kept - 1].start)
            for row, head, token in torch.nonzero((held & ~now) | (now & ~held & ~may_return)).tolist()[:1]:
                lost = bool(held[row, head, token])
                raise Departure(
                    f"layer {layer}, row {row}, KV head {head} {'lost' if lost else 'holds'} token {token}, which "
                    f"{'was held and is not among the cropped ones' if lost else 'it had evicted'}"
                )


@contextmanager
def _prefixed(when: str) -> Iterator[None]:
    try:
        yield
    except Departure as finding:
        raise Departure(f"{when}: {finding}") from finding


@cache
def flaws() -> dict[str, str]:
    """Operations that transformers' own ``DynamicCache`` of this release does not do, with a reason."""
    found = {}

    def after(call: Callable[[Any], Any]) -> int:
        own: Any = DynamicCache()
        own.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2), 0)
        call(own)
        own.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)
        return int(own.layers[0].keys.shape[2])

    for name, wanted, call in (
        ("crop by 0", 4, lambda own: own.crop(0)),
        ("crop by more than was seen", 1, lambda own: own.crop(-5)),
        ("reset", 1, lambda own: own.reset()),
    ):
        if (count := after(call)) != wanted:
            found[name] = (
                f"transformers' own DynamicCache, from which it inherits this, holds {count - 1} of 3 entries after "
                f"{name}"
            )
    return found


def _inherits(cache: Any, name: str) -> bool:
    """Whether a cache and its layers have an operation from transformers unchanged."""
    owners = [type(cache), *(type(layer) for layer in layers_of(cache).values())]
    return all(
        str(getattr(getattr(owner, name, None), "__module__", "")).partition(".")[0] == "transformers"
        for owner in owners
    )


def excused(cache: Any, name: str, flaw: str = "") -> str:
    """Why an operation is no matter of the subject; empty if it is.

    Args:
        cache: its cache.
        name: the method.
        flaw: key of ``flaws``; the method's name by default.
    """
    return flaws().get(flaw or name, "") if _inherits(cache, name) else ""


def copied(session: Session) -> Session:
    """A session that continues with a deepcopy of the cache.

    Raises:
        Departure: if it crashes.
    """
    with in_words("copy.deepcopy"):
        try:
            return session.fork()
        except Exception as error:
            if is_refusal(error):
                not_applicable(f"the subject refuses copy.deepcopy: {error}")
            raise


def check_crop(
    subject: Subject,
    session: Session,
    moment: Moment,
    before: State,
    ids: Tensor,
    new: Tensor,
    count: int,
    when: str,
    attends: bool,
) -> None:
    """Check what a crop by ``count`` tokens left, and that the cache goes on.

    Args:
        subject: the subject.
        session: the session, after the crop.
        moment: when it was called.
        before: state before the crop.
        ids: ``[1, T]``, the tokens seen.
        new: ``[1, q]``, the tokens to be fed next.
        count: number of tokens removed.
        when: description for findings.
        attends: whether the subject attends to what it holds without any operation.

    Raises:
        Departure: if entries, lengths or logits are wrong.
    """
    model, passes, seen = session.model, session.passes, ids.shape[1]
    left = max(0, seen - count)
    now = state(session, f"after {when}")
    for layer, (old, length) in enumerate(zip(before.lengths, now.lengths, strict=False)):
        if old == seen and length != left:
            raise Departure(f"{when} leaves get_seq_length {length} in layer {layer}; {left} tokens are left")
    if not count and (difference := _difference(now, before, 0)):
        raise Departure(f"{when} changes the cache: {difference}")
    if left and passes[-1].held and len(now.held) < len(passes[-1].held) and before.held:
        # Layers that evicted all tokens that are left hold none.
        now = State(session.held(), now.lengths)
    if left:
        session.passes = truncated(passes, left, now.held)
    else:
        restart(session)
    kept = len(session.passes)
    accepted = go_on(session, new, GOING_ON, when)
    session.pause()
    whole = torch.cat([ids[:, :left], new], dim=1)
    trace = Trace(subject, moment.options, model, whole, session.passes)
    if subject.declares.matchable and before.held and left:
        check_survivors(trace, passes, ids, kept, when)
    if not left or moment.options["keep_ratio"] == 1 or left >= max(passes[0].length, last_eviction(passes)):
        lengths = (*(one.length for one in session.passes[:kept]), *GOING_ON)
        reference = fresh(subject, model, whole, lengths, moment.options)
        allowed = tolerance(subject, model, whole, reference)
        if count:
            # Entries that would be exact in a fresh cache may have been quantised before the crop.
            allowed = max(allowed, own_error(subject, model, **moment.options))
        check_same(subject, session, accepted, reference, kept, when, allowed)
    if attends and before.held and left and accepted:
        with _prefixed(when):
            check_attention(replace(trace, ids=whole[:, : session.seen], audit=None))


def attends(subject: Subject, model: Any, ids: Tensor, moment: Moment, reference: Reference) -> bool:
    """Whether logits without any operation are those of attention to the held entries, by a law about attention."""
    if not subject.declares.matchable or not reference.passes:
        return False
    seen = reference.passes[-1].end
    try:
        check_attention(Trace(subject, moment.options, model, ids[:, :seen], reference.passes))
    except Departure:
        return False
    return True


def check_rows(
    subject: Subject,
    model: Any,
    moment: Moment,
    rows: list[int],
    call: Callable[[Any], Any],
    name: str,
    of: int,
    padded: tuple[int, ...] = (),
) -> str:
    """Check an operation after which row i is the former row ``rows[i]``.

    Args:
        subject: the subject.
        model: the model.
        moment: when it is called.
        rows: former row of each row.
        call: the operation, a function of the cache.
        name: its name, for findings.
        of: number of rows before.
        padded: columns of padding of each row before; none by default.

    Returns:
        The refusal; empty if the operation was done.

    Raises:
        Departure: if a row does not continue as in a fresh cache.
    """
    seen, skip = sum(moment.passes), len(moment.passes)
    ids, new = architectures.text(model, of, seen), architectures.text(model, max(of, len(rows)), sum(GOING_ON), seed=5)
    mask = torch.ones(of, seen, dtype=torch.long)
    if padded:
        mask = (torch.arange(seen) >= torch.tensor(padded)[:, None]).long()
        ids = ids * mask

    def continued(order: list[int]) -> tuple[Tensor, Tensor | None]:
        added = new[: len(order)]
        whole = torch.cat([ids[order], added], dim=1)
        return whole, torch.cat([mask[order], torch.ones_like(added)], dim=1) if padded else None

    every = list(range(of))
    when = f"{moment.words}, with {of} {'padded ' if padded else ''}rows of {seen} columns, {name}"
    with started(subject, model, moment.options, moment.passes[0]) as session:
        if go_on(session, ids, moment.passes, "without any operation", mask if padded else None) < skip:
            return REFUSALS[-1]
        refused, before = attempt(session, when, call)
        if not refused:
            _check_taken(state(session, f"after {when}"), before, rows, when)
        whole, visible = continued(every if refused else rows)
        if refused:
            when = f"{when} was refused"
        accepted = go_on(session, whole[:, seen:], GOING_ON, when, visible)
    reference = fresh(subject, model, whole, moment.passes + GOING_ON, moment.options, visible)
    allowed = tolerance(subject, model, whole, reference, visible)
    order = every if refused else rows
    for one, other in zip(session.passes[:skip], reference.passes[:skip], strict=False):
        error = off(one.logits[order], other.logits) * mask[order][:, one.start : one.end]
        if not bool((error <= allowed).all()):
            not_applicable("rows of a batch affect each other without any operation, by a law about rows")
    check_same(subject, session, accepted, reference, skip, when, allowed, visible)
    return refused


def _taken(entries: Entries, rows: list[int], count: int) -> Entries:
    """Entries of these rows; slots before the last ``count`` may be gone if they are zero in all of them: padding."""
    keys, values = (part[rows] for part in entries)
    gone = keys.shape[2] - count
    padding = gone > 0 and not keys[:, :, :gone].any() and not values[:, :, :gone].any()
    return (keys[:, :, gone:], values[:, :, gone:]) if padding else (keys, values)


def _check_taken(now: State, before: State, rows: list[int], when: str) -> None:
    """Check that a cache holds the entries of these rows."""
    counts = [keys.shape[2] for keys, _ in now.held]
    known = len(now.held) == len(before.held)
    wanted = State(
        [_taken(one, rows, counts[layer] if known else one[0].shape[2]) for layer, one in enumerate(before.held)],
        before.lengths,
    )
    if difference := _difference(now, wanted, 0):
        others = next(
            (
                f"; {name} of row {row} are in layer {layer} those of the former row {other}"
                for layer, (mine, own) in enumerate(zip(now.held, before.held, strict=False))
                for name, one, old in zip(("keys", "values"), mine, own, strict=True)
                for row, former in enumerate(rows)
                for other in range(old.shape[0])
                if one.shape[1:] == old.shape[1:]
                and row < one.shape[0]
                and other != former
                and torch.equal(one[row], old[other])
                and not torch.equal(one[row], old[former])
            ),
            "",
        )
        raise Departure(f"{when} does not leave the rows {rows} of what was held: {difference}{others}")


def rows_are_independent(subject: Subject, model: Any) -> bool:
    """Whether the subject accepts several rows, and gives a row of a batch what it gives it alone."""
    moment = moments(subject)[1]
    ids = architectures.text(model, 2, sum(moment.passes))
    together = fresh(subject, model, ids, moment.passes, moment.options)
    alone = fresh(subject, model, ids[1:], moment.passes, moment.options)
    if not together.complete:
        return False
    allowed = tolerance(subject, model, ids, together)
    pairs = zip(together.passes, alone.passes, strict=False)
    return all(bool((off(one.logits[1:], other.logits) <= allowed).all()) for one, other in pairs)
