"""Hypothesis strategies, only generating; they shrink to few tokens, one pass, no options."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from pressgauge.conformance.subjects import Subject

LAYERS, HEADS, DIMENSION = 2, 3, 4
WIDE = 32
"""Head dimension of entries for quantised caches, whose groups are 4 to 32 numbers wide in tests."""

FEWEST = 24
"""Minimum number of examples of a law that runs a model for each."""


def few(law: Callable[..., None]) -> Callable[..., None]:
    """Settings of a law that runs a model for each example, by the Hypothesis profile when the law is imported.

    Cases are small, so reproducible runs report the first failure without shrinking.
    """
    profile = settings()
    chosen = settings(
        profile,
        max_examples=max(FEWEST, profile.max_examples // 4),
        deadline=None,
        phases=[Phase.generate] if profile.derandomize else list(Phase),
    )
    decorated: Callable[..., None] = chosen(law)
    return decorated


@dataclass(frozen=True)
class Case:
    """Options of a press, and its input."""

    options: dict[str, Any]
    passes: list[int]
    prompt_length: int | None
    keys: Tensor
    """``[1, HEADS, T, DIMENSION]`` float64."""


def ratios() -> st.SearchStrategy[float]:
    """Ratios as people write them: down to a single entry, and those that floats round wrongly."""
    return st.one_of(
        st.sampled_from([0.5, 0.9, 0.1, 0.07, 0.14, 0.28, 0.55, 0.56, 0.57, 0.29, 0.01, 1.0]),
        st.integers(1, 1000).map(lambda n: n / 1000),
    )


def pass_lists(most: int = 40) -> st.SearchStrategy[list[int]]:
    """Passes: the whole text, a prompt and single tokens, single tokens only, or chunks."""
    return st.one_of(
        st.integers(1, most).map(lambda n: [n]),
        st.tuples(st.integers(1, most // 2), st.integers(1, most // 2)).map(lambda pair: [pair[0]] + [1] * pair[1]),
        st.integers(1, most).map(lambda n: [1] * n),
        st.lists(st.integers(1, 8), min_size=1, max_size=most // 5),
    )


@st.composite
def key_tensors(draw: st.DrawFn, length: int, rows: int = 1) -> Tensor:
    """Keys ``[rows, HEADS, length, DIMENSION]`` float64: normal, zero, repeated, or with ties."""
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, HEADS, length, DIMENSION)
    kind = draw(st.sampled_from(["normal", "ties", "repeats", "zeros"]))
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "zeros":
        return torch.zeros(shape, dtype=torch.float64)
    if kind == "ties":
        return torch.randint(-2, 3, shape, generator=generator).double()
    # Few distinct keys, as repeated words give in a first layer.
    words = torch.randn((5, DIMENSION), generator=generator, dtype=torch.float64)
    return words[torch.randint(0, 5, shape[:3], generator=generator)]


def pruning(most: int = 24) -> st.SearchStrategy[list[int]]:
    """Passes that usually lead to evictions: a prompt and single tokens, or chunks."""
    return st.one_of(
        st.tuples(st.integers(2, most // 2), st.integers(1, most // 2)).map(lambda pair: [pair[0]] + [1] * pair[1]),
        st.lists(st.integers(1, 6), min_size=2, max_size=most // 4),
    )


@st.composite
def options_of(draw: st.DrawFn, subject: Subject) -> dict[str, Any]:
    """Options that a subject takes, small enough that a few dozen tokens exercise every rule."""
    declares = subject.declares
    chosen: dict[str, Any] = {"keep_ratio": draw(ratios())}
    if declares.prune_after:
        chosen["prune_after"] = draw(st.integers(0, 14))
    if declares.skip_layers and draw(st.booleans()):
        chosen["skip_layers"] = (draw(st.integers(0, LAYERS - 1)),)
    for name in declares.takes:
        if draw(st.booleans()):
            # An interval of 1 has no effect.
            chosen[name] = draw(st.integers(2 if name == "interval" else 1, 5))
    return chosen


@st.composite
def options(draw: st.DrawFn, schedule: str) -> dict[str, Any]:
    """Options of a press, small enough that a few dozen tokens exercise every rule."""
    chosen: dict[str, Any] = {
        "keep_ratio": draw(ratios()),
        "prune_after": draw(st.integers(0, 20)),
    }
    # Optional, so that shrinking ends at plain presses, and defaults are covered.
    if draw(st.booleans()):
        chosen["sinks"] = draw(st.integers(0, 6))
    if draw(st.booleans()):
        chosen["recent"] = draw(st.integers(0, 6))
    if draw(st.booleans()):
        chosen["skip_layers"] = (draw(st.integers(0, LAYERS - 1)),)
    if schedule != "prefill" and draw(st.booleans()):
        chosen["interval"] = draw(st.integers(1, 5))
    return chosen


@st.composite
def cases(draw: st.DrawFn, schedule: str, most: int = 40) -> Case:
    """Options, passes, prompt length (often that of the first pass) and keys."""
    passes = draw(pass_lists(most))
    total = sum(passes)
    prompt_length = draw(st.one_of(st.none(), st.integers(1, total)))
    return Case(draw(options(schedule)), passes, prompt_length, draw(key_tensors(total)))


def normal_keys(length: int, rows: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed keys ``[rows, HEADS, length, DIMENSION]``, all different."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, HEADS, length, DIMENSION), generator=generator, dtype=torch.float64).to(dtype)


def normal_entries(
    rows: int, heads: int, length: int, seed: int = 0, dtype: torch.dtype = torch.float32, size: int = WIDE
) -> tuple[Tensor, Tensor]:
    """Normally distributed keys and values ``[rows, heads, length, size]``."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn((2, rows, heads, length, size), generator=generator, dtype=torch.float64).to(dtype)
    return keys, values
