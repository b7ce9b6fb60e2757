"""Ranks of entries from scores, and selection of the entries a pass retains.

Shapes: B batch, K KV heads, N entries.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pressgauge.rules import Balance, Budget
from pressgauge.storage import heavy, light

_SIGNIFICANT_BITS = 10
"""Significant bits to which scores are rounded.

With fewer bits, distinct scores become ties. With more, rounding noise from a different summation order breaks ties.
docs/rules.md has the measurements.
"""

_PROTECTED = 1 << 27
"""Sort key above that of every score. Its negative, below every score, is that of NaN."""

_POSITIONS = (1 << 32) - 1

FILLER = torch.iinfo(torch.int64).min
"""Rank of padding slots, below that of every entry."""


def wide(keys: Tensor) -> Tensor:
    """``keys`` in float32; float64 is left as is."""
    return keys if keys.dtype == torch.float64 else keys.float()


def _places(scores: Tensor) -> Any:
    """Order-preserving integer sort keys, equal where 10 significant bits are equal: array ``[B, K, N]`` int64.

    Integer scores are exact and are not rounded.
    """
    if not scores.is_floating_point():
        return light(scores.long().clamp(1 - _PROTECTED, _PROTECTED - 1))
    scores = wide(scores)
    kind = torch.int64 if scores.dtype == torch.float64 else torch.int32
    whole = torch.iinfo(kind).max
    bits = light(scores.view(kind).long())
    mantissa = 52 if scores.dtype == torch.float64 else 23
    dropped = mantissa - (_SIGNIFICANT_BITS - 1)
    size = bits & whole
    # Round half to even, as in IEEE 754. A carry into the exponent is correct.
    places = size >> dropped
    places &= 1
    places += size
    places += (1 << (dropped - 1)) - 1
    places >>= dropped
    # Sign-magnitude to two's complement: flip all bits of negatives and add 1.
    minus = bits >> 63
    places ^= minus
    places -= minus
    # NaN is above infinity.
    places[size > whole >> mantissa << mantissa] = -_PROTECTED
    return places


def rank(scores: Tensor, positions: Tensor, sinks: int = 0) -> Tensor:
    """Integer ranks of entries; those with the highest ranks are retained.

    Of equal scores, the earlier position ranks higher. NaN ranks below every number, the first ``sinks`` positions
    above all. Ranks are unique within a head.

    Args:
        scores: ``[B, K, N]``, of any floating-point or integer dtype.
        positions: ``[B, K, N]``, -1 at padding slots.
        sinks: number of protected first positions.

    Returns:
        ``[B, K, N]`` int64; ``FILLER`` at padding slots.
    """
    places, order = _places(scores), light(positions)
    if sinks:
        places[order < sinks] = _PROTECTED
    places <<= 32
    places += _POSITIONS
    places -= order
    places[order < 0] = FILLER
    return heavy(places)


def protect(ranks: Tensor, positions: Tensor, first: Tensor | int) -> Tensor:
    """``ranks`` with the entries from position ``first`` on ranked above all others.

    Padding slots stay last: their position -1 would pass a negative ``first``, that of a row with fewer tokens than are
    protected.

    Args:
        ranks, positions: ``[B, K, N]``.
        first: one position of at least 0 for all rows, or ``[B, 1, 1]``.
    """
    if isinstance(first, Tensor):
        first = first.clamp(min=0)
    return ranks.masked_fill(positions >= first, torch.iinfo(torch.int64).max)


def spare(budget: Budget, ranks: Tensor, positions: Tensor, balance: Balance) -> Tensor:
    """``ranks`` with each row's protected newest tokens ranked above all others."""
    first = [seen - budget.protected(held) for seen, held in zip(balance.seen, balance.held, strict=True)]
    if first == balance.seen:
        return ranks
    if len(set(first)) == 1:
        return protect(ranks, positions, first[0])
    return protect(ranks, positions, torch.tensor(first, device=ranks.device)[:, None, None])


