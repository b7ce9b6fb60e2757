"""Formatting of numbers for readers."""

import math

DASH = "\N{EN DASH}"
"""Text of a missing value."""
UNITS: dict[str, dict[str, float]] = {
    "bytes": {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40},
    "seconds": {"µs": 1e-6, "ms": 1e-3, "s": 1},
    "share of tokens": {"% of tokens": 1e-2},
}
"""Scaled units with their sizes, ascending, by base unit."""


def number(value: float | None, digits: int = 3) -> str:
    """A number with this many significant digits, and all digits of its integer part."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not defined" if math.isnan(value) else "infinite"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0}f}"


def percent(value: float | None, sign: str = "") -> str:
    """A share or, with the sign ``+``, a change; with one decimal below 100 %."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:{sign},.{1 if abs(value) < 1 else 0}%}"


def scale(unit: str, largest: float) -> tuple[str, float]:
    """The largest unit that is at most ``largest``, or the smallest one, and its size."""
    units = UNITS.get(unit, {unit: 1.0})
    fitting = [name for name, size in units.items() if size <= largest] or list(units)[:1]
    return fitting[-1], units[fitting[-1]]


def size(value: float | None) -> str:
    """Bytes, in the largest unit with a value of at least 1."""
    if value is None:
        return DASH
    unit, one = scale("bytes", value)
    return f"{number(value / one)} {unit}"


def ratio(median: float | None, interval: tuple[float, float] | None) -> str:
    """A ratio and its confidence interval."""
    return DASH if median is None or interval is None else f"{median:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def interval(change: float, ends: tuple[float, float] | None) -> str:
    """A relative change and its confidence interval, in whole percents if the interval is as wide as 10 of them."""
    if ends is None:
        return f"{change:+.1%}"
    digits = 0 if ends[1] - ends[0] >= 0.1 else 1
    low, high = (f"{100 * end:+,.{digits}f}" for end in ends)
    return f"{100 * change:+,.{digits}f}% [{low}, {high}]"


def spread(value: float | None, ends: tuple[float, float] | None) -> str:
    """A number and its confidence interval, with as many decimals as tell the ends apart."""
    if value is None or ends is None or not math.isfinite(value):
        return number(value)
    width = ends[1] - ends[0] or abs(value)
    digits = min(8, max(0, 1 - math.floor(math.log10(width)))) if width else 0
    return f"{value:,.{digits}f} [{ends[0]:,.{digits}f}, {ends[1]:,.{digits}f}]"


def share(value: float | None, ends: tuple[float, float] | None) -> str:
    """A share and its confidence interval, in percents."""
    if value is None or ends is None:
        return DASH if value is None else f"{value:.1%}"
    return f"{value:.1%} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def points(change: float, ends: tuple[float, float]) -> str:
    """A change of a share and its confidence interval, in percentage points."""
    low, high = (f"{100 * end:+.0f}" for end in ends)
    return f"{100 * change:+.0f} [{low}, {high}]"
