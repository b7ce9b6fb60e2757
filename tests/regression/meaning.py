"""What a change probably means, where a pattern is known."""

from collections.abc import Sequence

from regression.baseline import Change

DTYPES = ("float32", "bfloat16", "float16")


def meanings(found: Sequence[Change]) -> list[str]:
    """A sentence for each pattern that fits, over all files of a run."""
    values = [change for change in found if change.was is not None and change.now is not None]
    fields = {change.field for change in values}
    kinds = {change.file.partition("-")[0] for change in values}
    counts = fields & {"held", "evictions", "affected", "tokens"}
    which = fields & {"evicted_at", "order", "positions"}
    said = []
    if not values:
        return said
    if kinds == {"time"}:
        said.append("Only time moved: what is computed is what it was. Look for work that changes nothing, or a busy machine.")
    elif kinds == {"cost"}:
        said.append("Only cost moved: results are what they were, and more or less is done for them.")
    if "nll" in fields and "held" in fields:
        said.append("Perplexity and held moved together: look at prune_after, the rounding of the ratio, or the schedule.")
    elif "evictions" in counts and "held" not in counts:
        said.append("As much is held in the end, but not as much was evicted: look at the boundary of prune_after.")
    elif which and not counts - {"tokens"} and "nll" in fields:
        said.append("As many entries go, but others: look at scores, ties, or what is protected (sinks, recent).")
    if "order" in which and "positions" not in which:
        said.append("What is read is not in the order of positions: look at where a cache is read.")
    if fields == {"nll"}:
        if {change.file for change in values} == {"decoding"}:
            said.append(
                "Only the NLL of decoding moved, and the same entries are held: look at positions and masks of the cache."
            )
        else:
            said.append("Only NLL moved, and the same entries are held: look at attention, masks or the model itself.")
    moved = {dtype for dtype in DTYPES if any(change.file.endswith(dtype) for change in values)}
    if len(moved) == 1 and all(change.file.endswith(tuple(moved)) for change in values):
        said.append(f"Only {moved.pop()} moved: look at casts, or at what is computed in the model's own dtype.")
    return said
