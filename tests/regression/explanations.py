"""Probable explanations of changes, for known patterns."""

from collections.abc import Sequence

from regression.baseline import Change

DTYPES = ("float32", "bfloat16")
WHICH = {"evicted_at", "positions"}
"""Fields that show which entries are retained."""


def explanations(found: Sequence[Change]) -> list[str]:
    """A sentence per matching pattern, over all files of a run."""
    values = [change for change in found if change.was is not None and change.now is not None]
    fields = {change.field for change in values}
    files = {change.file for change in values}
    kinds = {file.partition("-")[0] for file in files}
    said: list[str] = []
    if kinds == {"time"}:
        said.append("Only time moved, and results did not. Look for superfluous work, or a busy machine.")
    if kinds == {"cost"}:
        said.append("Only cost moved, and results did not: the same results take more or less work.")
    if kinds == {"decoding"}:
        said.append(
            "Only decoding moved, and one pass did not: look at what the cache gives to the model, positions and masks."
        )
    if {"nll", "held"} <= fields:
        said.append(
            "Perplexity and held moved together: look at prune_after, at the rounding of the ratio, or at the schedule."
        )
    elif fields & WHICH and not fields & {"held", "evictions"} and kinds != {"decoding"}:
        said.append(
            "Other entries are retained, equally many: look at scores, ties, or at what is protected (sinks, recent)."
        )
    if "order" in fields and "positions" not in fields:
        said.append("Entries are not read in the order of positions: look at the code that reads a cache.")
    if fields == {"nll"} and kinds != {"decoding"}:
        said.append(
            "Only NLL moved, and the retained entries did not: look at attention, at masks, or at the model itself."
        )
    if files and any(all(file.endswith(f"-{dtype}") for file in files) for dtype in DTYPES):
        dtype = next(iter(files)).rpartition("-")[2]
        said.append(f"Only {dtype} moved: look at casts, and at computations in the model's own dtype.")
    return said
