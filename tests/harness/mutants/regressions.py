"""Mutants of the package that a regression baseline must catch."""

from dataclasses import replace
from functools import cache as cache_results
from typing import Any

import pytest
import torch

from harness.mutants.mutant import Breaks, Mutant
from pressgauge import KnormPress, cache
from pressgauge.presses import ranking
from pressgauge.rules import budget, numbers
from regression.recorded import rows_are_as_recorded


def wrong_default(patch: pytest.MonkeyPatch) -> None:
    """The default of ``prune_after`` is 32."""
    check = budget.Budget.__post_init__

    def careless(self: budget.Budget) -> None:
        if self.prune_after == 512:
            object.__setattr__(self, "prune_after", 32)
        check(self)

    patch.setattr(budget.Budget, "__post_init__", careless)


def boundary(patch: pytest.MonkeyPatch) -> None:
    """A layer that holds P entries evicts."""
    target = budget.Budget.target
    less = cache_results(lambda rules: replace(rules, prune_after=max(0, rules.prune_after - 1)))
    patch.setattr(budget.Budget, "target", lambda self, seen, held: target(less(self), seen, held))


def floor(patch: pytest.MonkeyPatch) -> None:
    """Targets are rounded down."""
    ceil = numbers.exact_ceil
    patch.setattr(budget, "exact_ceil", lambda ratio, count: count - ceil(1 - ratio, count))


def recent(patch: pytest.MonkeyPatch) -> None:
    """One recent token fewer is protected."""
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
    """Entries are read in the order of storage."""

    def stored(self: cache.PressedLayer, name: str) -> torch.Tensor | None:
        return self.storage.held(name) if self.is_initialized else None

    patch.setattr(cache.PressedLayer, "_ordered", stored)


def sort(patch: pytest.MonkeyPatch) -> None:
    """The cache is sorted after every pass, without need."""
    settle = cache.PressedLayer.settle

    def careless(self: cache.PressedLayer) -> None:
        pending = self.pending
        settle(self)
        if pending and self.is_initialized:
            self.storage["keys"].sort(dim=2)

    patch.setattr(cache.PressedLayer, "settle", careless)


def regression(name: str, what: str, file: str, breaks: Breaks, *says: str) -> Mutant:
    """Mutant with the baseline that must find it, and patterns of its finding: a changed field and a part of the
    explanation."""
    return Mutant(
        f"regression-{name}", what, "plausible", file, rows_are_as_recorded, twin=file, breaks=breaks, says=says
    )


REGRESSIONS = [
    regression(
        "default", "prune_after 512 -> 32", "perplexity-reference", wrong_default, ": held", "look at prune_after"
    ),
    regression("boundary", "> -> >= at prune_after", "perplexity-reference", boundary, ": held", "look at prune_after"),
    regression("floor", "ceil -> floor", "perplexity-reference", floor, ": held", "the rounding of the ratio"),
    regression("recent", "recent off by one", "entries", recent, ": tokens", "what is protected"),
    regression("position", "position from held", "decoding", position, ": nll", "positions and masks"),
    regression("float16", "norms in float16", "perplexity-reference", narrow, ": evicted_at", "look at scores"),
    regression("order", "order lost", "entries", order, ": order", "not read in the order of positions"),
    regression(
        "sort", "a superfluous sort of the cache per step", "cost", sort, ": decode operators", "Only cost moved"
    ),
]
