"""Passes and operations in any order, on any cache, against a fresh cache fed the same rows."""

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
    own_error,
    restart,
    started,
    state,
    tolerance,
    truncated,
)
from pressgauge.conformance.outcomes import REFUSALS, Refused
from pressgauge.conformance.subjects import Subject

LONGEST = 60
"""Tokens of a row after which no more are drawn."""
PROMPT = 7


def of_profile() -> settings:
    """Settings of the state machine, by the current Hypothesis profile."""
    profile = settings()
    return settings(
        profile,
        max_examples=max(12, profile.max_examples // 8),
        stateful_step_count=10,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # As in strategies.few: the first failure is reported without shrinking.
        phases=[Phase.generate] if profile.derandomize else list(Phase),
    )


class Batch:
    """A session, and what was fed to its rows.

    Args:
        subject: the subject.
        model: the model.
        options: options of the compressor.
        rows: number of rows.

    Raises:
        Departure: by any method, if an operation or a pass crashes.
    """

    def __init__(self, subject: Subject, model: architectures.Model, options: dict[str, Any], rows: int) -> None:
        self.subject, self.model, self.options = subject, model, options
        self.ids = torch.zeros((rows, 0), dtype=torch.long)
        self.lengths: list[int] = []
        self.history: list[str] = []
        self.texts = 0
        self.cropped = False
        self.accepts = True
        """Whether no pass was refused so far."""
        self.session = started(subject, model, options, PROMPT)
        self.session.__enter__()
        try:
            self.feed(PROMPT)
        except BaseException:
            # Nobody holds this object yet who could release the model.
            self.session.pause()
            raise

    @property
    def seen(self) -> int:
        """Tokens fed to each row."""
        return sum(self.lengths)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.ids.shape[0]

    def _when(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"with {options}, after {', '.join(self.history) or 'nothing'}"

    def _text(self, length: int) -> Tensor:
        self.texts += 1
        return architectures.text(self.model, self.rows, length, seed=self.texts)

    def feed(self, length: int) -> None:
        """Feed one pass."""
        new = self._text(length)
        if not self.accepts or not go_on(self.session, new, (length,), self._when()):
            self.accepts = False
            return
        self.history.append(f"a pass of {length}")
        self.ids = torch.cat([self.ids, new], dim=1)
        self.lengths.append(length)

    def _attempt(self, name: str, call: Callable[[Any], Any]) -> bool:
        refused, _ = attempt(self.session, f"{self._when()}, {name}", call)
        self.history.append(f"a refused {name}" if refused else name)
        return not refused

    def crop(self, count: int) -> None:
        """Crop tokens that were fed after the last eviction, and after the prompt if anything may be evicted."""
        first = 1 if self.options["keep_ratio"] == 1 else self.lengths[0]
        count = min(count, self.seen - max(last_eviction(self.session.passes), first))
        if count < 1 or not self._attempt(f"a crop by {count}", lambda cache: cache.crop(-count)):
            return
        self.cropped = True
        now = state(self.session, self._when())
        self.session.passes = truncated(self.session.passes, self.seen - count, now.held)
        self.lengths = [one.length for one in self.session.passes]
        self.ids = self.ids[:, : self.seen]

    def reset(self, length: int) -> None:
        """Reset, and start with another prompt."""
        if excused(self.session.cache, "reset"):
            return
        if self._attempt("a reset", lambda cache: cache.reset()):
            restart(self.session)
            self.ids, self.lengths = self.ids[:, :0], []
            self.feed(length)

    def reorder(self, order: list[int]) -> None:
        """Reorder the rows."""
        index = torch.tensor(order, device=self.model.device)
        if self._attempt(f"reorder_cache to {order}", lambda cache: cache.reorder_cache(index)):
            self.ids = self.ids[order]

    def select(self, chosen: list[int]) -> None:
        """Select rows."""
        index = torch.tensor(chosen, device=self.model.device)
        if self._attempt(f"batch_select_indices of {chosen}", lambda cache: cache.batch_select_indices(index)):
            self.ids = self.ids[chosen]

    def repeat(self) -> None:
        """Repeat every row."""
        if self._attempt("batch_repeat_interleave by 2", lambda cache: cache.batch_repeat_interleave(2)):
            self.ids = self.ids.repeat_interleave(2, dim=0)

    def copy(self, length: int) -> None:
        """Continue with a copy, while the original is fed other tokens."""
        self.history.append("a deepcopy")
        original, self.session = self.session, copied(self.session)
        go_on(original, self._text(length), (length,), f"{self._when()} (the original)")

    def check(self) -> None:
        """Compare one more pass, and the state, with a fresh cache fed the same.

        Raises:
            Departure: if they differ.
        """
        when = self._when()
        self.feed(2)
        self.session.pause()
        if not self.accepts:
            return
        reference = fresh(self.subject, self.model, self.ids, tuple(self.lengths), self.options)
        if reference.complete:
            allowed = tolerance(self.subject, self.model, self.ids, reference)
            if self.cropped:
                # Entries that would be exact in a fresh cache may have been quantised before the crop.
                allowed = max(allowed, own_error(self.subject, self.model, **self.options))
            check_same(self.subject, self.session, 1, reference, len(self.lengths) - 1, when, allowed)


OPERATIONS: dict[str, Callable[[Batch], None]] = {
    "crop": lambda batch: batch.crop(2),
    "reorder": lambda batch: batch.reorder([(row + 1) % batch.rows for row in range(batch.rows)]),
    "select": lambda batch: batch.select([batch.rows - 1, 0][: batch.rows]),
    "repeat": Batch.repeat,
    "copy": lambda batch: batch.copy(3),
    "reset": lambda batch: batch.reset(6),
}
"""Operations for ``check_pairs``."""


def check_pairs(subject: Subject, model: architectures.Model, batches: bool) -> None:
    """Check every pair of operations, one after the other, with passes before, between and after them.

    Args:
        subject: the subject.
        model: the model.
        batches: whether the subject accepts several rows.

    Raises:
        Departure: if a cache ends otherwise than a fresh one fed the same rows.
    """
    options = {"keep_ratio": 0.5, "prune_after": 20}
    chosen = [name for name in OPERATIONS if batches or name in ("crop", "copy", "reset")]
    for first in chosen:
        for second in chosen:
            batch = Batch(subject, model, options, 3 if batches else 1)
            try:
                batch.feed(3)
                OPERATIONS[first](batch)
                batch.feed(3)
                OPERATIONS[second](batch)
                # More than prune_after, so that what is evicted shows, too.
                batch.feed(14)
                batch.check()
            finally:
                batch.session.pause()


def run_machine(subject: Subject, model: architectures.Model, batches: bool) -> None:
    """Run passes and operations in drawn orders.

    Args:
        subject: the subject.
        model: the model.
        batches: whether the subject accepts several rows.

    Raises:
        Departure: if an operation crashes, or a cache ends otherwise than a fresh one fed the same rows.
        Refused: if the subject refuses the prompt of every batch.
    """

    class Bound(Machine):
        """The machine of this subject."""

    Bound.subject, Bound.model, Bound.batches = subject, model, batches
    Bound.started = False
    run_state_machine_as_test(Bound, settings=of_profile())
    if not Bound.started:
        raise Refused(REFUSALS[-1])


class Machine(RuleBasedStateMachine):
    """A batch, to which anything may happen."""

    subject: Subject
    model: architectures.Model
    batches: bool
    started: bool
    """Whether the prompt of a batch was accepted."""
    batch: Batch | None = None

    @initialize(rows=st.sampled_from([2, 3, 1]), options=st.sampled_from([(0.5, 4), (1.0, 0), (0.5, 20), (0.3, 9)]))
    def start(self, rows: int, options: tuple[float, int]) -> None:
        """Draw options and a prompt."""
        given = {"keep_ratio": options[0], "prune_after": options[1]}
        self.batch = Batch(self.subject, self.model, given, rows if self.batches else 1)
        type(self).started |= self.batch.accepts

    @precondition(lambda self: self.batch is not None)
    @rule(data=st.data(), what=st.sampled_from(["feed", *OPERATIONS]))
    def act(self, data: st.DataObject, what: str) -> None:
        """Draw a pass or an operation.

        It is one rule, since Hypothesis would run few of several rules in each example. After a refused pass it does
        nothing: without a rule, Hypothesis would fail.
        """
        assert self.batch is not None
        if not self.batch.accepts:
            return
        batch, rows = self.batch, self.batch.rows
        if what == "crop":
            batch.crop(data.draw(st.integers(1, 12)))
        elif what == "reorder" and self.batches:
            batch.reorder(data.draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)))
        elif what == "select" and self.batches:
            batch.select(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows, unique=True)))
        elif what == "repeat" and self.batches and rows <= 3:
            batch.repeat()
        elif what == "copy":
            batch.copy(data.draw(st.integers(1, 5)))
        elif what == "reset":
            batch.reset(data.draw(st.integers(2, 12)))
        elif batch.seen < LONGEST:
            batch.feed(data.draw(st.one_of(st.just(1), st.integers(1, 9))))

    def teardown(self) -> None:
        """Compare with a fresh cache."""
        if self.batch is not None:
            try:
                self.batch.check()
            finally:
                self.batch.session.pause()
