"""Differences between two runs on the same tokens, with their 95 % confidence intervals.

Runs are paired: only differences of the NLL of the same token enter. With ``LEAST_SAMPLES`` samples or more, samples
are the units, and the interval is Student's t for a ratio of sums. With fewer, the units are blocks of consecutive
tokens, since the NLLs of neighbours are correlated (Künsch, "The jackknife and the bootstrap for general stationary
observations", 1989), and the standard error is that of a bootstrap of blocks. The interval is then one for these
samples, and not for other texts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

BLOCK = 64
"""Scored tokens of a block, at most."""
LEAST_SAMPLES = 5
"""Samples from which on they are the units of an interval."""
LEAST_BLOCKS = 8
"""Fewest blocks for an interval."""
RESAMPLES = 4_999
LEVEL = 0.95

Numbers = NDArray[np.float64]
Blocks = tuple[tuple[float, ...], ...]
"""A number for each block of each sample."""


@dataclass(frozen=True)
class Sums:
    """NLL of a run, in sums over blocks of consecutive scored tokens.

    Attributes:
        nll: nats, per sample and block.
        tokens: scored tokens, per sample and block.
    """

    nll: Blocks
    tokens: Blocks

    @property
    def mean(self) -> float:
        """Mean NLL of all scored tokens."""
        return math.fsum(_flat(self.nll)) / math.fsum(_flat(self.tokens))


def _flat(blocks: Blocks) -> list[float]:
    return [number for sample in blocks for number in sample]


def sums(nll: Tensor, scored: Tensor) -> Sums:
    """Sums of an NLL ``[B, scored]`` over blocks of the tokens where ``scored`` is true."""
    return Sums(block_sums(nll, scored), block_sums(torch.ones_like(nll), scored))


def block_sums(values: Tensor, scored: Tensor) -> Blocks:
    """Sums of values ``[B, scored]`` over the same blocks."""
    samples = [row[own] for row, own in zip(values.double(), scored, strict=True)]
    # Short samples are divided as well, so that there are units at all.
    size = min(BLOCK, max(1, min(map(len, samples)) * len(samples) // LEAST_BLOCKS))
    blocks = [sample.split(size) if len(sample) else () for sample in samples]
    return tuple(tuple(float(block.sum()) for block in sample) for sample in blocks)


@dataclass(frozen=True)
class Change:
    """A relative change in perplexity.

    Attributes:
        change: perplexity over that of the other run, minus 1.
        interval: its confidence interval, of 95 % unless said otherwise; None if there are too few tokens, or a
            perplexity is not finite.
        units: what varies in the interval: ``8 samples`` or ``24 blocks of 3 samples``.
    """

    change: float
    interval: tuple[float, float] | None
    units: str


def change(before: Sums, after: Sums, level: float = LEVEL) -> Change:
    """Change in perplexity from one run to another one on the same tokens.

    Args:
        before, after: the runs.
        level: confidence level of the interval.

    Raises:
        ValueError: if the runs have not scored the same tokens.
    """
    if before.tokens != after.tokens:
        raise ValueError("runs can be compared if they scored the same tokens, and these scored others")
    differences = [np.subtract(new, old) for new, old in zip(after.nll, before.nll, strict=True)]
    if not all(np.isfinite(part).all() for part in (*after.nll, *before.nll)):
        return Change(math.nan, None, "")
    mean, ends, units = _mean(differences, before.tokens, level)
    return Change(_grown(mean), None if ends is None else (_grown(ends[0]), _grown(ends[1])), units)


@dataclass(frozen=True)
class Mean:
    """A mean over scored tokens, of something that compares two runs token by token.

    Attributes:
        interval: its 95 % confidence interval; None if there are too few tokens, or the mean is not finite.
    """

    mean: float
    interval: tuple[float, float] | None


def mean(totals: Blocks, tokens: Blocks, lowest: float, highest: float) -> Mean:
    """Mean of what is never below ``lowest`` or above ``highest``, from its sums over blocks of tokens."""
    parts = [np.asarray(sample) for sample in totals]
    if not all(np.isfinite(part).all() for part in parts):
        return Mean(math.fsum(_flat(totals)) / math.fsum(_flat(tokens)), None)
    found, ends, _ = _mean(parts, tokens, LEVEL)
    return Mean(found, None if ends is None else (max(ends[0], lowest), min(ends[1], highest)))


def _mean(
    differences: Sequence[Numbers], tokens: Blocks, level: float
) -> tuple[float, tuple[float, float] | None, str]:
    """Mean difference per token, its interval, and what varies in the interval."""
    counts = [np.asarray(sample) for sample in tokens]
    samples = len(counts)
    mean = float(sum(part.sum() for part in differences) / sum(part.sum() for part in counts))
    if samples >= LEAST_SAMPLES:
        units = f"{samples} samples"
        low, high = _student(np.array([d.sum() for d in differences]), np.array([n.sum() for n in counts]), level)
    else:
        flat, lengths = np.concatenate(differences), np.concatenate(counts)
        units = f"{len(flat)} blocks of {samples} sample{'s' * (samples > 1)}"
        low, high = _bootstrap(flat, lengths, level) if len(flat) >= LEAST_BLOCKS else (math.nan, math.nan)
    return mean, (low, high) if math.isfinite(low) and math.isfinite(high) else None, units


def _grown(difference: float) -> float:
    """Relative change in perplexity for a difference in mean NLL."""
    return float(np.expm1(min(difference, 700.0)))


def _student(differences: Numbers, counts: Numbers, level: float) -> tuple[float, float]:
    units = len(counts)
    mean = differences.sum() / counts.sum()
    rest = differences - mean * counts
    error = math.sqrt(units / (units - 1) * (rest**2).sum()) / counts.sum()
    return _around(mean, error, units, level)


def _bootstrap(differences: Numbers, counts: Numbers, level: float) -> tuple[float, float]:
    blocks = len(counts)
    drawn = np.random.default_rng(0).integers(0, blocks, (RESAMPLES, blocks))
    means = differences[drawn].sum(-1) / counts[drawn].sum(-1)
    # Resamples vary less than samples do, by a factor of 1 - 1 / blocks in the variance.
    error = means.std() * math.sqrt(blocks / (blocks - 1))
    return _around(differences.sum() / counts.sum(), error, blocks, level)


def _around(mean: float, error: float, units: int, level: float) -> tuple[float, float]:
    margin = stdtrit(units - 1, (1 + level) / 2) * error
    return float(mean - margin), float(mean + margin)
