"""Whether a mean falls: paired over documents, one-sided, corrected for all that is looked at together."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ttest_rel

ERROR = 0.01
"""The family-wise error: the chance that anything at all is found in a family in which nothing is true."""


def p_values(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """Of the hypotheses that the mean over the last axis, the documents, does not fall from ``before`` to ``after``.

    Student's t of the differences. It asks for the mean, as perplexity does, while signed ranks ask for the median, and
    their least p-value, 2 ** -n for n documents, is too large to reject anything of a family of 36 with fewer than 12.
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


def fallen(family: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> dict[str, str]:
    """The comparisons of a family, ``before`` and ``after`` by name, that do fall, each with a sentence that says it."""
    ps = {name: float(p_values(before, after)) for name, (before, after) in family.items()}
    sentences = {}
    for (name, (before, after)), rejected in zip(family.items(), holm(list(ps.values())), strict=True):
        if rejected:
            means = f"{np.mean(before):.4f} to {np.mean(after):.4f}"
            sentences[name] = f"{name}: NLL falls from {means} over {np.size(after)} documents (p = {ps[name]:.1e})"
    return sentences
