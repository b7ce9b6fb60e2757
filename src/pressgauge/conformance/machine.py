"""State machine of a cache: passes and operations in any order, against a fresh cache fed the same rows."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import Tensor

from pressgauge.conformance import architectures
from pressgauge.conformance.operations import (
    attempt,
    check_same,
    copied,
    excused,
    fresh,
    go_on,
    last_eviction,
    restart,
    started,
    state,
    tolerance,
    truncated,
)
from pressgauge.conformance.session import Session
from pressgauge.conformance.subjects import Subject

LONGEST = 60
"""Tokens of a row after which no more are fed."""

_EXACT = settings().derandomize
MACHINE = settings(
    max_examples=max(8, settings().max_examples // 8),
    stateful_step_count=8,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # As in strategies.FEW: the first failure is reported without shrinking.
    phases=[Phase.generate] if _EXACT else list(Phase),
)


def run_machine(subject: Subject, model: architectures.Model, batches: bool) -> None:
    """Run passes and operations in drawn orders.

    Args:
        subject: the subject.
        model: the model.
        batches: whether to draw several rows.

    Raises:
        Departure: if an operation crashes, or a cache ends otherwise than a fresh one fed the same rows.
    """

    class Bound(Machine):
        pass

    Bound.subject, Bound.model, Bound.most = subject, model, 3 if batches else 1
    run_state_machine_as_test(Bound, settings=MACHINE)


class Machine(RuleBasedStateMachine):
    """A session, and what was fed to its rows."""

    subject: Subject
    model: architectures.Model
    most: int
    session: Session | None = None

    @initialize(
        rows=st.integers(1, 3), ratio=st.sampled_from([0.5, 0.3, 1.0]), prune_after=st.sampled_from([4, 0, 9, 20])
    )
    def start(self, rows: int, ratio: float, prune_after: int) -> None:
        """Draw options and a prompt."""
        self.options = {"keep_ratio": ratio, "prune_after": prune_after}
        self.seed = 0
        self.history: list[str] = []
        self.lengths: list[int] = []
        self.ids = torch.zeros((min(rows, self.most), 0), dtype=torch.long)
        self.session = started(self.subject, self.model, self.options, 7)
        self.session.__enter__()
        self.open = True
        self.feed(7)

    @property
    def seen(self) -> int:
        """Tokens fed to each row."""
        return sum(self.lengths)

    def _when(self) -> str:
        return f"with {self.options}, after {', '.join(self.history)}"

    def _text(self, length: int) -> Tensor:
        self.seed += 1
        return architectures.text(self.model, self.ids.shape[0], length, seed=self.seed)

    @precondition(lambda self: self.open and self.seen < LONGEST)
    @rule(length=st.one_of(st.just(1), st.integers(1, 9)))
    def feed(self, length: int) -> None:
        """Feed one pass; a refusal ends the run."""
        assert self.session is not None
        new = self._text(length)
        if not go_on(self.session, new, (length,), self._when()):
            self.open = False
            return
        self.history.append(f"a pass of {length}")
        self.ids = torch.cat([self.ids, new], dim=1)
        self.lengths.append(length)

    def _attempt(self, name: str, call: Callable[[Any], Any]) -> bool:
        assert self.session is not None
        refused, _ = attempt(self.session, f"{self._when()}, {name}", call)
        self.history.append(f"a refused {name}" if refused else name)
        return not refused

    @precondition(lambda self: self.open and len(self.lengths) > 1)
    @rule(count=st.integers(1, 12))
    def crop(self, count: int) -> None:
        """Crop tokens that were fed after the prompt, and after the last eviction."""
        assert self.session is not None
        count = min(count, self.seen - max(last_eviction(self.session.passes), self.lengths[0]))
        if count < 1 or not self._attempt(f"a crop by {count}", lambda cache: cache.crop(-count)):
            return
        now = state(self.session, self._when())
        self.session.passes = truncated(self.session.passes, self.seen - count, now.held)
        self.lengths = [one.length for one in self.session.passes]
        self.ids = self.ids[:, : self.seen]

    @precondition(lambda self: self.open)
    @rule(length=st.integers(2, 12))
    def reset(self, length: int) -> None:
        """Reset, and start with another prompt."""
        assert self.session is not None
        if excused(self.session.cache, "reset"):
            return
        if self._attempt("a reset", lambda cache: cache.reset()):
            restart(self.session)
            self.ids, self.lengths = self.ids[:, :0], []
            self.feed(length)

    @precondition(lambda self: self.open and self.most > 1)
    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        """Reorder the rows, with repetitions."""
        rows = self.ids.shape[0]
        order = data.draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
        index = torch.tensor(order, device=self.model.device)
        if self._attempt(f"reorder_cache to {order}", lambda cache: cache.reorder_cache(index)):
            self.ids = self.ids[order]

    @precondition(lambda self: self.open and self.most > 1)
    @rule(data=st.data())
    def select(self, data: st.DataObject) -> None:
        """Select rows."""
        rows = self.ids.shape[0]
        chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows, unique=True))
        index = torch.tensor(chosen, device=self.model.device)
        if self._attempt(f"batch_select_indices of {chosen}", lambda cache: cache.batch_select_indices(index)):
            self.ids = self.ids[chosen]

    @precondition(lambda self: self.open and self.most > 1 and self.ids.shape[0] <= 3)
    @rule()
    def repeat(self) -> None:
        """Repeat every row."""
        if self._attempt("batch_repeat_interleave by 2", lambda cache: cache.batch_repeat_interleave(2)):
            self.ids = self.ids.repeat_interleave(2, dim=0)

    @precondition(lambda self: self.open)
    @rule(length=st.integers(1, 5))
    def copy(self, length: int) -> None:
        """Continue with a copy, while the original is fed other tokens."""
        assert self.session is not None
        self.history.append("a deepcopy")
        original, self.session = self.session, copied(self.session)
        go_on(original, self._text(length), (length,), f"{self._when()} (the original)")

    def teardown(self) -> None:
        """Compare a last pass, and the state, with a fresh cache fed the same."""
        if self.session is None:
            return
        if self.open:
            when = self._when()
            self.feed(2)
        self.session.pause()
        if not self.open:
            return
        reference = fresh(self.subject, self.model, self.ids, tuple(self.lengths), self.options)
        if reference.complete:
            allowed = tolerance(self.subject, self.model, self.ids, reference)
            check_same(self.subject, self.session, 1, reference, len(self.lengths) - 1, when, allowed)
