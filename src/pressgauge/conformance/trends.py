"""Paired one-sided tests for falling means, corrected for multiple comparisons."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

ERROR = 0.01
"""Family-wise error rate: probability of any rejection in a family of true null hypotheses."""


def p_values(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values of the hypotheses that the mean over documents does not fall.

    Paired Student's t-test. It tests the mean, as perplexity does, while the signed-rank test tests the median. Also,
    the smallest p-value of the latter, 2 ** -n for n documents, rejects nothing in a family of 40 if n is below 12.

    Args:
        before, after: NLLs, with documents on the last axis.
    """
    # Only here, since the import takes a tenth of that of torch and transformers.
    from scipy.stats import ttest_rel

    return np.asarray(ttest_rel(after, before, axis=-1, alternative="less").pvalue, dtype=np.float64)


def holm(ps: Sequence[float], error: float = ERROR) -> list[bool]:
    """Rejected hypotheses of a family, by Holm's method (1979).

    In ascending order of p-values, the first of m is tested at ``error / m``, the next at ``error / (m - 1)``, and so
    on up to the first that is not rejected.

    Raises:
        ValueError: if a number is not a p-value, such as NaN, the result for constant differences.
    """
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError(f"p-values must be numbers from 0 to 1, got {list(ps)}")
    rejected = [False] * len(ps)
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if ps[index] > error / (len(ps) - place):
            break
        rejected[index] = True
    return rejected


def judged(family: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[list[str], list[str]]:
    """Test a family of comparisons; sentences on those that fall, and on the others.

    Args:
        family: NLLs ``before`` and ``after``, by name of the comparison.
    """
    ps = [float(p_values(before, after)) for before, after in family.values()]
    fallen: list[str] = []
    others: list[str] = []
    for (name, (before, after)), p, rejected in zip(family.items(), ps, holm(ps), strict=True):
        means = f"{before.mean():.4f} and then {after.mean():.4f} over {after.size} documents"
        (fallen if rejected else others).append(f"{name}: NLL is {means} (p = {p:.1e} for no fall)")
    return fallen, others
