"""Counts of the tokens fed to a batch, and of the entries that each row retains."""

from collections.abc import Sequence
from typing import NamedTuple

from pressgauge.rules.budget import Budget
from pressgauge.rules.numbers import whole_number


class Balance(NamedTuple):
    """Counts after a pass.

    Attributes:
        columns: columns fed so far.
        padding: columns of padding, per row.
        held: entries to retain, per row.
    """

    columns: int
    padding: list[int]
    held: list[int]

    @property
    def seen(self) -> list[int]:
        """Tokens fed so far, per row."""
        return [self.columns - padding for padding in self.padding]


class Ledger:
    """Counts of tokens fed and entries to retain, shared by all layers that evict.

    A batch is a rectangle of columns. The first ``padding[b]`` columns of row b are padding and are not counted.

    Args:
        budget: budget of the press.
        prompt_length: columns of the prompt; by default the first pass is the prompt.

    Raises:
        TypeError: if ``prompt_length`` is not an integer.
        ValueError: if ``prompt_length`` is less than 1.
    """

    def __init__(self, budget: Budget, prompt_length: int | None = None) -> None:
        self.budget = budget
        self.prompt_length = None if prompt_length is None else whole_number("prompt_length", prompt_length, 1)
        self.columns = 0
        self.padding: list[int] = []
        self.held: list[int] = []
        self.cut = False
        """Whether the last pass evicts."""
        self.acts = False
        """Whether the last pass is one after which the schedule evicts."""
        self._ends: list[int] = []
        self._later_passes = 0

    @property
    def balance(self) -> Balance:
        """Counts after the last pass."""
        return Balance(self.columns, self.padding, self.held)

    @property
    def seen(self) -> list[int]:
        """Tokens fed so far, per row."""
        return self.balance.seen

    def _after(self, tokens: int) -> tuple[bool, int, int]:
        """Whether a pass of ``tokens`` evicts, the prompt length, and the number of later passes."""
        prompt = tokens if self.prompt_length is None else self.prompt_length
        later = self._later_passes + (self.columns >= prompt)
        if later:
            return self.budget.schedule != "prefill" and later % self.budget.interval == 0, prompt, later
        return self.budget.schedule != "prefill" or self.columns + tokens >= prompt, prompt, 0

    def _held_after(self, tokens: int, padding: Sequence[int], acts: bool) -> tuple[list[int], list[int]]:
        before = self.held or [0] * len(padding)
        old = self.padding or [0] * len(padding)
        arrived = [held + tokens - pad + had for held, had, pad in zip(before, old, padding, strict=True)]
        if not acts:
            return arrived, arrived
        columns = self.columns + tokens
        targets: dict[tuple[int, int], int] = {}
        for row in zip(padding, arrived, strict=True):
            if row not in targets:
                targets[row] = self.budget.checked_target(columns - row[0], row[1])
        return arrived, [targets[row] for row in zip(padding, arrived, strict=True)]

    @property
    def finished(self) -> bool:
        """Whether no later pass can evict anything."""
        return self.budget.keep_ratio == 1 or (self.budget.schedule == "prefill" and self._later_passes > 0)

    def would_act(self, tokens: int) -> bool:
        """Whether the schedule evicts after a next pass of ``tokens`` columns."""
        return self._after(tokens)[0]

    def would_cut(self, tokens: int, padding: Sequence[int]) -> bool:
        """Whether a next pass of ``tokens`` columns would evict.

        Args:
            tokens: columns of the pass.
            padding: columns of padding of each row, after the pass.
        """
        arrived, kept = self._held_after(tokens, padding, self._after(tokens)[0])
        return arrived != kept

    def feed(self, tokens: int, padding: Sequence[int]) -> None:
        """Count one pass.

        Args:
            tokens: columns of the pass.
            padding: columns of padding of each row, after the pass.
        """
        self.acts, self.prompt_length, self._later_passes = self._after(tokens)
        arrived, self.held = self._held_after(tokens, padding, self.acts)
        self.cut = arrived != self.held
        self.columns += tokens
        self.padding = list(padding)
        self._ends.append(self.columns)

    def crop(self, columns: int) -> None:
        """Restore the state after ``columns`` columns. Nothing may have been evicted since."""
        seen = self.seen
        self.columns = columns
        self.padding = [min(padding, columns) for padding in self.padding]
        self.held = [held - (before - after) for held, before, after in zip(self.held, seen, self.seen, strict=True)]
        starts = [0, *self._ends]
        self._ends = [min(end, columns) for start, end in zip(starts, self._ends, strict=False) if start < columns]
        starts = [0, *self._ends]
        prompt = self.prompt_length or 0
        self._later_passes = sum(start >= prompt for start in starts[: len(self._ends)])
        self.cut = False

    def select(self, rows: Sequence[int]) -> None:
        """Reorder the batch: row i becomes the former row ``rows[i]``."""
        self.padding = [self.padding[row] for row in rows]
        self.held = [self.held[row] for row in rows]


def pass_lengths(tokens: int, prompt: int) -> list[int]:
    """Lengths of the passes of a text: ``prompt`` tokens in one pass, then single tokens."""
    return [prompt] + [1] * (tokens - prompt)
