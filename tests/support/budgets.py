"""Presses with rules of their own on how many entries they retain, or how many of the newest they protect."""

from dataclasses import dataclass

from pressgauge import KeyDiffPress, KnormPress, Press, TOVAPress


@dataclass(frozen=True)
class Sized(Press):
    """Retains a number of entries that does not follow from ``keep_ratio``."""

    size: int = 5

    def target(self, seen: int, held: int) -> int:
        """``size``, and one for every ten tokens."""
        return min(held, self.size + seen // 10)


@dataclass(frozen=True)
class Sparing(Press):
    """Protects a number of newest tokens that rises and falls from pass to pass."""

    def newest(self, kept: int) -> int:
        """Up to eight."""
        return min(kept - self.sinks, kept * 7 % 9)


@dataclass(frozen=True)
class SizedPress(Sized, KnormPress):
    """With fixed scores."""


@dataclass(frozen=True)
class SizedTOVAPress(Sized, TOVAPress):
    """With scores by attention."""


@dataclass(frozen=True)
class SparingPress(Sparing, KnormPress):
    """With fixed scores."""


@dataclass(frozen=True)
class SparingTOVAPress(Sparing, TOVAPress):
    """With scores by attention."""


@dataclass(frozen=True)
class Blinking(Press):
    """Protects six newest tokens in most passes, and none in others."""

    def newest(self, kept: int) -> int:
        """None if ``kept`` is a multiple of 5."""
        return 6 if kept % 5 else 0


@dataclass(frozen=True)
class BlinkingTOVAPress(Blinking, TOVAPress):
    """With scores by attention."""


@dataclass(frozen=True)
class BlinkingKeyDiffPress(Blinking, KeyDiffPress):
    """With scores that change."""
