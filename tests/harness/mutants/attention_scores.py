"""Mutants of presses that score by attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conformance import test_counts, test_entries
from conformance.ours import SCORED_BY_ATTENTION, ours
from harness.mutants.mutant import Mutant
from pressgauge import H2OPress, Press, SnapKVPress, TOVAPress
from pressgauge.conformance.subjects import subject_of
from pressgauge.presses.attention_scores import Attention, AttentionSums, LastQueries, Votes

BY_NAME = {subject.name: subject for subject in SCORED_BY_ATTENTION}
BEST = test_entries.test_the_best_entries_of_a_long_text_are_retained


def differing(attention: Attention, *, queries: Tensor | None = None, scale: float | None = None) -> Attention:
    """Attention with other queries or another scale, without precomputed results."""
    given = attention.queries if queries is None else queries
    return Attention(given, attention.keys, attention.filler, attention.scale if scale is None else scale)


class BlindToOrder(AttentionSums):
    """No causal mask: later entries of a pass receive attention of earlier queries."""

    def observe(self, attention: Attention) -> None:
        for token in range(attention.queries.shape[2]):
            super().observe(differing(attention, queries=attention.queries[:, :, token : token + 1]))


class WrongGroups(AttentionSums):
    """Query head h is assigned to KV head h modulo K."""

    def observe(self, attention: Attention) -> None:
        heads = attention.keys.shape[1]
        turned = attention.queries.unflatten(1, (-1, heads)).transpose(1, 2).flatten(1, 2)
        super().observe(differing(attention, queries=turned))


class FirstOfGroup(AttentionSums):
    """Of the query heads of a KV head, only the first counts."""

    def observe(self, attention: Attention) -> None:
        every = attention.queries.shape[1] // attention.keys.shape[1]
        super().observe(differing(attention, queries=attention.queries[:, ::every]))


class NotReordered(AttentionSums):
    """Sums are not reordered with the retained entries."""

    def keep(self, kept: Tensor) -> None:
        assert self.sums is not None
        self.sums = self.sums[..., : kept.shape[2]]


class LastPassOnly(AttentionSums):
    """Attention of earlier passes is discarded."""

    def observe(self, attention: Attention) -> None:
        self.sums = None
        super().observe(attention)


class Unscaled(LastQueries):
    """Products are not divided by the square root of the dimension."""

    def observe(self, attention: Attention) -> None:
        super().observe(differing(attention, scale=1.0))


class FirstQueries(LastQueries):
    """The first queries of a pass count instead of the last."""

    def observe(self, attention: Attention) -> None:
        super().observe(differing(attention, queries=attention.queries.flip(2)))


class OnlyThisPass(LastQueries):
    """The window starts at the last pass: queries of earlier passes are discarded."""

    def observe(self, attention: Attention) -> None:
        self._parts, self._count = [], 0
        super().observe(differing(attention))


def counting(press: type[Press], votes: Callable[[Any], Votes]) -> type[Press]:
    """A press whose layers accumulate attention differently."""

    @dataclass(frozen=True)
    class Counting(press):  # type: ignore[misc, valid-type]
        def votes(self) -> Votes:
            return votes(self)

    return Counting


@dataclass(frozen=True)
class AverageOverAge(H2OPress):
    """The attention that an entry received is divided by the number of queries since."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        total = super().score(keys, positions=positions, layer=layer, votes=votes)
        return total / (positions.max() + 1 - positions)


@dataclass(frozen=True)
class AllQueries(SnapKVPress):
    """All queries count, not only those of the window, which favours older entries."""

    def votes(self) -> Votes:
        return AttentionSums()


@dataclass(frozen=True)
class WindowCounted(SnapKVPress):
    """Attention within the window raises the scores of its neighbours."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert votes is not None
        pooled: Tensor = torch.nn.functional.avg_pool1d(votes.of(keys), self.kernel, 1, self.kernel // 2)
        return pooled


@dataclass(frozen=True)
class HeadsAlone(TOVAPress):
    """Each KV head uses its own attention instead of the mean over heads."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert votes is not None
        return votes.of(keys)


