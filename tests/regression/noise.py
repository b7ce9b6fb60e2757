"""Sensitivity of evictions to numerical noise, as from another processor that adds in another order.

Measured between processors, and between tokens fed singly and in one pass, float32 keys differ by up to 2 ** -21 of
their size. Here each component of a key or query is changed by ``NOISE`` of itself, up or down at random, before it is
rounded to its dtype. The position of the rounding edges among a model's scores is arbitrary, so it is randomised too:
the scores of a head are multiplied by a random factor, as a change of unit would do.

``python -m regression.noise MODEL TEXT`` prints a table for every press whose scores are not integers.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pressgauge import H2OPress, KeyDiffPress, KnormPress, Press, SnapKVPress, TOVAPress, replay
from pressgauge.history import NEVER
from pressgauge.models import interface, load
from pressgauge.presses import ranking
from pressgauge.storage import light
from pressgauge.texts import load_text

NOISE = 2.0**-20
BITS = (8, 10, 11, 12, 14, 16, 18, 20, 23)
DTYPES = (torch.float32, torch.bfloat16)
_PRUNE_AFTER, _PROMPT, _WINDOW = 64, 300, 16
PRESSES: tuple[Press, ...] = (
    KnormPress(0.5, prune_after=_PRUNE_AFTER),
    KeyDiffPress(0.5, prune_after=_PRUNE_AFTER),
    H2OPress(0.5, prune_after=_PRUNE_AFTER),
    SnapKVPress(0.5, prune_after=_PRUNE_AFTER, recent=_WINDOW),
    TOVAPress(0.5, prune_after=_PRUNE_AFTER),
)


@dataclass(frozen=True)
class States:
    """Inputs of attention in the layers of a model for some texts, without evictions.

    Attributes:
        queries: ``[layers, texts, H, T, D]`` float64.
        keys: ``[layers, texts, K, T, D]`` float64.
        scale: scaling factor of the query-key products.
    """

    queries: Tensor
    keys: Tensor
    scale: float


def states_of(model: PreTrainedModel, ids: Tensor) -> States:
    """States of texts ``[texts, T]`` under a float64 model."""
    decoder = interface.decoder_of(model)
    found: list[tuple[Tensor, Tensor, float]] = []

    def attend(
        own: interface.Attention, module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        found.append((query, key, interface.scaling(key, kwargs)))
        return own(module, query, key, *rest, **kwargs)

    with torch.no_grad(), interface.routed(decoder, attend):
        interface.feed(model, ids, {})
    queries, keys, scales = zip(*found, strict=True)
    return States(torch.stack(queries), torch.stack(keys), scales[0])


def noisy(states: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers changed by ``NOISE`` of themselves, up or down."""
    return states * (1 + NOISE * (2 * torch.randint(0, 2, states.shape, generator=generator) - 1))


