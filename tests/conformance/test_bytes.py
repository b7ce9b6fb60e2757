"""Laws about memory: what a compressor keeps alive, wherever it keeps it."""

import functools
from collections.abc import Callable

import torch

from pressgauge import formats
from pressgauge.conformance import architectures
from pressgauge.conformance.outcomes import Departure, not_applicable, note
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.weighing import UNCOMPRESSED, Weight, weigh

KEPT = 0.25
PRUNE_AFTER = 64
LENGTHS = [384, 64, 48, *[1] * 16]
HEAD = 64
"""Numbers of a key."""
SLACK = 1.02
METADATA = 16
"""Bytes for positions and scores, per token seen and KV head."""


@functools.cache
def model(dtype: torch.dtype) -> architectures.Model:
    """A Llama whose keys have a common size."""
    built = architectures.build("llama", head_dim=HEAD, num_hidden_layers=2)
    built.to(dtype)
    return built


def dtype_of(subject: Subject) -> torch.dtype:
    """Dtype in which a subject is weighed: that with which quantised caches are usually compared."""
    if subject.declares.dtypes:
        return subject.dtype
    return torch.float16 if subject.declares.quantised else torch.float32


@functools.cache
def weighed(subject: Subject, dtype: torch.dtype) -> Weight:
    """What a subject keeps alive after a text of ``sum(LENGTHS)`` tokens."""
    ids = architectures.text(model(dtype), 1, sum(LENGTHS))
    return weigh(subject, model(dtype), ids, LENGTHS, keep_ratio=KEPT, prune_after=PRUNE_AFTER)


def entry(dtype: torch.dtype) -> int:
    """Bytes of an entry of all KV heads of a layer, uncompressed."""
    return 2 * int(model(dtype).config.num_key_value_heads) * HEAD * dtype.itemsize


def uncompressed(dtype: torch.dtype) -> int:
    """Bytes of the uncompressed cache."""
    return int(model(dtype).config.num_hidden_layers) * sum(LENGTHS) * entry(dtype)


def test_a_compressed_cache_takes_less_memory_than_an_uncompressed_one(subject: Subject) -> None:
    """All memory that a compressor keeps alive, in its cache or elsewhere, is less than a ``DynamicCache`` holds."""
    dtype = dtype_of(subject)
    found, whole, plain = weighed(subject, dtype), uncompressed(dtype), weighed(UNCOMPRESSED, dtype)
    note(
        f"after {sum(LENGTHS)} tokens with keep_ratio {KEPT} it keeps {found.alive / whole:.3g} of the bytes of a "
        f"DynamicCache; while updating, {found.peak / plain.peak:.3g} of its peak"
    )
    packed = subject.declares.quantised and not subject.declares.simulated
    if (
        subject.declares.target
        and not packed
        and all(subject.declares.target(tokens, tokens) == tokens for tokens in (sum(LENGTHS[:1]), sum(LENGTHS)))
    ):
        not_applicable("the subject declares that it evicts nothing")
    if found.alive > whole:
        raise Departure(
            f"after {sum(LENGTHS)} tokens with keep_ratio {KEPT} it keeps {formats.size(found.alive)} alive, "
            f"{found.alive / whole:.2f} times the {formats.size(whole)} of a DynamicCache ({found.named})"
        )


def test_nothing_is_kept_alive_but_the_held_entries(subject: Subject) -> None:
    """Rule 9: nothing is kept alive beside the held entries but positions and scores, at most 16 bytes per token and KV
    head, wherever it is: in the cache, the compressor, a closure or a module (C4)."""
    declares = subject.declares
    if declares.entries == "altered":
        not_applicable("entries are declared as altered, so the size of one is unknown")
    if declares.storage == "any":
        not_applicable("the subject declares that evicted entries need not be freed at once")
    found = weighed(subject, dtype_of(subject))
    needed = sum(found.held) * entry(dtype_of(subject))
    metadata = _metadata(found)
    if found.alive > SLACK * needed + metadata:
        raise Departure(
            f"after {sum(LENGTHS)} tokens its layers hold {_listed(found.held)} entries, {formats.size(needed)}, and "
            f"{formats.size(found.alive)} are kept alive ({found.named})"
        )


def _metadata(found: Weight) -> int:
    """Bytes that positions and scores may take."""
    return METADATA * sum(LENGTHS) * len(found.held) * int(model(torch.float32).config.num_key_value_heads)


def _listed(counts: tuple[int, ...]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))


REPORTED: dict[str, Callable[[int, int], float]] = {
    "bytes": lambda alive, whole: alive,
    "ratio": lambda alive, whole: whole / alive,
    "saved": lambda alive, whole: 1 - alive / whole,
}
"""Figures of memory, from the bytes kept alive and those of the uncompressed cache."""


def test_reported_memory_is_what_is_kept_alive(subject: Subject) -> None:
    """What a package reports about its memory is what it keeps alive, with or without positions and scores."""
    if not subject.declares.reports:
        not_applicable("the subject declares no report of its memory")
    found, whole = weighed(subject, dtype_of(subject)), uncompressed(dtype_of(subject))
    # Scales and norms of quantised entries are no metadata that a figure may leave out.
    metadata = 0 if subject.declares.quantised else _metadata(found)
    for name, reported in found.reported.items():
        figure = REPORTED[name]
        low, high = sorted(figure(bytes_, whole) for bytes_ in (found.alive, max(found.alive - metadata, 1)))
        margin = (SLACK - 1) * abs(figure(found.alive, whole))
        if not low - margin <= reported <= high + margin:
            raise Departure(
                f"it reports {name} {reported:,.4g} after {sum(LENGTHS)} tokens; it keeps {found.alive:,} bytes alive "
                f"and a DynamicCache {whole:,}: right is {figure(found.alive, whole):,.4g} ({found.named})"
            )