def choose(
    ranks: Tensor,
    positions: Tensor,
    keep: Sequence[int] | Sequence[Sequence[int]],
    *,
    ordered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the entries to retain.

    Args:
        ranks: ``[B, K, N]``.
        positions: ``[B, K, N]``, -1 at padding slots.
        keep: number of entries to retain, per row, or per row and head.
        ordered: whether the entries are in order of position, without padding slots.

    Returns:
        With n the largest of ``keep``: the indices ``[B, K, n]`` of retained entries in order of position, shorter ones
        padded on the left; their positions ``[B, K, n]``, -1 at padding slots; and the positions of evicted entries
        ``[B, K, N - min(keep)]``, -1 where none is evicted.
    """
    limits = torch.tensor(keep).view(len(keep), -1, 1)
    most, least = int(limits.max()), int(limits.min())
    if ordered and most == least == ranks.shape[-1] - 1:
        slot = lowest(ranks, 1)
        kept = torch.arange(most, device=ranks.device)
        kept = kept + (kept >= slot)
        return kept, positions.gather(2, kept), positions.gather(2, slot)
    order = ranks.argsort(dim=-1, descending=True)
    sorted_positions = positions.gather(2, order)
    if most == least:
        stays, gone = sorted_positions[..., :most], sorted_positions[..., most:]
    else:
        place = torch.arange(ranks.shape[-1], device=ranks.device)
        staying = place < limits.to(ranks.device)
        stays = sorted_positions.masked_fill(~staying, -1)[..., :most]
        gone = sorted_positions.masked_fill(staying, -1)[..., least:]
    stays, by_position = stays.sort(dim=-1, stable=True)
    return order[..., :most].gather(2, by_position), stays, gone


def last_choice(scores: Tensor, empty: Tensor) -> Any:
    """Index of each head's lowest-ranked entry: an array ``[B * K]``.

    Args:
        scores: ``[B, K, n]``, of entries in order of position.
        empty: ``[B, K, n]`` bool, True at padding slots, of which none is chosen.
    """
    places = _places(scores)
    places[light(empty)] = _PROTECTED
    heads = places.reshape(-1, places.shape[-1])
    lines, order = (light(torch.arange(size, device=scores.device)) for size in heads.shape)
    ties = heads == heads[lines, heads.argmin(axis=-1)][:, None]
    return (ties * order).argmax(axis=-1)


def _edges(scores: NDArray[Any]) -> NDArray[Any]:
    """The largest numbers that are rounded like these, of any shape."""
    kind, whole, mantissa = (np.int64, 2**63 - 1, 52) if scores.dtype == np.float64 else (np.int32, 2**31 - 1, 23)
    bits: NDArray[Any] = scores.view(kind)
    size = bits & whole
    dropped = mantissa - (_SIGNIFICANT_BITS - 1)
    half = 1 << (dropped - 1)
    # Rounded to the nearest step or, halfway, to the even one.
    place = size + ((size >> dropped) & 1) + (half - 1) >> dropped
    edge = np.where(bits < 0, -(place << dropped), place << dropped) + (half - (place & 1))
    found: NDArray[Any] = np.copysign(abs(edge).view(scores.dtype), edge)
    return found


def last_of_lowest(scores: NDArray[Any]) -> NDArray[Any]:
    """Index of the lowest-ranked entry of each line: ``[L]``.

    Args:
        scores: ``[L, n]`` float32 or float64 without NaN, of entries in order of position; infinity at entries that are
            not to be chosen.
    """
    first, least = _first_of_lowest(scores)
    return first if _alone(scores, least, 0.0) else _last(scores, _edges(least))


def _first_of_lowest(scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Index of each line's first lowest score, and that score: ``[L]`` each."""
    first: NDArray[Any] = scores.argmin(axis=1)
    return first, scores[np.arange(len(scores)), first]


def _alone(scores: NDArray[Any], least: NDArray[Any], within: float) -> bool:
    """Whether in every line no score but the lowest, ``least``, may be rounded like it, if all are known up to
    ``within``; False may be wrong."""
    kind = np.finfo(scores.dtype)
    # No sum is too large, so that nothing warns: what lies beyond half of the largest number is not found to be alone.
    half = kind.max / 2
    # Twice the step between numbers of 10 bits, and subnormal numbers, whose steps are all of one size.
    reach = np.minimum(abs(least) * 2.0 ** (2 - _SIGNIFICANT_BITS), half / 2) + (kind.tiny + 3 * within)
    bound = np.minimum(least, half) + reach
    return int(np.count_nonzero(scores <= bound[:, None])) == len(scores)


def _last(scores: NDArray[Any], edges: NDArray[Any]) -> NDArray[Any]:
    """Index of the last entry of each line that is not above its edge."""
    chosen: NDArray[Any] = scores.shape[1] - 1 - (scores <= edges[:, None])[:, ::-1].argmax(axis=1)
    return chosen


def surely_last_of_lowest(scores: NDArray[Any], within: float) -> NDArray[Any] | None:
    """``last_of_lowest`` of scores that are known up to ``within``; None if they do not determine it."""
    first, least = _first_of_lowest(scores)
    if _alone(scores, least, within):
        return first
    edges, others = _edges(np.array([least - within, least + within], dtype=scores.dtype))
    if (edges != others).any():
        return None
    chosen = _last(scores, edges - within)
    return chosen if (chosen == _last(scores, edges + within)).all() else None


def lowest(ranks: Tensor, count: int) -> Tensor:
    """Indices of each head's lowest-ranked entries, ascending: ``[B, K, count]``.

    There must be no padding slots.
    """
    if count == 1:
        return ranks.argmin(dim=-1, keepdim=True)
    return ranks.topk(count, largest=False).indices.sort(dim=-1).values
