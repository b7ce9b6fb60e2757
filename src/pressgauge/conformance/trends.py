"""Whether a mean falls: paired over documents, one-sided, corrected for all that is looked at together."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel

ERROR = 0.01
"""The family-wise error: the chance that anything at all is found in a family in which nothing is true."""


def p_values(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the hypotheses that the mean over the last axis, the documents, does not fall from ``before`` to ``after``.

    Student's t of the differences. It asks for the mean, as perplexity does, while signed ranks ask for the median, and
    their least p-value, 2 ** -n for n documents, is too large to reject anything of a family of 40 with fewer than 12.
    """
    return np.asarray(ttest_rel(after, before, axis=-1, alternative="less").pvalue, dtype=np.float64)


def holm(ps: Sequence[float], error: float = ERROR) -> list[bool]:
    """Which hypotheses of a family are rejected (Holm 1979): in ascending order, the first of m at ``error / m``, the
    next at ``error / (m - 1)``, and so on up to the first that is not.

    Raises:
        ValueError: for what is no p-value, such as the NaN of differences that do not vary.
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
    """The comparisons of a family, ``before`` and ``after`` by name, as sentences: those that fall, and the others."""
    ps = [float(p_values(before, after)) for before, after in family.values()]
    fallen: list[str] = []
    others: list[str] = []
    for (name, (before, after)), p, rejected in zip(family.items(), ps, holm(ps), strict=True):
        means = f"{before.mean():.4f} and then {after.mean():.4f} over {after.size} documents"
        (fallen if rejected else others).append(f"{name}: NLL is {means} (p = {p:.1e} for no fall)")
    return fallen, others
