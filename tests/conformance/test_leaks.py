"""Laws about leaks: into other sequences, the model, the inputs and memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressgauge.conformance import architectures, devices
from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.session import Session, Trace, provided_for, run
from pressgauge.conformance.strategies import few, normal_keys, options_of, pruning
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import drawn, run_scripted
from pressgauge.conventions.factories import named_by
from pressgauge.conventions.state import difference, fingerprint, functions, replaced

SLACK = 1.02
"""Upper limit of storage, relative to the size of the held entries."""


def _same(one: Trace, other: Trace) -> bool:
    """Whether logits and held entries are bit-identical."""
    if not torch.equal(one.logits, other.logits):
        return False
    pairs = zip(one.passes[-1].held, other.passes[-1].held, strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for mine, own in pairs for a, b in zip(mine, own, strict=True))


def test_a_second_sequence_is_independent_of_the_first(subject: Subject, one_model: architectures.Model) -> None:
    """A sequence does not depend on those that the same compressor processed before (C5 of the bug catalogue)."""
    texts = [architectures.text(one_model, 1, length, seed=length) for length in (12, 15)]
    # A factory that is passed the prompt's length is made for prompts of this length.
    second = 10 if "prompt_length" in named_by(subject.factory) else 11
    lengths = [[10] + [1] * 2, [second] + [1] * (15 - second)]
    options: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}
    fresh = [run(subject, one_model, t, n, **options) for t, n in zip(texts, lengths, strict=True)]
    for order in ((1, 0), (0, 1, 0)):
        compressor = subject(**options, model=one_model, prompt_length=lengths[order[0]][0])
        for turn, index in enumerate(order):
            again = run(subject, one_model, texts[index], lengths[index], compressor=compressor, **options)
            if not _same(again, fresh[index]):
                raise Departure(
                    f"a text of {texts[index].shape[1]} tokens gives another result as sequence {turn + 1} of one "
                    "compressor than as the first"
                )
    with Session(subject, subject(**options, model=one_model, prompt_length=10), one_model) as session:
        for turn, index in enumerate((0, 1, 0)):
            if turn:
                session.begin()
            for start, length in zip(accumulate([0, *lengths[index]]), lengths[index], strict=False):
                session.feed(texts[index][:, start : start + length])
            again = Trace(subject, options, one_model, texts[index], session.passes)
            if not _same(again, fresh[index]):
                raise Departure(
                    f"a text of {texts[index].shape[1]} tokens gives another result as sequence {turn + 1} "
                    f"{session.adapter.shared}than as the first"
                )


def test_interleaved_sequences_are_independent(subject: Subject, one_model: architectures.Model) -> None:
    """Two caches of one compressor, fed alternately, do not affect each other."""
    provided_for(subject, "side by side")
    texts = [architectures.text(one_model, 1, 14, seed=seed) for seed in (1, 2)]
    lengths = [8] + [1] * 6
    options: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}
    fresh = [run(subject, one_model, text, lengths, **options).logits for text in texts]
    compressor = subject(**options, model=one_model, prompt_length=8)
    with Session(subject, compressor, one_model) as one, Session(subject, compressor, one_model) as other:
        for start, length in zip([0, *range(8, 14)], lengths, strict=True):
            for session, text in zip((one, other), texts, strict=True):
                session.feed(text[:, start : start + length])
    for session, expected in zip((one, other), fresh, strict=True):
        found = torch.cat([p.logits for p in session.passes], dim=1)
        if not torch.equal(found, expected):
            raise Departure("two sequences fed in turns through one compressor change each other's logits")


def test_results_are_reproducible(subject: Subject, one_model: architectures.Model) -> None:
    """Rule 10: results depend on no hidden state, and the global random state is left unchanged."""
    ids = architectures.text(one_model, 1, 18)
    options: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}
    state = torch.random.get_rng_state()
    one = run(subject, one_model, ids, [12] + [1] * 6, **options)
    if not torch.equal(torch.random.get_rng_state(), state):
        raise Departure("the global random state has changed")
    torch.rand(3)
    other = run(subject, one_model, ids, [12] + [1] * 6, **options)
    torch.random.set_rng_state(state)
    if not _same(one, other):
        raise Departure("the same text gives different results with two equal compressors")


@contextmanager
def _unchanged(model: architectures.Model, when: str) -> Iterator[None]:
    def registered() -> set[str]:
        return {*ALL_ATTENTION_FUNCTIONS, *ALL_MASK_ATTENTION_FUNCTIONS}

    before, there, shared = fingerprint(model), registered(), functions()
    yield
    if changed := difference(before, fingerprint(model)):
        raise Departure(f"the model has changed {when}: {changed}")
    if more := registered() ^ there:
        raise Departure(f"transformers' attention functions have changed {when}: {min(more)}")
    if patched := replaced(shared):
        raise Departure(f"{patched} {when}, for all models of the process")


class InterruptedPassError(Exception):
    """Raised in the middle of a pass."""


def test_the_model_is_left_unchanged(subject: Subject) -> None:
    """Hooks, patches and registrations are removed from the model, also after an exception within a pass, and its
    logits are as before (C6 of the bug catalogue)."""
    model = subject.model_of(architectures.build("llama").to(devices.chosen()))
    ids = architectures.text(model, 1, 16)
    own = ids.to(model.device)
    options: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}
    with torch.no_grad():
        expected = model(own).logits
    with _unchanged(model, "after a sequence"):
        run(subject, model, ids, [12] + [1] * 4, **options)

    def fail(*_: object) -> None:
        raise InterruptedPassError

    with _unchanged(model, "after an exception"):
        try:
            with Session(subject, subject(**options, model=model, prompt_length=12), model) as session:
                session.feed(ids[:, :12])
                handle = model.model.layers[1].mlp.register_forward_hook(fail)
                try:
                    session.feed(ids[:, 12:])
                finally:
                    handle.remove()
        except InterruptedPassError:
            pass
    with torch.no_grad():
        if not torch.equal(model(own).logits, expected):
            raise Departure("the model's logits without a compressor have changed")
    fresh = run(subject, architectures.under_test("llama"), ids, [12] + [1] * 4, **options)
    if not _same(run(subject, model, ids, [12] + [1] * 4, **options), fresh):
        raise Departure("after an exception, a new sequence gives another result than on a new model")


@few
@given(data=st.data())
def test_inputs_are_never_written_to(subject: Subject, data: st.DataObject) -> None:
    """Inputs are never written to, and a result is its input or shares no storage with it."""
    # The session checks every call.
    assert drawn(subject, data, options_of(subject), pruning()).passes


def check_storage(trace: Trace) -> None:
    """Check that evicted entries are freed.

    Raises:
        Departure: if a layer keeps more storage alive.
    """
    if trace.subject.declares.held == "per-head":
        not_applicable("heads are declared to hold different numbers, so storage is as wide as the longest head")
    for layer, (keys, values) in enumerate(trace.passes[-1].held):
        needed = sum(_bytes(tensor) for tensor in (keys, values))
        kept_alive = trace.storage[layer]
        if needed and not kept_alive:
            not_applicable("the harness does not find a layer's storage")
        if kept_alive > SLACK * needed:
            raise Departure(
                f"layer {layer} holds {keys.shape[2]} entries, {needed} bytes, and keeps {kept_alive} bytes alive "
                f"after {trace.passes[-1].end} tokens"
            )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def test_evicted_entries_are_freed(subject: Subject) -> None:
    """Rule 9: storage of keys and values exceeds the size of the held entries by at most 2 % (C4)."""
    if subject.declares.entries != "kept":
        not_applicable(f"entries are declared as {subject.declares.entries}, so the size of one is unknown")
    if subject.declares.storage == "any":
        not_applicable("the subject declares that evicted entries need not be freed at once")
    for lengths in ([200], [190] + [1] * 10, [40] * 5):
        trace = run_scripted(subject, normal_keys(200), lengths, keep_ratio=0.5, prune_after=20)
        check_storage(trace)