def grids(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Factors from 1 to 2, uniform in the logarithm, which randomise the rounding edges."""
    return 2 ** torch.rand(shape, generator=generator, dtype=torch.float64)


def moved_places(scores: Tensor, draws: int, generator: torch.Generator) -> float:
    """Share of scores ``[..., heads, T]`` float64 that noise moves to another cell, over all draws."""
    factors = grids((draws, *scores.shape[:-1], 1), generator)
    clean, other = scores * factors, noisy(scores.expand(draws, *scores.shape), generator) * factors
    places = [ranking._places(one.float()) for one in (clean, other)]
    return float((places[0] != places[1]).mean())


@contextmanager
def ranked(bits: int | None, factors: Tensor | None = None) -> Iterator[None]:
    """Multiply scores by factors ``[B, K, 1]``, and round them to a number of bits.

    With None they are not rounded, and scores of a head that differ by at most 2 ** -22 of their size are tied.
    """
    own = ranking._places

    def rounded(scores: Tensor) -> Any:
        return own(scores if factors is None else scores.float() * factors.float())

    def told_apart(scores: Tensor) -> Any:
        values, order = scores.sort(dim=-1)
        steps = (values.diff(dim=-1) > values[..., 1:].abs() * 2.0**-22).cumsum(dim=-1)
        steps = nn.functional.pad(steps, (1, 0))
        return light(torch.empty_like(steps).scatter_(-1, order, steps))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_places", told_apart if bits is None else rounded)
        if bits is not None:
            patch.setattr(ranking, "_SIGNIFICANT_BITS", bits)
        yield


@dataclass(frozen=True)
class Fates:
    """Effect of noise and rounding, in the first layer and in all others.

    Attributes:
        differ: mean number of entries that noise evicts at another time, over draws.
        entries: total number of entries.
        otherwise: share of the entries held at the end that would not be held without rounding and noise.
    """

    differ: tuple[float, float]
    entries: tuple[int, int]
    otherwise: tuple[float, float]


def _replayed(press: Press, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``evicted_at`` of states with any number of leading dimensions."""
    tokens = keys.shape[-2]
    passes = [1] * tokens if press.schedule != "prefill" else [_PROMPT] + [1] * (tokens - _PROMPT)
    given = queries.flatten(0, -4) if press.needs_queries else None
    return replay(press, keys.flatten(0, -4), passes, queries=given, scale=scale).view(keys.shape[:-1])


def fates(press: Press, states: States, dtype: torch.dtype, bits: int, draws: int) -> Fates:
    """Replay the evictions of a press with and without noise, once per draw."""
    generator = torch.Generator().manual_seed(0)
    with ranked(None):
        exact = _replayed(press, states.queries, states.keys, states.scale)
    queries, keys = (
        torch.stack([torch.stack([clean, noisy(clean, generator)]) for _ in range(draws)]).to(dtype)
        for clean in (states.queries, states.keys)
    )
    factors = grids((draws, 1, *states.keys.shape[:-2], 1), generator).expand(draws, 2, *states.keys.shape[:-2], 1)
    with ranked(bits, factors.flatten(0, -3)):
        found = _replayed(press, queries, keys, states.scale)
    differ = (found[:, 0] != found[:, 1]).sum(dim=(0, 2, 3, 4)) / draws
    held = found[:, 0] == NEVER
    otherwise, held = (table.sum(dim=(0, 2, 3, 4)) for table in (held & (exact != NEVER), held))
    first, rest = exact[0].numel(), exact[1:].numel()
    return Fates(
        (float(differ[0]), float(differ[1:].sum())),
        (first, rest),
        (float(otherwise[0] / held[0]), float(otherwise[1:].sum() / held[1:].sum())),
    )


def main() -> None:
    """Print the tables of one model and one text."""
    parser = argparse.ArgumentParser(prog="regression.noise", description="What noise evicts otherwise, by bits.")
    parser.add_argument("model", help="a name or a folder")
    parser.add_argument("text", help="reference, or a file")
    parser.add_argument("--draws", type=int, default=10, help="of noise and of the places of the cells (default: 10)")
    parser.add_argument("--press", choices=[type(press).__name__ for press in PRESSES], help="only this one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(given.model, dtype="float64")
    states = states_of(model, load_text(given.text, tokenizer, samples=2, tokens=400))
    print("press, dtype, bits: fates that differ in the first layer, in the others; entries held otherwise in both")
    for press in PRESSES:
        if given.press in (None, type(press).__name__):
            for dtype in DTYPES:
                for bits in BITS:
                    one = fates(press, states, dtype, bits, given.draws)
                    print(
                        f"{type(press).__name__:12s} {dtype!s:14s} {bits:2d}: "
                        + ", ".join(f"{n:.2f} of {total:,}" for n, total in zip(one.differ, one.entries, strict=True))
                        + "; "
                        + ", ".join(f"{share:.2%}" for share in one.otherwise),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
