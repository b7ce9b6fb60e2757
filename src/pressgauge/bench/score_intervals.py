"""Changes in a score between 0 and 1, from two runs on the same samples, with their 95 % confidence intervals.

Scores of a few samples are often all equal, and then neither Student's t nor a bootstrap has any width. So the interval
is that of Bonett and Price ("Adjusted Wald confidence interval for a difference of binomial proportions based on paired
data", 2012), which adds one sample that gains all and one that loses all, with quantiles of Student's t.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from pressgauge.bench.intervals import LEVEL


def score_interval(before: Sequence[float], after: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the change in the mean score, over samples.

    Args:
        before, after: scores of the same samples, from 0 to 1.
        level: confidence level.

    Raises:
        ValueError: if the runs have different numbers of samples, or none.
    """
    if len(before) != len(after) or not before:
        raise ValueError(
            f"scores can be compared if they are of the same samples, one at least, got {len(before)} and {len(after)}"
        )
    differences = np.array([*np.subtract(after, before), 1.0, -1.0])
    margin = stdtrit(len(differences) - 1, (1 + level) / 2) * differences.std() / math.sqrt(len(differences))
    low, high = differences.mean() - margin, differences.mean() + margin
    return max(-1.0, float(low)), min(1.0, float(high))
