"""The order of entries: ranks from scores, and which entries a pass retains.

Shapes: B batch, K KV heads, N entries held.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pressgauge.rules import Budget, Ledger

_SIGNIFICANT_BITS = 10
"""To which scores are rounded. With fewer, distinct scores become ties; with more, ties fall apart by the noise of
another order of sums: docs/rules.md has the figures."""

_PROTECTED = 1 << 27
"""Above every score's place in the order; minus this is the place of NaN, below every score."""

_POSITIONS = (1 << 32) - 1

FILLER = torch.iinfo(torch.int64).min
"""The rank of filler, below every entry's."""


def wide(keys: Tensor) -> Tensor:
    """``keys`` in float32, or in float64 if that is what they are."""
    return keys if keys.dtype == torch.float64 else keys.float()


def _places(scores: Tensor) -> Tensor:
    """Scores as int64 in the same order, with equal integers where 10 significant bits are equal.

    Integer scores are exact, and are not rounded.
    """
    if not scores.is_floating_point():
        return scores.long().clamp(1 - _PROTECTED, _PROTECTED - 1)
    scores = wide(scores)
    bits = scores.view(torch.int64 if scores.dtype == torch.float64 else torch.int32)
    mantissa = 52 if scores.dtype == torch.float64 else 23
    dropped = mantissa - (_SIGNIFICANT_BITS - 1)
    whole = torch.iinfo(bits.dtype)
    size = bits & whole.max
    # Half to even, as IEEE rounds; a carry runs on into the exponent, as it should.
    odd = (size >> dropped).bitwise_and_(1)
    size.add_(odd).add_((1 << (dropped - 1)) - 1).bitwise_right_shift_(dropped)
    # In two's complement, what is less than 0 is its size with all bits turned, and 1.
    minus = bits >> (whole.bits - 1)
    return size.bitwise_xor_(minus).sub_(minus).masked_fill_(scores.isnan(), -_PROTECTED).long()


def rank(scores: Tensor, positions: Tensor, sinks: int = 0) -> Tensor:
    """One integer per entry that says which stay: the higher ones.

    Equal scores rank the earlier position higher, NaN ranks below every number, and the first ``sinks`` positions
    above all. No two entries of a head have the same rank.

    Args:
        scores: ``[B, K, N]``, of any floating or integer dtype.
        positions: ``[B, K, N]``, -1 where there is filler instead of an entry.
        sinks: number of protected first positions.

    Returns:
        ``[B, K, N]`` int64; ``FILLER`` at filler.
    """
    positions = positions.long()
    places = _places(scores)
    if sinks:
        places = places.masked_fill(positions < sinks, _PROTECTED)
    return (places << 32).add_(_POSITIONS).sub_(positions).masked_fill_(positions < 0, FILLER)


def protect(ranks: Tensor, positions: Tensor, first: Tensor | int) -> Tensor:
    """``ranks`` with the entries at positions from ``first`` (of all rows, 0 or more, or ``[B, 1, 1]``) on put above
    all; never filler, whose position -1 may lie beyond the ``first`` of a row with fewer tokens than are protected."""
    if isinstance(first, Tensor):
        first = first.clamp(min=0)
    return ranks.masked_fill(positions >= first, torch.iinfo(torch.int64).max)


def spare(budget: Budget, ranks: Tensor, positions: Tensor, ledger: Ledger) -> Tensor:
    """``ranks`` with the newest tokens of each row, as many as the budget protects, put above all."""
    first = [seen - budget.newest(held) for seen, held in zip(ledger.seen, ledger.held, strict=True)]
    if first == ledger.seen:
        return ranks
    if len(set(first)) == 1:
        return protect(ranks, positions, first[0])
    return protect(ranks, positions, torch.tensor(first, device=ranks.device)[:, None, None])


def choose(ranks: Tensor, positions: Tensor, keep: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries stay.

    Args:
        ranks: ``[B, K, N]``.
        positions: ``[B, K, N]``, -1 at filler.
        keep: per row, how many entries stay.

    Returns:
        With n the largest of ``keep``: the indices ``[B, K, n]`` of what stays, in order of position, shorter rows
        with filler in front; their positions ``[B, K, n]``, -1 at filler; and the positions of what goes
        ``[B, K, N - min(keep)]``, with -1 where nothing goes.
    """
    order = ranks.argsort(dim=-1, descending=True)
    sorted_positions = positions.gather(2, order)
    most, least = max(keep), min(keep)
    if most == least:
        stays, gone = sorted_positions[..., :most], sorted_positions[..., most:]
    else:
        place = torch.arange(ranks.shape[-1], device=ranks.device)
        staying = place < torch.tensor(keep, device=ranks.device)[:, None, None]
        stays = sorted_positions.masked_fill(~staying, -1)[..., :most]
        gone = sorted_positions.masked_fill(staying, -1)[..., least:]
    stays, by_position = stays.sort(dim=-1, stable=True)
    return order[..., :most].gather(2, by_position), stays, gone


def last_choice(ranks: Tensor) -> Tensor:
    """The index ``[B, K, 1]`` of the entry of lowest rank in each head, never of filler."""
    # One less than FILLER, the lowest of integers, is the highest of them.
    return (ranks - 1).argmin(dim=-1, keepdim=True)


def lowest(ranks: Tensor, count: int) -> Tensor:
    """The indices ``[B, K, count]``, ascending, of the entries of lowest rank in each head of rows without filler."""
    if count == 1:
        return ranks.argmin(dim=-1, keepdim=True)
    return ranks.topk(count, largest=False).indices.sort(dim=-1).values
