"""How numbers are written where people read them."""

import math

DASH = "\N{EN DASH}"
"""Stands for what was not measured."""
UNITS: dict[str, dict[str, float]] = {
    "bytes": {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40},
    "seconds": {"µs": 1e-6, "ms": 1e-3, "s": 1},
    "share of tokens": {"% of tokens": 1e-2},
}
"""By unit, the units that it is written in: from small to large, with their size."""


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, but never fewer than the integer has."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not defined" if math.isnan(value) else "infinite"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0}f}"


def percent(value: float | None, sign: str = "") -> str:
    """A share or, with the sign ``+``, a change; tenths of a per cent only where they matter."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:{sign},.{1 if abs(value) < 1 else 0}%}"


def scale(unit: str, largest: float) -> tuple[str, float]:
    """The largest unit of which ``largest`` has one, or else the smallest, and its size."""
    units = UNITS.get(unit, {unit: 1.0})
    fitting = [name for name, size in units.items() if size <= largest] or list(units)[:1]
    return fitting[-1], units[fitting[-1]]


def size(value: float | None) -> str:
    """Bytes, in the largest unit of which there is one."""
    if value is None:
        return DASH
    unit, one = scale("bytes", value)
    return f"{number(value / one)} {unit}"


def ratio(median: float | None, interval: tuple[float, float] | None) -> str:
    """A ratio and its interval."""
    return DASH if median is None or interval is None else f"{median:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
