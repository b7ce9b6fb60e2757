"""Intervals of changes in recall: coverage, and no certainty from few samples."""

from functools import cache
from itertools import product
from math import comb

import pytest

from pressgauge.bench.score_intervals import score_interval


@cache
def interval(samples: int, losses: int, gains: int) -> tuple[float, float]:
    """Interval of this many samples, of which some go from 1 to 0 and others from 0 to 1."""
    before = [1.0] * losses + [0.0] * gains + [1.0] * (samples - losses - gains)
    after = [0.0] * losses + [1.0] * gains + [1.0] * (samples - losses - gains)
    return score_interval(before, after)


def coverage(samples: int, loss: float, gain: float) -> tuple[float, float]:
    """Exact probabilities that the interval has the true change, and that it excludes no change."""
    covered = told = 0.0
    for losses in range(samples + 1):
        for gains in range(samples + 1 - losses):
            rest = samples - losses - gains
            ways = comb(samples, losses) * comb(samples - losses, gains)
            probability = ways * loss**losses * gain**gains * max(0.0, 1 - loss - gain) ** rest
            low, high = interval(samples, losses, gains)
            covered += probability * (low <= gain - loss <= high)
            told += probability * (high < 0 or low > 0)
    return covered, told


@pytest.mark.parametrize("samples", [2, 3, 5, 8, 10, 20, 30])
def test_at_least_93_of_100_intervals_have_the_true_change(samples: int) -> None:
    """For answers that are right or wrong, whatever the probabilities, and 95 of 100 on average; equal presses are
    told apart in at most 7 of 100, and only if every sample changes."""
    found = []
    for loss, gain in product((0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0), (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)):
        if loss + gain <= 1:
            covered, told = coverage(samples, loss, gain)
            found.append(covered)
            assert covered >= 0.929
            assert loss != gain or told <= 0.071
    assert sum(found) / len(found) >= 0.95


def test_few_samples_tell_nothing() -> None:
    """If all of four samples are lost the interval still has no change, and from five on it does not."""
    assert [interval(samples, samples, 0)[1] < 0 for samples in range(1, 8)] == [False] * 4 + [True] * 3
    assert interval(3, 0, 0)[0] < -0.4


def test_known_intervals() -> None:
    """A mean of -12 / 22 and a standard error of sqrt((14 - 144 / 22) / 22) / sqrt(22), times 2.0796."""
    low, high = interval(20, 12, 0)
    error = ((14 - 144 / 22) / 22 / 22) ** 0.5 * 2.079614
    assert low == pytest.approx(-12 / 22 - error, abs=1e-6)
    assert high == pytest.approx(-12 / 22 + error, abs=1e-6)
    assert interval(20, 0, 12) == pytest.approx((-high, -low))


def test_scores_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same samples, one at least, got 2 and 1"):
        score_interval([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="got 0 and 0"):
        score_interval([], [])
