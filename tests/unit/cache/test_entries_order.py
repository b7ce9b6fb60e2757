"""Entries of a press whose scores are the same in any order: another entry takes the place of an evicted one."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import H2OPress, KeyDiffPress, KnormPress, Press, PressedCache, TOVAPress, replay
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using
from pressgauge.presses.attention_scores import AttentionSums, LastQueries, Votes
from support.drive import feed

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


class Own(AttentionSums):
    """Attention state of a class of its own, which may need the order of entries."""


class OwnVotes(H2OPress):
    """H2O with this state."""

    def votes(self) -> Votes:
        return Own()


class LastFour(TOVAPress):
    """TOVA by the last four queries, which are those of the last entries only if these are in order."""

    any_order = True

    def votes(self) -> Votes:
        return LastQueries(4)

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert votes is not None
        return votes.of(keys)


@pytest.mark.parametrize("kind", [OwnVotes, LastFour])
def test_attention_of_several_queries_keeps_entries_in_order(kind: type[Press]) -> None:
    """Whatever a derived class says, as does an attention state that is not ours."""
    cache = decoded(kind(0.5, prune_after=100, recent=4), architectures.shared("llama"))
    assert all(ascending(layer.storage.held("positions")) for layer in cache.pressed)


@pytest.mark.parametrize("trained", ["", "q_proj"])
@pytest.mark.parametrize("press", [*PRESSES, KnormPress(0.5, prune_after=100)], ids=repr)
def test_entries_that_gradients_need_are_not_overwritten(press: Press, trained: str) -> None:
    """A backward pass reads keys that need no gradient themselves for the queries' gradients."""
    model = architectures.build("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    ids = architectures.tokens(1, 112)
    cache = DynamicCache(config=model.config)
    with press(model):
        logits: list[Any] = [model(part, **using(cache)).logits[:, -1] for part in ids.split([104, *[1] * 8], dim=1)]
    torch.stack(logits).logsumexp(-1).sum().backward()
    assert all((parameter.grad is not None) is parameter.requires_grad for parameter in model.parameters())


def recorded(press: Press, keys: Tensor) -> tuple[Tensor, Tensor]:
    """What a plain cache evicts that is fed these keys singly, and the replay."""
    passes = [1] * keys.shape[2]
    return feed(press, keys, passes).evicted_at[0], replay(press, keys, passes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_of_a_sum_changes_no_score(dtype: torch.dtype) -> None:
    """Keys with a common part have likenesses that nearly tie, which the rounding of a sum would decide."""
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(1, 64, 1, 16, generator=draw)
    keys = (torch.randn(1, 64, 400, 16, generator=draw) + 3 * common).to(dtype)
    cache, table = recorded(KeyDiffPress(0.3, prune_after=100), keys)
    assert torch.equal(cache, table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_that_cancel_tie(dtype: torch.dtype) -> None:
    """Their sum is rounding noise, in whatever order, and the latest entry goes."""
    draw = torch.Generator().manual_seed(0)
    some = torch.randint(1, 9, (1, 300, 4, 2), generator=draw)
    others = -some.gather(2, torch.rand(1, 300, 4, generator=draw).argsort(dim=2)[..., None].expand(-1, -1, -1, 2))
    keys = torch.cat([some, others, some, torch.randint(1, 9, (1, 300, 1, 2), generator=draw)], dim=2).to(dtype)
    cache, table = recorded(KeyDiffPress(0.5, prune_after=7), keys)
    assert torch.equal(cache, table)
    assert bool((table[:, :, 7] == 8).all())
