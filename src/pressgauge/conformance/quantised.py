"""Runs of quantised caches on normally distributed entries, and what is known of their quantisation."""

from functools import cache

import torch
from torch import Tensor

from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.quantisation import pair
from pressgauge.conformance.read_back import ReadBack, read_back
from pressgauge.conformance.scripted import scripted
from pressgauge.conformance.session import Trace, run
from pressgauge.conformance.strategies import HEADS, normal_entries
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited

NAMES = ("keys", "values")
LOUDNESS = torch.tensor([1.0, 8.0, 0.125])
"""Factors of the three heads, so that no head can use the scale of another; values have them in reverse."""
LONG = 320
"""Tokens of a text for a subject that declares no residual, if a short one is read back exactly."""


def quantised_only(subject: Subject) -> None:
    """Skip a test of a law about quantised caches."""
    if not subject.declares.quantised:
        not_applicable("entries are not declared as quantised")


def entries(length: int, rows: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values ``[rows, HEADS, length, WIDE]``, float32, with heads of different loudness."""
    keys, values = normal_entries(rows, HEADS, length, seed)
    return keys * LOUDNESS[:, None, None], values * LOUDNESS.flip(0)[:, None, None]


def feed(subject: Subject, keys: Tensor, values: Tensor, lengths: list[int], mask: Tensor | None = None) -> Trace:
    """Trace of a subject that is passed these entries, without evictions."""
    model, ids = scripted(keys, values=values)
    return run(subject, model, ids, lengths, mask, keep_ratio=1)


def feedings(length: int) -> dict[str, list[int]]:
    """Passes over ``length`` tokens, which end with single tokens except for the first."""
    prompt = length - 24
    return {
        "whole": [length],
        "in chunks": [length % 7 or 7, *[7] * ((length - 1) // 7)],
        "as a prompt and single tokens": [prompt] + [1] * 24,
        "from a single token on": [1, 1, 1] + ([1] * (prompt - 3) if length <= 80 else [prompt - 3]) + [1] * 24,
    }


@cache
def length_of(subject: Subject) -> int:
    """Number of tokens of which a few dozen are quantised, as far as is declared."""
    declared = subject.declares.residual
    length = 56 + (declared or 0) + most_behind(subject) + largest_block(subject)
    if declared is None and unaltered(_fed(subject, "whole", length)):
        return LONG
    return length


@cache
def _fed(subject: Subject, feeding: str, length: int) -> Trace:
    return feed(subject, *entries(length), feedings(length)[feeding])


ACROSS = "across 128 and 256 tokens"
"""A feeding of a longer text, since storage often grows there."""


@cache
def _fed_across(subject: Subject) -> Trace:
    lengths = [120, *[4] * 5, 100, *[4] * 10]
    return feed(subject, *entries(sum(lengths)), lengths)


def fed(subject: Subject, feeding: str) -> Trace:
    """Trace of a subject on the same entries, fed in one of the ways of ``feedings``, or ``ACROSS``."""
    if feeding == ACROSS:
        return _fed_across(subject)
    return _fed(subject, feeding, length_of(subject))


def after(trace: Trace, number: int = -1) -> list[ReadBack]:
    """Entries of each layer after a pass, the last by default, by token."""
    audit = audited(trace)
    return [read_back(audit, number % len(trace.passes), layer) for layer in range(trace.layers)]


def unaltered(trace: Trace) -> bool:
    """Whether all is read back as it arrived."""
    return all(bool(exact.all()) for layer in after(trace) for exact in layer.exact)


def check_quantises(subject: Subject) -> None:
    """Check that entries are altered.

    Raises:
        Departure: if they are not.
    """
    trace = fed(subject, "whole")
    if unaltered(trace):
        raise Departure(
            f"entries are declared as quantised, and all {trace.passes[-1].end} are read back as they arrived, to the "
            "bit"
        )


def block(subject: Subject, index: int) -> int:
    """Number of tokens that keys (0) or values (1) are declared to be quantised by together."""
    declares = subject.declares
    return (pair(declares.group)[index] or 1) if pair(declares.axis)[index] == "channel" else 1


def largest_block(subject: Subject) -> int:
    """Number of tokens that are declared to be quantised together, of keys or of values."""
    return max(block(subject, index) for index in (0, 1))


def most_behind(subject: Subject) -> int:
    """Number of tokens that may be exact beyond the declared residual, until they are quantised together.

    A cache may wait for a block of keys or of values, or for as many tokens as its residual.
    """
    return max(subject.declares.residual or 0, largest_block(subject))


def newest_exact(layers: list[ReadBack], index: int) -> int:
    """Number of newest tokens whose keys (0) or values (1) are exact in all layers, rows and heads."""
    exact = torch.stack([layer.exact[index].flatten(0, 1).all(0) for layer in layers]).all(0)
    inexact = torch.nonzero(~exact)
    return len(exact) - 1 - int(inexact[-1]) if len(inexact) else len(exact)


def residual(subject: Subject, index: int) -> int:
    """Number of newest keys (0) or values (1) that are exact, as declared or after one pass over a text."""
    declared = subject.declares.residual
    return newest_exact(after(fed(subject, "whole")), index) if declared is None else declared


def settled(subject: Subject, index: int, layers: list[ReadBack]) -> int:
    """Number of oldest tokens whose keys (0) or values (1) are beyond the residual; in whole groups.

    Args:
        subject: the subject.
        index: 0 for keys, 1 for values.
        layers: what is read back of each layer. Tokens that still wait to be quantised with the next ones are left
            out, but no more than may wait.
    """
    size, seen = block(subject, index), layers[0].keys.shape[2]
    left = seen - residual(subject, index)
    waiting = newest_exact(layers, index)
    if subject.declares.residual is not None and waiting < subject.declares.residual + most_behind(subject):
        left = min(left, seen - waiting)
    return max(0, left) // size * size


def arrived(trace: Trace, layer: int, index: int) -> Tensor:
    """Keys (0) or values (1) that a layer was passed, ``[B, K, T, D]``."""
    return trace.arrived(layer)[index]


def read(layer: ReadBack, index: int) -> Tensor:
    """Keys (0) or values (1) of a layer, ``[B, K, T, D]``."""
    return layer.keys if index == 0 else layer.values
