"""Regressions that are put into the code one at a time, each with the baseline that has to catch it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache as cache_results
from typing import Any

import pytest
import torch

from pressgauge import KnormPress, cache
from pressgauge.presses import ranking
from pressgauge.rules import budget, numbers

Breaks = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Injection:
    """A regression.

    Attributes:
        what: in words.
        file: the baseline that catches it.
        field: one of the fields that change.
        explanation: a part of what is said of it.
        breaks: puts it into the code.
    """

    what: str
    file: str
    field: str
    explanation: str
    breaks: Breaks


def wrong_default(patch: pytest.MonkeyPatch) -> None:
    """Whoever does not say ``prune_after`` gets 32."""
    check = budget.Budget.__post_init__

    def careless(self: budget.Budget) -> None:
        if self.prune_after == 512:
            object.__setattr__(self, "prune_after", 32)
        check(self)

    patch.setattr(budget.Budget, "__post_init__", careless)


def boundary(patch: pytest.MonkeyPatch) -> None:
    """A layer that holds P entries is pruned."""
    target = budget.Budget.target
    less = cache_results(lambda rules: replace(rules, prune_after=max(0, rules.prune_after - 1)))
    patch.setattr(budget.Budget, "target", lambda self, seen, held: target(less(self), seen, held))


def floor(patch: pytest.MonkeyPatch) -> None:
    """A share is rounded down."""
    ceil = numbers.exact_ceil
    patch.setattr(budget, "exact_ceil", lambda ratio, count: count - ceil(1 - ratio, count))


def recent(patch: pytest.MonkeyPatch) -> None:
    """One token fewer is protected."""
    protect = ranking.protect
    patch.setattr(ranking, "protect", lambda ranks, positions, first: protect(ranks, positions, first + 1))


def position(patch: pytest.MonkeyPatch) -> None:
    """The next token's position is the number of entries held."""
    patch.setattr(cache.PressedLayer, "get_seq_length", lambda self: self.used)


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Norms are taken in half precision."""

    def score(self: KnormPress, keys: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        norm: torch.Tensor = keys.half().norm(dim=-1)
        return -norm

    patch.setattr(KnormPress, "score", score)


def order(patch: pytest.MonkeyPatch) -> None:
    """What is read is in the order of storage."""

    def stored(self: cache.PressedLayer, name: str) -> torch.Tensor | None:
        return self.storage.held(name) if self.is_initialized else None

    patch.setattr(cache.PressedLayer, "_ordered", stored)


def sort(patch: pytest.MonkeyPatch) -> None:
    """The cache is sorted after every pass, for nothing."""
    settle = cache.PressedLayer.settle

    def careless(self: cache.PressedLayer) -> None:
        pending = self.pending
        settle(self)
        if pending and self.is_initialized:
            self.storage["keys"].sort(dim=2)

    patch.setattr(cache.PressedLayer, "settle", careless)


INJECTIONS = [
    Injection("prune_after 512 -> 32", "perplexity-reference", "held", "look at prune_after", wrong_default),
    Injection("> -> >= at prune_after", "perplexity-reference", "held", "look at prune_after", boundary),
    Injection("ceil -> floor", "perplexity-reference", "held", "the rounding of the ratio", floor),
    Injection("recent off by one", "entries", "tokens", "what is protected", recent),
    Injection("position from held", "decoding", "nll", "positions and masks", position),
    Injection("norms in float16", "perplexity-reference", "evicted_at", "look at scores", narrow),
    Injection("order lost", "entries", "order", "not read in the order of positions", order),
    Injection("a superfluous sort of the cache per step", "cost", "decode operators", "Only cost moved", sort),
]
