"""Laws about memory: what a compressor keeps alive, wherever it keeps it."""

import functools
from collections.abc import Callable

import torch

from pressgauge import formats
from pressgauge.conformance import architectures
from pressgauge.conformance.session import Departure, not_applicable, note
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
def model() -> architectures.Model:
    """A float32 Llama whose keys have a common size."""
    built = architectures.build("llama", head_dim=HEAD, num_hidden_layers=2)
    built.to(torch.float32)
    return built


@functools.cache
def weighed(subject: Subject) -> Weight:
    """What a subject keeps alive after a text of ``sum(LENGTHS)`` tokens."""
    ids = architectures.text(model(), 1, sum(LENGTHS))
    return weigh(subject, model(), ids, LENGTHS, keep_ratio=KEPT, prune_after=PRUNE_AFTER)


def entry() -> int:
    """Bytes of an entry of all KV heads of a layer, uncompressed."""
    return 2 * int(model().config.num_key_value_heads) * HEAD * 4


def uncompressed() -> int:
    """Bytes of the uncompressed cache."""
    return int(model().config.num_hidden_layers) * sum(LENGTHS) * entry()


def test_a_compressed_cache_takes_less_memory_than_an_uncompressed_one(subject: Subject) -> None:
    """All memory that a compressor keeps alive, in its cache or elsewhere, is less than a ``DynamicCache`` holds."""
    found, whole, plain = weighed(subject), uncompressed(), weighed(UNCOMPRESSED)
    note(
        f"after {sum(LENGTHS)} tokens with keep_ratio {KEPT} it keeps {found.alive / whole:.3g} of the bytes of a "
        f"DynamicCache; while updating, {found.peak / plain.peak:.3g} of its peak"
    )
    if subject.declares.target and all(
        subject.declares.target(tokens, tokens) == tokens for tokens in (sum(LENGTHS[:1]), sum(LENGTHS))
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
    found = weighed(subject)
    needed = sum(found.held) * entry()
    metadata = METADATA * sum(LENGTHS) * len(found.held) * int(model().config.num_key_value_heads)
    if found.alive > SLACK * needed + metadata:
        raise Departure(
            f"after {sum(LENGTHS)} tokens its layers hold {_listed(found.held)} entries, {formats.size(needed)}, and "
            f"{formats.size(found.alive)} are kept alive ({found.named})"
        )


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
    found, whole = weighed(subject), uncompressed()
    metadata = METADATA * sum(LENGTHS) * len(found.held) * int(model().config.num_key_value_heads)
    for name, reported in found.reported.items():
        figure = REPORTED[name]
        low, high = sorted(figure(bytes_, whole) for bytes_ in (found.alive, max(found.alive - metadata, 1)))
        margin = (SLACK - 1) * abs(figure(found.alive, whole))
        if not low - margin <= reported <= high + margin:
            raise Departure(
                f"it reports {name} {reported:,.4g} after {sum(LENGTHS)} tokens; it keeps {found.alive:,} bytes alive "
                f"and a DynamicCache {whole:,}: right is {figure(found.alive, whole):,.4g} ({found.named})"
            )
