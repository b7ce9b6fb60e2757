"""When a press evicts from a layer that is fed passes of known lengths, and how many entries."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property, lru_cache

from pressgauge.rules import Balance, Budget, Ledger


@dataclass(frozen=True)
class Slots:
    """Eviction slots of a row, equal for every head of every layer of a model.

    Attributes:
        seen: per slot, ascending, the number of columns fed after the pass that evicts; a pass has one slot per evicted
            entry.
        first: per token of the row, the first slot it can take: that of the first evicting pass at which the token is
            neither a sink nor recent; the number of slots if there is none.
    """

    seen: list[int]
    first: list[int]


class Plan:
    """The passes that evict, equal for every layer of a model.

    Args:
        budget: budget of the press.
        passes: tokens of each pass.
        prompt_length: columns of the prompt; by default the first pass is the prompt.
        padding: columns of padding, per row.

    Attributes:
        cuts: counts after each pass that evicts, ascending.
    """

    def __init__(
        self, budget: Budget, passes: Sequence[int], prompt_length: int | None, padding: Sequence[int]
    ) -> None:
        ledger = Ledger(budget, prompt_length)
        self.cuts: list[Balance] = []
        for tokens in passes:
            ledger.feed(tokens, [min(pad, ledger.columns + tokens) for pad in padding])
            if ledger.cut:
                self.cuts.append(ledger.balance)
        self._budget, self._last = budget, ledger.balance

    @cached_property
    def slots(self) -> list[Slots]:
        """Eviction slots of each row, where ``recent`` newest tokens are protected in every pass."""
        budget = self._budget
        slots = [Slots([], []) for _ in self._last.held]
        held, seen = [0] * len(slots), [0] * len(slots)
        for cut in self.cuts:
            for row, slot in enumerate(slots):
                count = held[row] + cut.seen[row] - seen[row] - cut.held[row]
                if count:
                    released = cut.seen[row] - budget.recent - len(slot.first)
                    slot.first.extend([len(slot.seen)] * released)
                    slot.seen.extend([cut.columns] * count)
            held, seen = cut.held, cut.seen
        for row, slot in enumerate(slots):
            sinks = min(budget.sinks, len(slot.first))
            slot.first[:sinks] = [len(slot.seen)] * sinks
            slot.first.extend([len(slot.seen)] * (self._last.seen[row] - len(slot.first)))
        return slots


@lru_cache(maxsize=8)
def _shared(
    budget: Budget, ratio: Fraction, passes: tuple[int, ...], prompt_length: int | None, padding: tuple[int, ...]
) -> Plan:
    """The plan of a budget, computed once for all layers of a model.

    ``ratio``, its ``exact_ratio``, is a cache key of its own: budgets that compare equal may differ in it.
    """
    return Plan(budget, passes, prompt_length, padding)


def plan_of(press: Budget, passes: Sequence[int], prompt_length: int | None, padding: Sequence[int]) -> Plan:
    """The plan of a press. Arguments are those of ``Plan``."""
    if press.has_own_target or type(press).exact_ratio is not Budget.exact_ratio:
        # What a class of its own retains may depend on attributes of its own.
        return Plan(press, passes, prompt_length, padding)
    budget = Budget(**{field.name: getattr(press, field.name) for field in fields(Budget)})
    return _shared(budget, press.exact_ratio, tuple(passes), prompt_length, tuple(padding))


def protects_recent_only(press: Budget) -> bool:
    """Whether a press protects the same number of newest tokens, ``recent``, in every pass."""
    return type(press).newest is Budget.newest
