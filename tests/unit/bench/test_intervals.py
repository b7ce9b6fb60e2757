"""Confidence intervals of changes in perplexity: their coverage in simulated runs, and broken ones, which miss it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, ttest_rel
from torch import Tensor

from pressgauge.bench.intervals import Change, Mean, Sums, change, mean, sums

EFFECT = 0.05
"""True difference of the mean NLL in simulated runs."""
RUNS = 400
RANGE = (0.93, 0.97)
"""Coverage of a 95 % interval in ``RUNS`` runs, with a chance of 93 %."""


def simulated(samples: int, tokens: int, random: np.random.Generator, of_sample: float = 0.0) -> tuple[Tensor, Tensor]:
    """NLL ``[samples, tokens]`` of two runs: differences of neighbours are correlated (0.5), with heavy tails."""
    noise = random.standard_t(4, (samples, tokens))
    for column in range(1, tokens):
        noise[:, column] += 0.5 * noise[:, column - 1]
    before = 2 + random.standard_normal((samples, tokens))
    differences = EFFECT + of_sample * random.standard_normal((samples, 1)) + 0.3 * noise
    return torch.from_numpy(before), torch.from_numpy(before + differences)


def measured(before: Tensor, after: Tensor) -> Change:
    """Change between two runs that scored every token."""
    scored = torch.ones_like(before, dtype=torch.bool)
    return change(sums(before, scored), sums(after, scored))


def coverage(interval: Callable[[Tensor, Tensor], tuple[float, float]], samples: int, of_sample: float) -> float:
    """Share of simulated runs whose interval contains the true change."""
    random = np.random.default_rng(5)
    found = [interval(*simulated(samples, 512, random, of_sample)) for _ in range(RUNS)]
    return float(np.mean([low <= math.expm1(EFFECT) <= high for low, high in found]))


def ours(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The interval of the package."""
    found = measured(before, after).interval
    assert found is not None
    return found


