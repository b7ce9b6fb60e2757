"""``fixed_scores`` is verified: a false declaration is refused at the first eviction, and no true one is."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pressgauge import KeyDiffPress, KnormPress, Press, RandomPress, StreamingLLMPress, generate, perplexity, replay
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using
from pressgauge.presses.attention_scores import Votes

PROMPT = 6


@dataclass(frozen=True)
class Claiming(KnormPress):
    """A press that inherits ``fixed_scores`` and scores differently."""

    def of(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Its scores."""
        raise NotImplementedError

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        return self.of(keys, positions)


@dataclass(frozen=True)
class ClaimingKeyDiff(KeyDiffPress):
    """Its scores depend on all held entries."""

    fixed_scores: ClassVar[bool] = True


@dataclass(frozen=True)
class Sum(Press):
    """A press without a declaration, scored at every eviction."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        return keys.sum(dim=-1)


@dataclass(frozen=True)
class FixedSum(Sum):
    """The same with ``fixed_scores``: a sum in the dtype of the keys, with cancellation."""

    fixed_scores: ClassVar[bool] = True


@dataclass(frozen=True)
class Projected(Sum):
    """A matrix product, for which kernels differ by shape."""

    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        weight = torch.linspace(-1, 1, keys.shape[-1], device=keys.device).to(keys.dtype)
        return (keys @ weight[:, None])[..., 0]


@dataclass(frozen=True)
class Strange(Sum):
    """Scores that are NaN or infinite."""

    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        numbers = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], device=keys.device)
        return numbers[positions % 4]


def claiming(of: Callable[[Tensor, Tensor], Tensor]) -> type[Press]:
    """A press class of these scores."""
    return type("Unsafe", (Claiming,), {"of": lambda self, keys, positions: of(keys, positions)})


calls = count()
UNSAFE: dict[str, type[Press]] = {
    "mean of all": ClaimingKeyDiff,
    "largest of all": claiming(
        lambda keys, positions: keys.norm(dim=-1) / keys.norm(dim=-1).amax(dim=-1, keepdim=True)
    ),
    "the entry before": claiming(lambda keys, positions: keys.norm(dim=-1) - keys.roll(1, dims=2).norm(dim=-1)),
    "how many": claiming(lambda keys, positions: keys.norm(dim=-1) * keys.shape[2]),
    "age": claiming(lambda keys, positions: positions - positions.amax(dim=-1, keepdim=True)),
    "calls": claiming(lambda keys, positions: keys.norm(dim=-1) * (1 + next(calls) % 7)),
    "random": claiming(lambda keys, positions: torch.rand(positions.shape)),
}
WAYS: dict[str, Callable[[Any, Tensor, Press], object]] = {
    "onepass": lambda model, ids, press: perplexity(model, ids, press, PROMPT),
    "stepwise": lambda model, ids, press: perplexity(model, ids, press, PROMPT, "stepwise"),
    "generate": lambda model, ids, press: generate(model, ids, press, 4),
    "cache": lambda model, ids, press: model(ids, **using(press.cache(model.config, unpadded=True))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", UNSAFE)
def test_a_score_that_depends_on_more_than_its_entry_is_found_at_the_first_eviction(name: str, way: str) -> None:
    """Scores that depend on other entries are refused at the first eviction, in one pass, stepwise and as a plain
    cache, with the press, the numbers and the way out."""
    press = UNSAFE[name](0.5, prune_after=8)
    words = (
        rf"{type(press).__name__} declares fixed_scores = True, but in layer 0 the score of the entry at position "
        r"\d+ was \S+ among \d+ entries and then \S+ among \d+: set fixed_scores = False in the class"
    )
    with torch.no_grad(), pytest.raises(ValueError, match=f"^{words}$"):
        WAYS[way](architectures.shared("llama"), architectures.tokens(2, 20), press)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", UNSAFE)
def test_nothing_is_verified_before_the_first_eviction(name: str, way: str) -> None:
    """Before the first eviction, scores are neither computed nor refused."""
    with torch.no_grad():
        WAYS[way](architectures.shared("llama"), architectures.tokens(2, 20), UNSAFE[name](0.5, prune_after=64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [KnormPress, StreamingLLMPress, RandomPress, FixedSum, Projected, Strange])
@pytest.mark.parametrize("padding", [None, [0, 3, 97]])
def test_no_true_declaration_is_refused(kind: type[Press], dtype: torch.dtype, padding: list[int] | None) -> None:
    """True declarations are accepted in every dtype and shape, although kernels add in different orders."""
    generator = torch.Generator().manual_seed(0)
    for heads, tokens, size in ((1, 9, 3), (2, 100, 16), (8, 300, 128), (3, 130, 80)):
        keys = torch.randn(3, heads, tokens, size, generator=generator, dtype=torch.float64).mul(30).to(dtype)
        pads = None if padding is None or tokens < 100 else padding
        replay(kind(0.5, prune_after=4), keys, [tokens], padding=pads)
        replay(kind(0.5, prune_after=4), keys.mT.contiguous().mT, [tokens], padding=pads)


def test_scores_are_not_fixed_by_default() -> None:
    """A class with ``score`` only has the same evictions as with a declaration."""
    assert not Sum.fixed_scores
    model = architectures.build("llama").double()
    ids = architectures.tokens(2, 20)
    found = [
        perplexity(model, ids, press(0.5, prune_after=8), PROMPT, method)
        for press in (Sum, FixedSum)
        for method in ("onepass", "stepwise")
    ]
    for other in found[1:]:
        assert (other.nll - found[0].nll).abs().max() < 1e-9
        assert all(a.equal(b) for a, b in zip(other.evicted_at, found[0].evicted_at, strict=True))


def test_a_declaration_is_verified_once_per_layer() -> None:
    """A declaration is verified at the first eviction of a layer, by two more calls of ``score``."""
    asked: list[tuple[int, int]] = []

    @dataclass(frozen=True)
    class Counting(KnormPress):
        def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
            asked.append((layer, keys.shape[2]))
            return super().score(keys, positions=positions, layer=layer)

    press = Counting(0.5, prune_after=10)
    perplexity(architectures.shared("llama"), architectures.tokens(1, 20), press, 11, "stepwise")
    layers = range(architectures.LAYERS)
    first = [(layer, entries) for layer in layers for entries in (11, 5, 1)]
    assert asked == first + [(layer, 1) for _ in range(9) for layer in layers]
