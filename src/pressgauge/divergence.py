"""KL divergence of next-token distributions, and agreement of their top-1 predictions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 20
"""Number of logits compared at a time; few enough to fit the CPU's cache."""


def top1(logits: Tensor) -> Tensor:
    """Top-1 predictions ``[B, n]`` on the CPU, of logits ``[B, n, V]``; of equal logits the first."""
    return logits.argmax(dim=-1).cpu()


def divergence(logits: Tensor, reference: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """How far distributions are from those of a reference.

    Args:
        logits: ``[B, n, V]``.
        reference: logits of the reference, of the same shape.
        top: its top-1 predictions ``[B, n]``.

    Returns:
        ``[B, n]`` float64 on the CPU: KL(reference || distribution) in nats, 0 for equal logits, infinite where a token
        that the reference can predict is impossible, and NaN if a logit is NaN. And ``[B, n]`` bool: both have the same
        top-1 prediction.
    """
    # MPS has no float64.
    device = torch.device("cpu") if logits.device.type == "mps" else logits.device
    wide = torch.promote_types(logits.dtype, torch.float32)
    block = max(1, _BLOCK // logits.shape[2])
    kl = torch.empty(logits.shape[:2], dtype=torch.float64)
    agrees = torch.empty(logits.shape[:2], dtype=torch.bool)
    for row in range(logits.shape[0]):
        for start in range(0, logits.shape[1], block):
            columns = slice(start, start + block)
            theirs, own = (given[row, columns].to(device, wide) for given in (reference, logits))
            best = top[row, columns, None].to(device)
            most = own.amax(dim=-1, keepdim=True)
            # Of equal logits the first is top-1; argmax runs only where the reference's prediction has the maximum.
            same = (own.gather(1, best) == most)[:, 0]
            same[same.clone()] = own[same].argmax(dim=-1) == best[same, 0]
            agrees[row, columns] = same
            kl[row, columns] = _kl(theirs, own, theirs.gather(1, best), most).cpu()
    return kl, agrees


def _kl(reference: Tensor, own: Tensor, most: Tensor, own_most: Tensor) -> Tensor:
    """KL(reference || own) ``[n]`` of logits ``[n, V]`` with maxima ``[n, 1]``."""
    weight, own_weight = reference - most, own - own_most
    change = weight - own_weight
    total, own_total = (one.exp_().sum(dim=-1).double() for one in (weight, own_weight))
    change = change.mul_(weight).sum(dim=-1).double()
    # Only rounding makes it negative.
    kl: Tensor = (change / total + own_total.log() - total.log()).clamp_min(0)
    strange = ~kl.isfinite()
    if strange.any():
        log_p, log_q = (one[strange].double().log_softmax(dim=-1) for one in (reference, own))
        terms = torch.where(log_q == -torch.inf, torch.inf, log_p.exp() * (log_p - log_q))
        # A token that the reference cannot predict adds nothing, whatever the other distribution.
        terms.masked_fill_(log_p == -torch.inf, 0)
        nothing = own[strange].isnan().any(dim=-1)
        kl[strange] = terms.sum(dim=-1).masked_fill(nothing, torch.nan)
    return kl


Note = Callable[[list[int], slice, Tensor], None]
"""Called with rows, a range of their scored tokens, and the logits ``[rows, tokens, V]`` that predict these."""


@dataclass
class _Piece:
    """What is held of the reference's logits: rows, a range of columns, predictions, and the logits if they fit."""

    rows: list[int]
    columns: slice
    top: Tensor
    logits: Tensor | None

    def holds(self, rows: list[int], columns: slice) -> bool:
        return (self.rows, self.columns) == (rows, columns)


class Held:
    """Logits of a reference run, held in the main memory below a limit of bytes, and computed again beyond.

    Args:
        most_bytes: the limit.
        again: computes the logits ``[rows, columns, V]`` of rows and a range of columns that the reference noted.

    Attributes:
        open: whether the reference is running: its logits are noted. Afterwards others are compared with them.
        nbytes: bytes held.
    """

    def __init__(self, most_bytes: int, again: Callable[[list[int], slice], Tensor]) -> None:
        self.most_bytes = most_bytes
        self.again = again
        self.open = True
        self.nbytes = 0
        self._pieces: list[_Piece] = []

    def reference(self, rows: list[int], columns: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The reference's logits in place of ``logits``, and its predictions; while it runs, these are its own.

        Raises:
            ValueError: if logits are compared in other pieces than the reference's, and not all of its are held.
        """
        if self.open:
            fits = self.nbytes + logits.nbytes <= self.most_bytes
            self.nbytes += logits.nbytes if fits else 0
            self._pieces.append(_Piece(rows, columns, top1(logits), logits.to("cpu", copy=True) if fits else None))
            return logits, self._pieces[-1].top
        for piece in self._pieces:
            if piece.holds(rows, columns):
                return self.again(rows, columns) if piece.logits is None else piece.logits, piece.top
        found, top = torch.zeros_like(logits), torch.zeros(logits.shape[:2], dtype=torch.long)
        for piece in self._pieces:
            if piece.logits is None:
                raise ValueError(
                    f"the uncompressed logits are more than most_bytes={self.most_bytes}, and only those of whole "
                    "passes are computed again: use method='onepass', fewer tokens, or a larger most_bytes"
                )
            # Where a row has fewer columns than others, it has no token to score.
            first, stop = max(piece.columns.start, columns.start), min(piece.columns.stop, columns.stop)
            for own, row in enumerate(rows):
                if row in piece.rows and first < stop:
                    there = piece.rows.index(row), slice(first - piece.columns.start, stop - piece.columns.start)
                    here = own, slice(first - columns.start, stop - columns.start)
                    found[here], top[here] = piece.logits[there], piece.top[there]
        return found, top


class Comparison:
    """A run's distance from a reference, gathered in pieces.

    Attributes:
        kl: ``[B, scored]`` float64, see ``divergence``; NaN where nothing was noted.
        agrees: ``[B, scored]`` bool.
    """

    def __init__(self, held: Held, rows: int, columns: int) -> None:
        self._held = held
        self.kl = torch.full((rows, columns), torch.nan, dtype=torch.float64)
        self.agrees = torch.zeros((rows, columns), dtype=torch.bool)

    def note(self, rows: list[int], columns: slice, logits: Tensor) -> None:
        """Compare logits ``[rows, columns, V]`` with the reference's."""
        self.kl[rows, columns], self.agrees[rows, columns] = divergence(
            logits, *self._held.reference(rows, columns, logits)
        )
