"""How many entries a layer retains, and when it evicts, in exact integers."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from numbers import Real
from typing import Literal, get_args

from pressgauge.rules.numbers import as_written, exact_ceil, whole_number

Schedule = Literal["budget", "step", "prefill"]

UNPRUNABLE: Literal["unprunable"] = "unprunable"
"""Value of ``skip_layers``: the layers of the given model from which no press can evict."""


@dataclass(frozen=True)
class Budget:
    """When a press evicts and how many entries it retains, per layer and KV head.

    Attributes:
        keep_ratio: fraction of tokens to retain, in (0, 1], as the decimal value written.
        prune_after: number of entries up to which a layer evicts nothing.
        skip_layers: indices of layers that evict nothing, or ``"unprunable"`` for the layers of the given model from
            which no press can evict.
        sinks: number of first tokens, by position, that are never evicted.
        recent: number of last tokens, by position, that are never evicted.
        schedule: ``budget`` evicts after every pass and retains a share of the tokens seen; ``step`` evicts after every
            pass and retains a share of the entries in the cache; ``prefill`` evicts once, after the prompt's pass.
        interval: after the prompt, evict only after every ``interval``-th pass.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a value out of range.
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

    @cached_property
    def exact_ratio(self) -> Fraction:
        """``keep_ratio`` as the decimal value written."""
        return as_written(self.keep_ratio)

    @property
    def skipped(self) -> tuple[int, ...]:
        """``skip_layers`` as layer indices.

        Raises:
            ValueError: if ``skip_layers`` is ``"unprunable"``, not yet resolved against a model.
        """
        if isinstance(self.skip_layers, str):
            raise ValueError(
                f"skip_layers={self.skip_layers!r} means layers of a model, and there is none here: "
                "give their indices, or press.resolved(model)"
            )
        return self.skip_layers

    def newest(self, kept: int) -> int:
        """Number of newest tokens to protect in a pass that retains ``kept`` entries."""
        return self.recent

    def target(self, seen: int, held: int) -> int:
        """Number of entries that an evicting pass retains, never more than ``held``.

        Args:
            seen: tokens fed so far.
            held: entries before eviction.
        """
        if held <= self.prune_after:
            return held
        if self.schedule == "budget":
            size = max(self.prune_after, self.sinks + self.recent, exact_ceil(self.exact_ratio, seen))
        else:
            size = max(1, self.sinks + self.recent, exact_ceil(self.exact_ratio, held))
        return min(size, held)

    @property
    def has_own_target(self) -> bool:
        """Whether the class defines its own ``target``, for which ``prune_after`` may mean nothing."""
        return type(self).target is not Budget.target

    def checked_target(self, seen: int, held: int) -> int:
        """``target``, validated if a class defines its own; 0 of no entries.

        Raises:
            TypeError: if it is not an integer.
            ValueError: if it is more than ``held``, too few for ``sinks`` and ``recent`` or for one entry, or less than
                ``held`` with a ``keep_ratio`` of 1.
        """
        if not self.has_own_target:
            return self.target(seen, held)
        if not held:
            return 0
        size = self.target(seen, held)
        name = f"{type(self).__name__}.target({seen}, {held})"
        size = whole_number(name, size, min(held, max(1, self.sinks + self.recent)))
        if size > held:
            raise ValueError(f"{name} must be at most the {held} entries held, got {size}: return min(held, ...)")
        if size < held and self.keep_ratio == 1:
            raise ValueError(f"{name} must be {held} with keep_ratio=1, which retains everything, got {size}")
        return size

    def spares(self, tokens: int) -> bool:
        """Whether a prompt of this many tokens is too short to evict from, by ``prune_after`` or an own target."""
        return self.checked_target(tokens, tokens) == tokens if self.has_own_target else tokens <= self.prune_after

    def protected(self, kept: int) -> int:
        """``newest``, as far as the sinks leave room among ``kept`` entries, and none if it is negative.

        Raises:
            TypeError: if a class defines its own, which is not an integer.
        """
        count = self.newest(kept)
        if type(self).newest is Budget.newest:
            return count
        count = whole_number(f"{type(self).__name__}.newest({kept})", count, None)
        return max(0, min(count, max(self.recent, kept - self.sinks)))


def usual_prompt(schedules: Iterable[str], tokens: int) -> int:
    """Default number of prompt tokens of a text: three quarters if one of these schedules acts on the prompt only, else
    1."""
    return max(1, tokens * 3 // 4) if "prefill" in schedules else 1


def check_prompt(budget: Budget | None, prompt: int, columns: int, longest: int | None = None) -> None:
    """Validate the prompt length for a text.

    Args:
        budget: budget of the press; None for no press.
        prompt: columns of the prompt.
        columns: columns of the text.
        longest: tokens in the prompt of the longest row; ``prompt`` by default.

    Raises:
        ValueError: if the prompt is empty or leaves no token to score, or the press can never evict.
    """
    if not 1 <= prompt < columns:
        raise ValueError(f"prompt must be at least 1 and leave one of the {columns} tokens to score, got {prompt}")
    longest = prompt if longest is None else longest
    if budget is not None and budget.keep_ratio < 1 and budget.schedule == "prefill" and budget.spares(longest):
        reason = f"and prune_after={budget.prune_after}: give a longer prompt or a smaller prune_after"
        if budget.has_own_target:
            reason = f"all of which {type(budget).__name__}.target retains: give a longer prompt"
        raise ValueError(
            f"schedule 'prefill' acts once, after the prompt, and never with a prompt of {longest} tokens {reason}"
        )
