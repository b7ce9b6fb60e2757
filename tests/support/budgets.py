"""Presses with rules of their own on how many entries they retain, or how many of the newest they protect."""

from dataclasses import dataclass

from pressgauge import KnormPress, TOVAPress


@dataclass(frozen=True)
class SizedPress(KnormPress):
    """Retains a number of entries that does not follow from ``keep_ratio``."""

    size: int = 5

    def target(self, seen: int, held: int) -> int:
        """``size``, and one for every ten tokens."""
        return min(held, self.size + seen // 10)


@dataclass(frozen=True)
class SparingPress(KnormPress):
    """Protects a number of newest tokens that rises and falls from pass to pass."""

    def newest(self, kept: int) -> int:
        """Up to eight."""
        return min(kept - self.sinks, kept * 7 % 9)


@dataclass(frozen=True)
class SizedTOVAPress(TOVAPress):
    """The number of ``SizedPress``, and scores by attention."""

    target = SizedPress.target
    size: int = 5


@dataclass(frozen=True)
class SparingTOVAPress(TOVAPress):
    """The protection of ``SparingPress``, and scores by attention."""

    newest = SparingPress.newest
