"""What a change probably means, where a pattern is known."""

from collections.abc import Sequence

from regression.baseline import Change

DTYPES = ("float32", "bfloat16")
WHICH = {"evicted_at", "positions"}
"""Fields that say which entries stay."""


def explanations(found: Sequence[Change]) -> list[str]:
    """A sentence for each pattern that fits, over all files of a run."""
    values = [change for change in found if change.was is not None and change.now is not None]
    fields = {change.field for change in values}
    files = {change.file for change in values}
    kinds = {file.partition("-")[0] for file in files}
    said: list[str] = []
    if kinds == {"time"}:
        said.append(
            "Only time moved: what is computed is what it was. Look for work that changes nothing, or a busy machine."
        )
    if kinds == {"cost"}:
        said.append("Only cost moved: results are what they were, and more or less is done for them.")
    if kinds == {"decoding"}:
        said.append(
            "Only decoding moved, and what one pass finds did not: look at what the cache says to the model, which is "
            "positions and masks."
        )
    if {"nll", "held"} <= fields:
        said.append(
            "Perplexity and held moved together: look at prune_after, at the rounding of the ratio, or at the schedule."
        )
    elif fields & WHICH and not fields & {"held", "evictions"} and kinds != {"decoding"}:
        said.append(
            "As many entries stay, but others: look at scores, at ties, or at what is protected (sinks, recent)."
        )
    if "order" in fields and "positions" not in fields:
        said.append("Entries are not read in the order of positions: look at where a cache is read.")
    if fields == {"nll"} and kinds != {"decoding"}:
        said.append("Only NLL moved, and the same entries stay: look at attention, at masks, or at the model itself.")
    if files and any(all(file.endswith(f"-{dtype}") for file in files) for dtype in DTYPES):
        dtype = next(iter(files)).rpartition("-")[2]
        said.append(f"Only {dtype} moved: look at casts, and at what is computed in the model's own dtype.")
    return said
