"""Entries of a press whose scores are the same in any order: another entry takes the place of an evicted one."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import H2OPress, KeyDiffPress, KnormPress, Press, PressedCache, TOVAPress
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using
from pressgauge.presses.attention_scores import AttentionSums, Votes

PRESSES: list[Press] = [
    H2OPress(0.5, prune_after=100, recent_share=0.04),
    TOVAPress(0.5, prune_after=100),
    KeyDiffPress(0.5, prune_after=100),
]


def decoded(press: Press, model: Any, rows: int = 2) -> PressedCache:
    """The cache after a prompt of 150 tokens and later passes of 1 to 3."""
    cache = DynamicCache(config=model.config)
    lengths = [150, *[1] * 12, 3, 1, 2, *[1] * 8]
    with press(model), torch.no_grad():
        for part in architectures.tokens(rows, sum(lengths)).split(lengths, dim=1):
            model(part, **using(cache))
    assert isinstance(cache, PressedCache)
    return cache


def ascending(positions: Tensor) -> bool:
    """Whether entries are in order of position, padding slots apart."""
    return bool(((positions == positions.cummax(dim=-1).values) | (positions < 0)).all())


def derived(press: Press, orders: list[bool]) -> Press:
    """A press with a score of its own, which gives that of ``press`` and notes in which order entries are given."""

    class Derived(type(press)):  # type: ignore[misc]
        def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
            orders.append(ascending(positions))
            scores: Tensor = super().score(keys, positions=positions, layer=layer, votes=votes)
            return scores

    found: Press = Derived(**{field.name: getattr(press, field.name) for field in fields(press)})
    return found


@pytest.mark.parametrize("window", [None, 160])
@pytest.mark.parametrize("press", PRESSES, ids=repr)
def test_the_order_changes_no_eviction(press: Press, window: int | None) -> None:
    """A press leaves entries where they are; one derived from it, with a score of its own, is given them in order of
    position and evicts the same."""
    orders: list[bool] = []
    model = architectures.build("mistral", sliding_window=window)
    own, other = decoded(press, model), decoded(derived(press, orders), model)
    assert not any(ascending(layer.storage.held("positions")) for layer in own.pressed)
    assert orders
    assert all(orders)
    assert all(map(torch.equal, own.evicted_at, other.evicted_at))


class Forgetful(H2OPress):
    """H2O with attention sums of its own."""

    def votes(self) -> Votes:
        return AttentionSums()


def test_a_derived_class_with_its_own_attention_state_keeps_entries_in_order() -> None:
    """Since its state may depend on the order."""
    cache = decoded(Forgetful(0.5, prune_after=100), architectures.shared("llama"))
    assert all(ascending(layer.storage.held("positions")) for layer in cache.pressed)


@pytest.mark.parametrize("press", [*PRESSES, KnormPress(0.5, prune_after=100)], ids=repr)
def test_entries_that_gradients_need_are_not_overwritten(press: Press) -> None:
    """A press whose entries stay where they are copies them where a backward pass reads them."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 112)
    with press(model):
        cache = DynamicCache(config=model.config)
        logits: list[Any] = [model(part, **using(cache)).logits[:, -1] for part in ids.split([104, *[1] * 8], dim=1)]
    torch.stack(logits).logsumexp(-1).sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
