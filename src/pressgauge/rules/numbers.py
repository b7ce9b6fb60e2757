"""Exact arithmetic with ratios as written, and validation of integers."""

import operator
from collections.abc import Iterable
from fractions import Fraction


def as_written(ratio: float) -> Fraction:
    """The decimal value of ``ratio`` as written.

    >>> as_written(0.07)
    Fraction(7, 100)
    """
    return Fraction(str(ratio))


def exact_ceil(ratio: Fraction, count: int) -> int:
    """Ceiling of ``ratio * count``.

    >>> import math
    >>> exact_ceil(as_written(0.07), 100), math.ceil(0.07 * 100)
    (7, 8)
    """
    return -(-ratio.numerator * count // ratio.denominator)


def exact_floor(ratio: Fraction, count: int) -> int:
    """Floor of ``ratio * count``."""
    return ratio.numerator * count // ratio.denominator


def whole_number(name: str, value: object, least: int | None) -> int:
    """``value`` as a Python integer.

    Args:
        name: name of the value in error messages.
        value: the value.
        least: smallest allowed value; None for no limit.

    Raises:
        TypeError: if ``value`` is not an integer.
        ValueError: if ``value`` is below ``least``.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # the TypeError is what is asked for
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def whole_numbers(name: str, values: object) -> list[int]:
    """``values`` as Python integers.

    Raises:
        TypeError: if ``values`` is not an iterable of integers.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of whole numbers, got {values!r}")
    return [whole_number(f"a number in {name}", value, None) for value in values]
