"""Mutants of scores that come from attention, each a press in which the votes are cast or counted wrongly."""

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
BEST = test_entries.test_the_best_entries_of_a_long_text_stay


def differing(attention: Attention, *, queries: Tensor | None = None, scale: float | None = None) -> Attention:
    """The attention of other queries or another scale; nothing is known of it beforehand."""
    given = attention.queries if queries is None else queries
    return Attention(given, attention.keys, attention.filler, attention.scale if scale is None else scale)


class BlindToOrder(AttentionSums):
    """No causal mask: a query of a pass votes for what comes after it, too."""

    def observe(self, attention: Attention) -> None:
        for token in range(attention.queries.shape[2]):
            super().observe(differing(attention, queries=attention.queries[:, :, token : token + 1]))


class WrongGroups(AttentionSums):
    """Query head h votes for KV head h modulo K."""

    def observe(self, attention: Attention) -> None:
        heads = attention.keys.shape[1]
        turned = attention.queries.unflatten(1, (-1, heads)).transpose(1, 2).flatten(1, 2)
        super().observe(differing(attention, queries=turned))


class FirstOfGroup(AttentionSums):
    """Of the query heads that read a KV head only the first votes."""

    def observe(self, attention: Attention) -> None:
        every = attention.queries.shape[1] // attention.keys.shape[1]
        super().observe(differing(attention, queries=attention.queries[:, ::every]))


class StayBehind(AttentionSums):
    """Sums do not go with the entries that stay."""

    def keep(self, kept: Tensor) -> None:
        assert self.sums is not None
        self.sums = self.sums[..., : kept.shape[2]]


class FromNowOn(AttentionSums):
    """What earlier passes gave is forgotten."""

    def observe(self, attention: Attention) -> None:
        self.sums = None
        super().observe(attention)


class Unscaled(LastQueries):
    """Products are not divided by the root of the dimension: attention is sharper than the model's."""

    def observe(self, attention: Attention) -> None:
        super().observe(differing(attention, scale=1.0))


class FirstQueries(LastQueries):
    """The first queries of a pass vote instead of its last."""

    def observe(self, attention: Attention) -> None:
        super().observe(differing(attention, queries=attention.queries.flip(2)))


class OnlyThisPass(LastQueries):
    """The window is that of the last pass, however short: queries of earlier ones are not kept."""

    def observe(self, attention: Attention) -> None:
        self._parts, self._count = [], 0
        super().observe(differing(attention))


def counting(press: type[Press], votes: Callable[[Any], Votes]) -> type[Press]:
    """A press whose layers remember something else of queries."""

    @dataclass(frozen=True)
    class Counting(press):  # type: ignore[misc, valid-type]
        def votes(self) -> Votes:
            return votes(self)

    return Counting


@dataclass(frozen=True)
class AverageOverAge(H2OPress):
    """What an entry received is divided by how many queries have seen it, which takes the favour of age away."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        total = super().score(keys, positions=positions, layer=layer, votes=votes)
        return total / (positions.max() + 1 - positions)


@dataclass(frozen=True)
class SumsInTheWindow(SnapKVPress):
    """All queries so far vote, not those of the window: the older an entry, the more votes it has."""

    def votes(self) -> Votes:
        return AttentionSums()


@dataclass(frozen=True)
class WindowVotesForItself(SnapKVPress):
    """What the window's queries give to the window raises its neighbours."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert votes is not None
        pooled: Tensor = torch.nn.functional.avg_pool1d(votes.of(keys), self.kernel, 1, self.kernel // 2)
        return pooled


@dataclass(frozen=True)
class HeadsAlone(TOVAPress):
    """Each KV head goes by its own attention, although the heads of a layer are to agree."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert votes is not None
        return votes.of(keys)


@dataclass(frozen=True)
class QuestionInTheWindow(SnapKVPress):
    """The prompt is compressed after the next pass, so that the question behind it has voted."""

    def target(self, seen: int, held: int) -> int:
        # Once cut, less is held than seen; and what is seen first is the prompt.
        first = vars(self).setdefault("first", seen)
        if held < seen or seen <= first:
            vars(self)["first"] = min(first, seen)
            return held
        return super().target(seen, held)


def questioned(keep_ratio: float, **options: Any) -> Press:
    """Looks after every pass, to act after the second."""
    return QuestionInTheWindow(keep_ratio, **{**options, "schedule": "step"})


QUESTIONED = subject_of(
    "question-in-window",
    questioned,
    {"kind": "context", "schedule": "prefill", "score": "snapkv", "recent": 2, "takes": ("sinks",)},
    recent=2,
)

ATTENTION_SCORES = [
    Mutant("own-votes-causal", "the score has no causal mask: later entries of a pass get votes of earlier queries",
           "plausible", ours("h2o", "budget", counting(H2OPress, lambda press: BlindToOrder())), BEST,
           BY_NAME["h2o-budget"]),
    Mutant("own-votes-groups", "query heads vote for KV heads grouped the wrong way round", "kvpress b1d2865",
           ours("h2o", "budget", counting(H2OPress, lambda press: WrongGroups())), BEST, BY_NAME["h2o-budget"]),
    Mutant("own-votes-first", "of the query heads of a KV head only the first votes", "plausible",
           ours("h2o", "prefill", counting(H2OPress, lambda press: FirstOfGroup())), BEST, BY_NAME["h2o-prefill"]),
    Mutant("own-votes-behind", "sums of attention stay behind when entries move", "plausible",
           ours("h2o", "budget", counting(H2OPress, lambda press: StayBehind())), BEST, BY_NAME["h2o-budget"]),
    Mutant("own-votes-forgotten", "only the last pass's votes count", "plausible",
           ours("h2o", "budget", counting(H2OPress, lambda press: FromNowOn())), BEST, BY_NAME["h2o-budget"]),
    Mutant("own-votes-average", "votes are averaged over age where they are to be summed", "plausible",
           ours("h2o", "prefill", AverageOverAge), BEST, BY_NAME["h2o-prefill"]),
    Mutant("own-votes-age", "all queries vote, so that the older an entry the more votes it has", "plausible",
           ours("snapkv", "prefill", SumsInTheWindow, recent=2), BEST, BY_NAME["snapkv-prefill"]),
    Mutant("own-votes-window", "the observation window votes for itself", "plausible",
           ours("snapkv", "prefill", WindowVotesForItself, recent=2), BEST, BY_NAME["snapkv-prefill"]),
    Mutant("own-votes-pass", "the window ends where the pass began", "plausible",
           ours("snapkv", "budget", counting(SnapKVPress, lambda press: OnlyThisPass(press.recent)), recent=2),
           BEST, BY_NAME["snapkv-budget"]),
    Mutant("own-votes-question", "the question behind the prompt is in the observation window", "plausible",
           QUESTIONED, test_counts.test_every_layer_holds_what_the_schedule_says, BY_NAME["snapkv-prefill"]),
    Mutant("own-votes-scale", "products are not divided by the root of the dimension", "plausible",
           ours("tova", "budget", counting(TOVAPress, lambda press: Unscaled(1))), BEST, BY_NAME["tova-budget"]),
    Mutant("own-votes-query", "the first query of a pass votes instead of the last", "plausible",
           ours("tova", "prefill", counting(TOVAPress, lambda press: FirstQueries(1))), BEST, BY_NAME["tova-prefill"]),
    Mutant("own-votes-heads", "heads that are to agree decide for themselves", "plausible",
           ours("tova", "budget", HeadsAlone), BEST, BY_NAME["tova-budget"]),
]  # fmt: skip
