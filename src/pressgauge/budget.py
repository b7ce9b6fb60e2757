"""How many entries stay, and when: integers only, exact.

A ratio is turned into a number of entries here and nowhere else.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from typing import Literal, get_args

Schedule = Literal["budget", "step", "prefill"]
UNPRUNABLE: Literal["unprunable"] = "unprunable"
"""As ``skip_layers``: the layers of the model at hand that no press can prune."""


@lru_cache(maxsize=256)
def _as_written(ratio: str) -> Fraction:
    return Fraction(ratio)


def exact_ceil(ratio: float, count: int) -> int:
    """The ceiling of ``ratio * count``, taken of the decimal value that was written.

    >>> import math
    >>> exact_ceil(0.07, 100), math.ceil(0.07 * 100)
    (7, 8)
    """
    fraction = _as_written(str(ratio))
    return -(-fraction.numerator * count // fraction.denominator)


def exact_floor(ratio: float, count: int) -> int:
    """The floor of ``ratio * count``, taken of the decimal value that was written."""
    fraction = _as_written(str(ratio))
    return fraction.numerator * count // fraction.denominator


def whole_number(name: str, value: object, least: int | None) -> int:
    """``value`` as a plain integer of at least ``least``, if that is given, or an error that calls it ``name``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # the TypeError is what is asked for
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def whole_numbers(name: str, values: object) -> list[int]:
    """``values`` as plain integers, or a ``TypeError`` that names what they are."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of whole numbers, got {values!r}")
    return [whole_number(f"a number in {name}", value, None) for value in values]


@dataclass(frozen=True)
class Budget:
    """When a press acts and how many entries it leaves, per layer and KV head.

    Attributes:
        keep_ratio: fraction of tokens kept, in (0, 1]; the decimal value as written counts.
        prune_after: a layer that holds this many entries or fewer is never pruned.
        skip_layers: indices of layers that are never pruned, or ``"unprunable"`` for those of the model at hand that
            cannot be.
        sinks: how many of the first tokens by position are never evicted.
        recent: how many of the last tokens by position are never evicted.
        schedule: ``budget`` acts after every pass and keeps a share of the tokens seen; ``step`` acts after every
            pass and keeps a share of the entries held; ``prefill`` acts once, after the prompt's pass.
        interval: after the prompt, act after every ``interval``-th pass only.

    Raises:
        TypeError: for a value of the wrong kind.
        ValueError: for a value out of its range.
    """

    keep_ratio: float
    prune_after: int = 512
    skip_layers: tuple[int, ...] | Literal["unprunable"] = ()
    sinks: int = 0
    recent: int = 0
    schedule: Schedule = "budget"
    interval: int = 1

    def __post_init__(self) -> None:
        ratio: object = self.keep_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, Real | Decimal):
            raise TypeError(f"keep_ratio must be a number in (0, 1], got {ratio!r}")
        if not 0 < float(ratio) <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1], got {ratio}")
        if self.skip_layers != UNPRUNABLE:
            if isinstance(self.skip_layers, str) or not isinstance(self.skip_layers, Iterable):
                raise TypeError(
                    f"skip_layers must be a sequence of layer indices or {UNPRUNABLE!r}, got {self.skip_layers!r}"
                )
            skipped = sorted({whole_number("a layer index in skip_layers", layer, 0) for layer in self.skip_layers})
            object.__setattr__(self, "skip_layers", tuple(skipped))
        for name, least in (("prune_after", 0), ("sinks", 0), ("recent", 0), ("interval", 1)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        if self.schedule == "prefill" and self.interval != 1:
            raise ValueError(f"interval must be 1 with schedule 'prefill', which acts only once, got {self.interval}")

    @property
    def skipped(self) -> tuple[int, ...]:
        """``skip_layers`` as indices.

        Raises:
            ValueError: if they were not resolved against a model.
        """
        if isinstance(self.skip_layers, str):
            raise ValueError(
                f"skip_layers={self.skip_layers!r} means layers of a model, and there is none here: "
                "give their indices, or press.resolved(model)"
            )
        return self.skip_layers

    def newest(self, kept: int) -> int:
        """How many of the newest tokens are never evicted by a pass that leaves ``kept`` entries."""
        return self.recent

    def target(self, seen: int, held: int) -> int:
        """How many of ``held`` entries an acting pass leaves, after ``seen`` tokens: never more than ``held``."""
        if held <= self.prune_after:
            return held
        if self.schedule == "budget":
            size = max(self.prune_after, self.sinks + self.recent, exact_ceil(self.keep_ratio, seen))
        else:
            size = max(1, self.sinks + self.recent, exact_ceil(self.keep_ratio, held))
        return min(size, held)


class Ledger:
    """Counts what a batch of sequences was fed, and what is to stay of it: the same for every layer that is pruned.

    A batch is a rectangle of columns; the first ``padding[b]`` columns of row b are padding and count for nothing.

    Args:
        budget: the rules.
        prompt_length: columns of the prompt; the first pass is the prompt if it is not given.

    Raises:
        TypeError, ValueError: if ``prompt_length`` is not a positive whole number.
    """

    def __init__(self, budget: Budget, prompt_length: int | None = None) -> None:
        self.budget = budget
        self.prompt_length = None if prompt_length is None else whole_number("prompt_length", prompt_length, 1)
        self.columns = 0
        self.padding: list[int] = []
        self.held: list[int] = []
        self.cut = False
        """Whether the last pass evicts."""
        self._ends: list[int] = []
        self._later_passes = 0

    @property
    def seen(self) -> list[int]:
        """Tokens fed so far, per row."""
        return [self.columns - padding for padding in self.padding]

    def _after(self, tokens: int) -> tuple[bool, int, int]:
        """Whether a pass of ``tokens`` acts, and the prompt's length and number of later passes it leaves."""
        prompt = tokens if self.prompt_length is None else self.prompt_length
        later = self._later_passes + (self.columns >= prompt)
        if later:
            return self.budget.schedule != "prefill" and later % self.budget.interval == 0, prompt, later
        return self.budget.schedule != "prefill" or self.columns + tokens >= prompt, prompt, 0

    def _held_after(self, tokens: int, padding: Sequence[int], acts: bool) -> tuple[list[int], list[int]]:
        before = self.held or [0] * len(padding)
        old = self.padding or [0] * len(padding)
        columns = self.columns + tokens
        arrived: dict[tuple[int, int, int], tuple[int, int]] = {}
        rows = list(zip(before, old, padding, strict=True))
        for row in rows:
            if row not in arrived:
                held = row[0] + (columns - row[2]) - (self.columns - row[1])
                arrived[row] = held, self.budget.target(columns - row[2], held) if acts else held
        return [arrived[row][0] for row in rows], [arrived[row][1] for row in rows]

    @property
    def finished(self) -> bool:
        """Whether no later pass can evict anything."""
        return self.budget.keep_ratio == 1 or (self.budget.schedule == "prefill" and self._later_passes > 0)

    def would_cut(self, tokens: int, padding: Sequence[int]) -> bool:
        """Whether a next pass of ``tokens`` columns would evict; ``padding`` is that of each row after the pass."""
        arrived, kept = self._held_after(tokens, padding, self._after(tokens)[0])
        return arrived != kept

    def feed(self, tokens: int, padding: Sequence[int]) -> None:
        """Count one pass of ``tokens`` columns; ``padding`` is that of each row after the pass."""
        acts, self.prompt_length, self._later_passes = self._after(tokens)
        arrived, self.held = self._held_after(tokens, padding, acts)
        self.cut = arrived != self.held
        self.columns += tokens
        self.padding = list(padding)
        self._ends.append(self.columns)

    def crop(self, columns: int) -> None:
        """Go back to the state after ``columns`` columns. Nothing may have been evicted since."""
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
        """Make row i what row ``rows[i]`` was."""
        self.padding = [self.padding[row] for row in rows]
        self.held = [self.held[row] for row in rows]


def pass_lengths(tokens: int, prompt: int) -> list[int]:
    """The passes of a text whose first ``prompt`` tokens are one pass and whose others are fed singly."""
    return [prompt] + [1] * (tokens - prompt)
