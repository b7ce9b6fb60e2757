"""Deviations of a quantised cache beside its own quantisation error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pressgauge.conformance.outcomes import NOTES, Departure, note
from pressgauge.conformance.precision import tolerance
from pressgauge.conformance.session import Trace

NOISE = 0.01
"""Deviations below this share of the subject's own quantisation error are notes."""
ARITHMETIC = 1e-12
"""Deviations below this share are those of this comparison in float64."""
FLIPS = 1e-3
"""Share of numbers that may differ by one code, by rounding otherwise than in another shape."""


@dataclass(frozen=True)
class Severity:
    """The subject's own quantisation error, in the units of the deviations that are judged."""

    own: float
    """0 if it is exact."""
    quantised: bool = True
    """Whether the subject declares its entries as quantised."""

    @classmethod
    def of_logits(cls, trace: Trace) -> "Severity":
        """Largest error of logits that quantisation causes, relative to the largest logit; 0 for other subjects."""
        if not trace.subject.declares.quantised:
            return cls(0.0, quantised=False)
        with torch.no_grad():
            plain = trace.model(trace.ids.to(trace.model.device), use_cache=False).logits.cpu()
        error = float((trace.logits - plain).abs().max() / plain.abs().max())
        return cls(error if not error < tolerance(plain.dtype) else 0.0)

    def beside(self, deviation: float) -> str:
        """Phrase that relates a deviation to the subject's own error; empty if there is none."""
        if not self.quantised:
            return ""
        if not self.own > 0:
            return ", where its quantisation changes nothing,"
        return f", {deviation / self.own:.2g} of what its quantisation changes ({self.own:.2g}),"

    def is_noise(self, deviation: float) -> bool:
        """Whether a deviation is far below the subject's own error."""
        return deviation <= NOISE * self.own


def root_mean_square(x: Tensor) -> float:
    """Root mean square of finite numbers; 0 for none."""
    x = x.double()[x.isfinite()]
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def check_same_entries(found: Tensor, expected: Tensor, arrived: Tensor, sentence: str) -> None:
    """Check that two readings of the same entries are equal, to the bit or up to noise, which is noted.

    Args:
        found, expected: the readings, ``[..., D]``.
        arrived: the entries as they arrived.
        sentence: what was found, to which the sizes are added.

    Raises:
        Departure: if they differ by more than noise.
    """
    change = (found.double() - expected.double()).abs()
    change = torch.where(found.isnan() & expected.isnan(), 0, change).nan_to_num(torch.inf)
    own = root_mean_square(expected.double() - arrived.double())
    if not float(change.max() if change.numel() else 0) > ARITHMETIC * own:
        return
    differing = change > NOISE * own
    share, most = float(differing.double().mean()), float(change.max())
    sizes = f"by up to {most:.2g}"
    if own > 0:
        sizes += f", {most / own:.2g} of its own quantisation error (root mean square {own:.2g})"
    sentence = f"{sentence} {sizes}, in {100 * float((change > 0).double().mean()):.2g} % of the numbers compared"
    if share <= FLIPS and most <= 8 * own:
        if not any("own quantisation error" in one for one in NOTES):
            # The first one says enough of rounding.
            note(sentence)
        return
    raise Departure(sentence)
