"""Black-box audit of quantised caches: each entry is matched with the nearest entry that was passed in."""

import torch
from torch import Tensor

from pressgauge.conformance.audit import GONE, Audit, Held
from pressgauge.conformance.outcomes import Departure
from pressgauge.conformance.quantisation import expected_error

FARTHEST = 0.95
"""Largest relative distance between an entry and its token; that of zero is 1, of another token usually 1.4."""


class QuantisedAudit(Audit):
    """Token-level analysis of a trace with quantised entries."""

    def match(self, layer: int, number: int, before: Tensor | None) -> Held:
        one = self.trace.passes[number]
        keys, values = self.checked(layer, number)
        own_keys, own_values = self.trace.arrived(layer, number + 1)
        padding = (keys == 0).all(-1) & (values == 0).all(-1)
        if keys.shape[2] == own_keys.shape[2]:
            # Usually all tokens are held, in order.
            far = [relative(mine, own) for mine, own in ((keys, own_keys), (values, own_values))]
            doubtful = (far[0] > self.limits[0]) | (far[1] > self.limits[1])
            if not doubtful.any() or (min(self.limits) == FARTHEST and self._own(layer, number, doubtful)):
                return Held(torch.arange(one.end).expand(keys.shape[:3]), 0)
        far = [distances(mine, own) for mine, own in ((keys, own_keys), (values, own_values))]
        both = far[0].nan_to_num(0).square() + far[1].nan_to_num(0).square()
        if before is not None:
            # What was evicted before the pass cannot be held after it, unless nothing else is near.
            old = torch.zeros(both.shape[:2] + both.shape[3:], dtype=torch.bool)
            old.scatter_(2, before.clamp(min=0).long(), True)
            old[..., one.start :] = True
            alive = both.masked_fill(~old[:, :, None], torch.inf)
            both = torch.where(alive.amin(-1, keepdim=True) <= self.limits[0] ** 2 + self.limits[1] ** 2, alive, both)
        nearest = both.argmin(-1)
        for distance, limit in zip(far, self.limits, strict=True):
            own = distance.gather(-1, nearest[..., None])[..., 0]
            if len(missing := torch.nonzero((own > limit) & ~padding)):
                row, head, place = missing[0].tolist()
                where = f"after pass {number} ({one.end} tokens seen), layer {layer}, row {row}, KV head {head}"
                for name, entry in (("key", keys), ("value", values)):
                    if not (finite := entry[row, head, place].isfinite()).all():
                        raise Departure(
                            f"{where}, entry {place} has a {name} that is not finite ({int((~finite).sum())} of "
                            f"{len(finite)} numbers)"
                        )
                tokens = [int(each[row, head, place].nan_to_num(torch.inf).argmin()) for each in far]
                least = [float(each[row, head, place].nan_to_num(torch.inf).amin()) for each in far]
                if tokens[0] != tokens[1] and all(x <= y for x, y in zip(least, self.limits, strict=True)):
                    raise Departure(
                        f"{where}, entry {place} pairs the key of token {tokens[0]} with the value of token {tokens[1]}"
                    )
                index = 0 if least[0] > self.limits[0] else 1
                raise Departure(
                    f"{where}, entry {place} has a {('key', 'value')[index]} that was never passed in; the nearest is "
                    f"that of token {tokens[index]}, at a relative distance of {least[index]:.2g}, and what is "
                    f"declared allows {self.limits[index]:.2g}"
                )
        two = both.topk(min(2, both.shape[-1]), dim=-1, largest=False).values
        ambiguous = int((two[..., -1] < 1.2 * two[..., 0]).sum()) if two.shape[-1] == 2 else 0
        return Held(nearest.masked_fill(padding, GONE), ambiguous)

    def _own(self, layer: int, number: int, doubtful: Tensor) -> bool:
        """Whether the entries marked in ``[B, K, T]`` are nearest to their own token, however far."""
        places = torch.nonzero(doubtful)
        total = torch.zeros(len(places), doubtful.shape[2], dtype=torch.float64)
        for read, own in zip(self.checked(layer, number), self.trace.arrived(layer, number + 1), strict=True):
            row, head, place = places.unbind(1)
            difference = read[row, head, place].double()[:, None] - own[row, head].double()
            total += (difference.norm(dim=-1) / usual_norm(own)[row, head]).square()
        return torch.equal(total.argmin(-1), places[:, 2])

    @property
    def limits(self) -> tuple[float, float]:
        """Largest relative distances of keys and of values from those passed in."""
        keys, values = (min(FARTHEST, max(4 * error, 0.05)) for error in expected_error(self.trace.subject.declares))
        return keys, values


def relative(read: Tensor, arrived: Tensor) -> Tensor:
    """Distance of vectors ``[B, K, T, D]`` from those that arrived, relative to the usual norm: ``[B, K, T]``."""
    errors: Tensor = (read.double() - arrived.double()).norm(dim=-1)
    return errors / usual_norm(arrived)


def distances(read: Tensor, arrived: Tensor) -> Tensor:
    """Relative distance of each entry from each that arrived: ``[B, K, N, T]``; NaN for those with NaN."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(read.double(), arrived.double(), compute_mode=exact) / usual_norm(arrived)[:, :, None]


def usual_norm(arrived: Tensor) -> Tensor:
    """Norm of each vector, at least the root mean square over the tokens of a head: ``[B, K, T]``.

    Where tokens share a scale, the error of a short vector is that of a long one.
    """
    norms = arrived.double().norm(dim=-1)
    usual = norms.nan_to_num(0).square().mean(-1, keepdim=True).sqrt()
    return torch.maximum(norms.nan_to_num(0), usual).clamp(min=1e-30)