@dataclass(frozen=True)
class QuestionInTheWindow(SnapKVPress):
    """The prompt is compressed after the next pass, so queries of the question count."""

    def target(self, seen: int, held: int) -> int:
        # The first pass is the prompt; after the eviction, fewer entries are held than seen.
        first = vars(self).setdefault("first", seen)
        if held < seen or seen <= first:
            vars(self)["first"] = min(first, seen)
            return held
        return super().target(seen, held)


def questioned(keep_ratio: float, **options: Any) -> Press:
    """A press that acts after the second pass."""
    return QuestionInTheWindow(keep_ratio, **{**options, "schedule": "step"})


QUESTIONED = subject_of(
    "question-in-window",
    questioned,
    {"kind": "context", "schedule": "prefill", "score": "snapkv", "recent": 2, "takes": ("sinks",)},
    recent=2,
)

ATTENTION_SCORES = [
    Mutant("own-scores-causal", "no causal mask: later entries of a pass receive attention of earlier queries",
           "plausible", ours("h2o", "budget", counting(H2OPress, lambda press: BlindToOrder())), BEST,
           BY_NAME["h2o-budget"]),
    Mutant("own-scores-groups", "query heads are grouped the wrong way round", "kvpress b1d2865",
           ours("h2o", "budget", counting(H2OPress, lambda press: WrongGroups())), BEST, BY_NAME["h2o-budget"]),
    Mutant("own-scores-first", "of the query heads of a KV head, only the first counts", "plausible",
           ours("h2o", "prefill", counting(H2OPress, lambda press: FirstOfGroup())), BEST, BY_NAME["h2o-prefill"]),
    Mutant("own-scores-order", "sums of attention are not reordered with the entries", "plausible",
           ours("h2o", "budget", counting(H2OPress, lambda press: NotReordered())), BEST, BY_NAME["h2o-budget"]),
    Mutant("own-scores-forgotten", "only the attention of the last pass counts", "plausible",
           ours("h2o", "budget", counting(H2OPress, lambda press: LastPassOnly())), BEST, BY_NAME["h2o-budget"]),
    Mutant("own-scores-average", "attention is averaged over age instead of summed", "plausible",
           ours("h2o", "prefill", AverageOverAge), BEST, BY_NAME["h2o-prefill"]),
    Mutant("own-scores-age", "all queries count, which favours older entries", "plausible",
           ours("snapkv", "prefill", AllQueries, recent=2), BEST, BY_NAME["snapkv-prefill"]),
    Mutant("own-scores-window", "attention within the observation window counts", "plausible",
           ours("snapkv", "prefill", WindowCounted, recent=2), BEST, BY_NAME["snapkv-prefill"]),
    Mutant("own-scores-pass", "the observation window starts at the last pass", "plausible",
           ours("snapkv", "budget", counting(SnapKVPress, lambda press: OnlyThisPass(press.recent)), recent=2),
           BEST, BY_NAME["snapkv-budget"]),
    Mutant("own-scores-question", "the observation window includes the question after the prompt", "plausible",
           QUESTIONED, test_counts.test_every_layer_retains_the_number_its_schedule_sets, BY_NAME["snapkv-prefill"]),
    Mutant("own-scores-scale", "products are not divided by the square root of the dimension", "plausible",
           ours("tova", "budget", counting(TOVAPress, lambda press: Unscaled(1))), BEST, BY_NAME["tova-budget"]),
    Mutant("own-scores-query", "the first query of a pass counts instead of the last", "plausible",
           ours("tova", "prefill", counting(TOVAPress, lambda press: FirstQueries(1))), BEST, BY_NAME["tova-prefill"]),
    Mutant("own-scores-heads", "scores are not averaged over heads", "plausible",
           ours("tova", "budget", HeadsAlone), BEST, BY_NAME["tova-budget"]),
]  # fmt: skip
