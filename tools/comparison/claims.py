"""Published claims about the effect of compression on perplexity, and their verification."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "cannot be decided", "fails: more", "fails: less"]
"""A claim fails if perplexity rises by more or by less than claimed."""


@dataclass(frozen=True)
class Claim:
    """Claimed change of perplexity for a press and a keep ratio.

    Attributes:
        press: name on the command line.
        keep_ratio: the complement of the reports' ratio, such as "20 % compression".
        low, high: relative change of perplexity; equal if the claim is a single number, an upper bound.
    """

    press: str
    keep_ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        change = f"at most +{self.high:.1%}" if self.low == self.high else f"+{self.low:.0%} to +{self.high:.0%}"
        return f"{self.press} without {1 - self.keep_ratio:.0%} of the entries: {change}"


CLAIMS = (
    Claim("h2o", 0.8, 0.02, 0.03),
    Claim("streaming-llm", 0.8, 0.01, 0.05),
    Claim("knorm", 0.8, 0.005, 0.005),
    Claim("snapkv", 0.7, 0.03, 0.04),
    Claim("streaming-llm", 0.5, 0.02, 0.05),
    Claim("streaming-llm", 0.3, 0.04, 0.17),
    Claim("streaming-llm", 0.2, 0.10, 0.25),
)


def verdict(claim: Claim, interval: tuple[float, float]) -> Verdict:
    """Verdict on a claim, given the 95 % confidence interval of the measured change.

    A claim holds if the interval lies within the claimed range, fails if they are disjoint, and cannot be decided
    otherwise. A single number is an upper bound.
    """
    low, high = interval
    least = float("-inf") if claim.low == claim.high else claim.low
    if low > claim.high:
        return "fails: more"
    if high < least:
        return "fails: less"
    return "holds" if least <= low and high <= claim.high else "cannot be decided"
