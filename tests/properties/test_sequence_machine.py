"""State machine of several sequences that alternate on one model through one compressor: prompts, answers, further
prompts, copies and new sequences, each compared with the sequence alone and with lists of tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor

from conformance.ours import ours_by_default
from pressgauge.conformance import architectures, oracle
from pressgauge.conformance.audit import Audit
from pressgauge.conformance.checks import off
from pressgauge.conformance.precision import EXACT
from pressgauge.conformance.session import Session, Trace, run
from pressgauge.conformance.subjects import Subject

SUBJECTS = [subject for subject in ours_by_default() if subject.declares.score is not None]
"""Subjects whose scores the oracle computes from keys and positions."""
MOST = 4
LONGEST = 40


class SequenceMachine(RuleBasedStateMachine):
    """Override ``subjects`` to test other compressors."""

    subjects: Sequence[Subject] = SUBJECTS

    @initialize(data=st.data(), keep_ratio=st.sampled_from([0.5, 0.3, 0.9, 1.0]), prune_after=st.integers(0, 8))
    def start(self, data: st.DataObject, keep_ratio: float, prune_after: int) -> None:
        """Create one compressor for all sequences."""
        self.subject = data.draw(st.sampled_from(self.subjects))
        self.options: dict[str, Any] = {"keep_ratio": keep_ratio, "prune_after": prune_after}
        self.compressor = self.subject(**self.options)
        self.model = architectures.shared("llama")
        self.sessions: list[Session] = []
        self.fed: list[Tensor] = []

    def feed(self, number: int, ids: Tensor) -> None:
        """Feed one pass of a sequence, and check its result."""
        session = self.sessions[number]
        session.resume()
        try:
            session.feed(ids)
        finally:
            session.pause()
        self.fed[number] = torch.cat([self.fed[number], ids], dim=1)
        self.check(number)

    @rule(length=st.integers(1, 12), seed=st.integers(0, 99))
    @precondition(lambda self: len(self.sessions) < MOST)
    def begin(self, length: int, seed: int) -> None:
        """Start a sequence with its prompt."""
        session = Session(self.subject, self.compressor, self.model)
        with session:
            pass
        self.sessions.append(session)
        self.fed.append(torch.empty(1, 0, dtype=torch.long))
        self.feed(len(self.sessions) - 1, architectures.tokens(1, length, seed))

    @rule(data=st.data(), tokens=st.integers(1, 4))
    @precondition(lambda self: self.sessions)
    def answer(self, data: st.DataObject, tokens: int) -> None:
        """Decode a few tokens of a sequence greedily."""
        number = data.draw(st.integers(0, len(self.sessions) - 1))
        for _ in range(tokens):
            if self.fed[number].shape[1] < LONGEST:
                self.feed(number, self.sessions[number].passes[-1].logits[:, -1:].argmax(-1))

    @rule(data=st.data(), length=st.integers(2, 6), seed=st.integers(0, 99))
    @precondition(lambda self: self.sessions)
    def say(self, data: st.DataObject, length: int, seed: int) -> None:
        """Feed a further prompt to a sequence."""
        number = data.draw(st.integers(0, len(self.sessions) - 1))
        if self.fed[number].shape[1] + length <= LONGEST:
            self.feed(number, architectures.tokens(1, length, seed))

    @rule(data=st.data())
    @precondition(lambda self: 0 < len(self.sessions) < MOST)
    def clone(self, data: st.DataObject) -> None:
        """Copy a sequence, which continues independently."""
        number = data.draw(st.integers(0, len(self.sessions) - 1))
        self.sessions.append(self.sessions[number].fork())
        self.fed.append(self.fed[number])

    @rule(data=st.data())
    @precondition(lambda self: self.sessions)
    def read(self, data: st.DataObject) -> None:
        """Reading entries repeatedly changes nothing."""
        session = self.sessions[data.draw(st.integers(0, len(self.sessions) - 1))]
        once, twice = session.held(), session.held()
        for one, other, recorded in zip(once, twice, session.passes[-1].held, strict=True):
            for a, b, c in zip(one, other, recorded, strict=True):
                assert torch.equal(a, b)
                assert torch.equal(a, c)

    def check(self, number: int) -> None:
        """The sequence equals a run alone, and holds the entries of the oracle."""
        session = self.sessions[number]
        trace = Trace(self.subject, self.options, self.model, self.fed[number], session.passes)
        alone = run(self.subject, self.model, self.fed[number], trace.lengths, **self.options)
        assert (off(trace.logits, alone.logits) < EXACT).all()
        audit = Audit(trace)
        for layer in range(trace.layers):
            keys = trace.arrived(layer)[0]
            expected, counts = self.subject.history(self.options, keys, trace.lengths, layer)
            assert counts[-1] == session.passes[-1].held[layer][0].shape[2]
            assert (audit.evicted_at[layer] == oracle.NEVER).tolist() == [
                [[at == oracle.NEVER for at in head] for head in row] for row in expected
            ]


SequenceMachine.TestCase.settings = settings(
    max_examples=max(1, settings().max_examples // 5), stateful_step_count=12, deadline=None
)
TestSequenceMachine = SequenceMachine.TestCase