def of_single_tokens(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Broken: tokens are taken for independent."""
    found = ttest_rel(after.flatten(), before.flatten()).confidence_interval()
    return math.expm1(found.low), math.expm1(found.high)


def of_two_independent_runs(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Broken: runs are not paired."""
    means = [run.mean(dim=1).numpy() for run in (before, after)]
    error = math.sqrt(sum(mean.var(ddof=1) / len(mean) for mean in means))
    middle = float(means[1].mean() - means[0].mean())
    return math.expm1(middle - 5 * error), math.expm1(middle + 5 * error)


@pytest.mark.parametrize(("samples", "of_sample"), [(1, 0.0), (3, 0.0), (8, 0.1)])
def test_a_95_percent_interval_contains_the_true_change_in_95_of_100_runs(samples: int, of_sample: float) -> None:
    """Intervals over blocks and over samples have their coverage."""
    assert RANGE[0] <= coverage(ours, samples, of_sample) <= RANGE[1]


@pytest.mark.parametrize(
    ("broken", "samples", "of_sample"), [(of_single_tokens, 3, 0.0), (of_two_independent_runs, 8, 0.1)]
)
def test_broken_intervals_miss_their_coverage(
    broken: Callable[[Tensor, Tensor], tuple[float, float]], samples: int, of_sample: float
) -> None:
    """The simulation tells intervals apart that ignore correlation or pairing."""
    assert not RANGE[0] <= coverage(broken, samples, of_sample) <= RANGE[1]


def test_an_interval_over_samples_is_that_of_the_paired_t_test() -> None:
    """With equally long samples, the interval is that of scipy's paired test of the samples' means."""
    before, after = simulated(6, 130, np.random.default_rng(1), 0.1)
    low, high = ours(before, after)
    expected = ttest_rel(after.mean(dim=1), before.mean(dim=1)).confidence_interval()
    assert (math.log1p(low), math.log1p(high)) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_an_interval_over_blocks_is_near_that_of_another_bootstrap() -> None:
    """With many blocks, the interval is near scipy's percentile interval of the blocks' means."""
    before, after = simulated(2, 64 * 40, np.random.default_rng(2))
    means = (after - before).view(-1, 64).mean(dim=1).numpy()
    other = bootstrap((means,), np.mean, method="percentile", rng=np.random.default_rng(3)).confidence_interval
    low, high = ours(before, after)
    assert math.log1p(low) == pytest.approx(other.low, abs=0.1 * (other.high - other.low))
    assert math.log1p(high) == pytest.approx(other.high, abs=0.1 * (other.high - other.low))


def test_the_change_is_that_of_all_scored_tokens() -> None:
    """Samples count by their tokens, and tokens that are not scored do not count."""
    before, after = torch.zeros(2, 40).double(), torch.zeros(2, 40).double()
    after[0], after[1] = 0.3, 0.6
    scored = torch.ones(2, 40, dtype=torch.bool)
    scored[1, :30] = False
    after[1, :30] = math.nan
    found = change(sums(before, scored), sums(after, scored))
    assert found.change == pytest.approx(math.exp((40 * 0.3 + 10 * 0.6) / 50) - 1)


@pytest.mark.parametrize(
    ("samples", "tokens", "units"),
    [
        (1, 1024, "16 blocks of 1 sample"),
        (3, 128, "9 blocks of 3 samples"),
        (4, 16, "8 blocks of 4 samples"),
        (5, 16, "5 samples"),
    ],
)
def test_units_are_samples_from_five_on(samples: int, tokens: int, units: str) -> None:
    """With fewer than five samples, units are blocks of 64 tokens, or of fewer if the samples are short."""
    found = measured(*simulated(samples, tokens, np.random.default_rng(0)))
    assert found.units == units
    assert found.interval is not None


def test_no_change_has_an_interval_of_no_width() -> None:
    """Equal runs have a change of 0, exactly."""
    before, _ = simulated(3, 512, np.random.default_rng(0))
    assert measured(before, before) == Change(0.0, (0.0, 0.0), "24 blocks of 3 samples")


def test_without_enough_tokens_there_is_no_interval() -> None:
    """Fewer than eight tokens give a change, and no interval."""
    found = measured(*simulated(1, 7, np.random.default_rng(0)))
    assert found.interval is None
    assert math.isfinite(found.change)


def test_the_interval_of_a_mean_is_within_what_it_can_be() -> None:
    """A divergence is at least 0 and a share at most 1, and so are the ends of their intervals."""
    tokens = ((8.0,) * 9,)
    divergence = mean(((0.0,) * 8 + (8.0,),), tokens, 0, math.inf)
    share = mean(((8.0,) * 8 + (0.0,),), tokens, 0, 1)
    assert divergence.mean == pytest.approx(1 / 9)
    assert share.mean == pytest.approx(8 / 9)
    for found, expected in ((divergence, (0.0, 0.37)), (share, (0.63, 1.0))):
        assert found.interval is not None
        assert found.interval == pytest.approx(expected, abs=0.05)
    assert 0.0 in (divergence.interval or ())
    assert 1.0 in (share.interval or ())
    assert mean(((1.0, math.inf),), ((2.0, 2.0),), 0, math.inf) == Mean(math.inf, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_have_no_interval(value: float) -> None:
    """A run with an NLL that is not finite has no interval."""
    before, after = simulated(3, 64, np.random.default_rng(0))
    after[1, 3] = value
    assert measured(before, after).interval is None


def test_runs_on_other_tokens_are_refused() -> None:
    """Runs can be compared on the same tokens only."""
    one, other = (Sums(((1.0,),), ((count,),)) for count in (2.0, 3.0))
    with pytest.raises(ValueError, match="scored the same tokens"):
        change(one, other)


def test_intervals_are_reproducible() -> None:
    """The bootstrap draws the same resamples again."""
    before, after = simulated(2, 256, np.random.default_rng(0))
    assert measured(before, after) == measured(before, after)
