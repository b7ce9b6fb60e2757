"""Mutants of perplexity in one pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.ours import SCORED_BY_ATTENTION, SUBJECTS, ours
from harness.mutants.mutant import Breaks, Mutant
from pressgauge import KnormPress, onepass, replay
from pressgauge.conformance.subjects import Subject
from pressgauge.history import NEVER, plan, replaying
from properties import test_onepass
from support.budgets import SizedPress, SparingPress

KNORM = next(subject for subject in SUBJECTS if subject.name == "knorm-budget")
RANDOM = next(subject for subject in SUBJECTS if subject.name == "random-budget")
TOVA = next(subject for subject in SCORED_BY_ATTENTION if subject.name == "tova-budget")


def later(evicted_at: Tensor, by: int) -> Tensor:
    """The history with each eviction ``by`` tokens later."""
    return torch.where(evicted_at == NEVER, NEVER, evicted_at + by)


def off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Query t attends to key j if ``t <= evicted_at[j]``."""
    attend = onepass.attend
    patch.setattr(
        onepass, "attend", lambda q, k, v, table, *more, **given: attend(q, k, v, later(table, 1), *more, **given)
    )


def plain_mean(patch: pytest.MonkeyPatch) -> None:
    """The two parts of a block are merged with equal weights."""
    attend = onepass._attend

    def unweighted(*given: Any) -> tuple[Tensor, Tensor]:
        output, total = attend(*given)
        return output, torch.zeros_like(total)

    patch.setattr(onepass, "_attend", unweighted)


def first_layer(patch: pytest.MonkeyPatch) -> None:
    """The evictions of layer 0 are replayed in every layer."""
    patch.setattr(onepass, "replay", lambda *given, layer, **more: replay(*given, layer=0, **more))


def heads_the_wrong_way_round(patch: pytest.MonkeyPatch) -> None:
    """Query head h reads KV head ``h % K`` instead of ``h // (H / K)``."""
    attend = onepass.attend

    def regrouped(query: Tensor, key: Tensor, *more: Any, **given: Any) -> Tensor:
        order = torch.arange(query.shape[1]).view(-1, key.shape[1]).T.flatten()
        return attend(query[:, order], key, *more, **given)[:, order.argsort()]

    patch.setattr(onepass, "attend", regrouped)


def prompt_fed_singly(patch: pytest.MonkeyPatch) -> None:
    """The prompt is fed token by token."""
    patch.setattr(onepass, "pass_lengths", lambda tokens, prompt: [1] * tokens)


def columns_of_the_batch(patch: pytest.MonkeyPatch) -> None:
    """Evictions of a padded row are counted in columns, and its tokens without padding."""
    attend, in_layer = onepass.attend, onepass.OnePass._attend

    def unsubtracted(self: onepass.OnePass, *given: Any, **more: Any) -> Any:
        def broken(query: Tensor, key: Tensor, value: Tensor, table: Tensor, *rest: Any, **named: Any) -> Tensor:
            return attend(query, key, value, later(table, self.padding), *rest, **named)

        patch.setattr(onepass, "attend", broken)
        return in_layer(self, *given, **more)

    patch.setattr(onepass.OnePass, "_attend", unsubtracted)


def queries_of_the_future(patch: pytest.MonkeyPatch) -> None:
    """The next token's query counts, which decoding does not have yet."""

    def careless(*given: Any, queries: Tensor, **more: Any) -> Tensor:
        return replay(*given, queries=queries.roll(-1, dims=2), **more)

    patch.setattr(onepass, "replay", careless)


def of_the_fields_only(patch: pytest.MonkeyPatch) -> None:
    """The target is that of ``Budget``, whatever the class of the press defines."""

    def careless(press: KnormPress, *given: Any) -> plan.Plan:
        return plan.plan_of(KnormPress(press.keep_ratio, press.prune_after, recent=press.recent), *given)

    patch.setattr(replaying, "plan_of", careless)


def recent_only(patch: pytest.MonkeyPatch) -> None:
    """``recent`` newest tokens are protected, whatever the class of the press defines."""
    patch.setattr(replaying, "protects_recent_only", lambda press: True)


LAW = test_onepass.test_every_press_in_one_pass_equals_decoding


def onepass_mutant(name: str, what: str, seen_in: str, breaks: Breaks, subject: Subject = KNORM) -> Mutant:
    """Mutant of a correct press measured by a broken one pass."""
    return Mutant(f"onepass-{name}", what, seen_in, subject, LAW, twin=subject, breaks=breaks)


ONEPASS = [
    onepass_mutant("later", "an entry is attended to one token too long", "plausible", off_by_one),
    onepass_mutant("merge", "parts are merged without their weights", "plausible", plain_mean),
    onepass_mutant("layer", "layer 0 is replayed in every layer", "plausible", first_layer, RANDOM),
    onepass_mutant(
        "heads", "query heads are grouped the wrong way round", "kvpress b1d2865", heads_the_wrong_way_round
    ),
    onepass_mutant("prompt", "the prompt is fed token by token", "plausible", prompt_fed_singly),
    onepass_mutant("padding", "padding is counted as time", "KIVI issue 18", columns_of_the_batch),
    onepass_mutant(
        "target",
        "a target of the press's own is ignored",
        "pressgauge 1ca98b0",
        of_the_fields_only,
        ours("knorm", "budget", SizedPress),
    ),
    onepass_mutant(
        "newest",
        "own protected tokens are ignored",
        "pressgauge 1ca98b0",
        recent_only,
        ours("knorm", "budget", SparingPress),
    ),
    onepass_mutant("future", "queries of later tokens count", "plausible", queries_of_the_future, TOVA),
]
