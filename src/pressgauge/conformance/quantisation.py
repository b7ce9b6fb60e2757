"""Declarations of quantised caches: their validation, and the tolerances that follow from them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

QUANTISATION = ("bits", "group", "axis", "residual", "ratio", "error", "simulated", "unbiased")
"""Names of declarations about quantised entries."""
AXES = ("token", "channel")
ROUNDING = 2.0**-10
"""Relative rounding of what is read back, at most that of float16 by a factor of 2."""


def check_quantisation(values: Mapping[str, Any]) -> None:
    """Validate the declarations about quantised entries.

    Raises:
        ValueError: if one is invalid, or entries are not declared as quantised.
    """
    given = [name for name in QUANTISATION if name in values]
    if given and values.get("entries") != "quantised":
        raise ValueError(f"declares {given[0]} is about quantised entries: declare entries as 'quantised', too")
    _check_each(values, "bits", lambda x: _number(x) and 0 < x <= 16, "a number of bits up to 16")
    _check_each(values, "group", lambda x: _whole(x) and x >= 1, "a whole number from 1 on")
    _check_each(values, "axis", lambda x: x in AXES, "'token' or 'channel'")
    _check(values, "residual", lambda x: _whole(x) and x >= 0, "a whole number of newest tokens, 0 for none")
    _check(values, "ratio", lambda x: _number(x) and x > 0, "a positive number: bytes of 16-bit entries to bytes held")
    _check(values, "error", lambda x: _number(x) and 0 < x < 1, "a relative error between 0 and 1")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(values: Mapping[str, Any], name: str, right: Callable[[Any], bool], rule: str) -> None:
    value = values.get(name)
    if value is not None and not right(value):
        raise ValueError(f"declares {name} must be {rule}, got {value!r}")


def _check_each(values: Mapping[str, Any], name: str, right: Callable[[Any], bool], rule: str) -> None:
    """Check a declaration that may be a pair for keys and values."""
    value = values.get(name)
    each = value if isinstance(value, tuple) else (value,)
    if len(each) not in (1, 2) or not all(one is None or right(one) for one in each):
        raise ValueError(f"declares {name} must be {rule}, or a pair of them for keys and values, got {value!r}")


def pair(value: Any) -> tuple[Any, Any]:
    """A declaration of keys and of values."""
    return (value[0], value[-1]) if isinstance(value, tuple) else (value, value)


def usual_error(bits: float) -> float:
    """Upper limit of the relative error of a quantiser with ``2^bits`` levels, for normally distributed entries.

    A uniform quantiser over a whole tensor, whose range is 8 standard deviations: the step is ``8 / (2^bits - 1)``,
    and the error has a standard deviation of the step over the square root of 12. One bit is as good as none.
    """
    return min(1.0, 2.3 / max(2**bits - 1, 1))


def expected_error(declares: Any) -> tuple[float, float]:
    """Upper limits of the relative errors of keys and values that follow from what is declared; 1 if nothing is."""
    if declares.error is not None:
        return declares.error, declares.error
    keys, values = (1.0 if bits is None else usual_error(bits) for bits in pair(declares.bits))
    return keys, values


def grouped(x: Tensor, axis: str, group: int | None) -> Tensor:
    """Numbers ``[B, K, T, D]`` by group, ``[..., numbers of a group]``; tokens that fill no group are left out."""
    if axis == "token":
        by_channels: Tensor = x.unflatten(-1, (-1, min(group or x.shape[-1], x.shape[-1])))
        return by_channels
    size = group or x.shape[2]
    whole = x.shape[2] // size * size
    by_tokens: Tensor = x[:, :, :whole].unflatten(2, (-1, size)).movedim(3, -1)
    return by_tokens


def ungrouped(x: Tensor, axis: str) -> Tensor:
    """Inverse of ``grouped``."""
    return x.flatten(-2) if axis == "token" else x.movedim(-1, 3).flatten(2, 3)


def half_steps(x: Tensor, bits: float) -> Tensor:
    """Largest error of each number of groups ``[..., numbers]`` that are quantised uniformly to ``2^bits`` levels.

    Half a step: of the group's range for asymmetric codes, of its magnitude for symmetric ones, whichever is larger.
    The slack covers scales stored in float16, and the rounding of what is read back.
    """
    x = x.double()
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    magnitude = torch.maximum(high.abs(), low.abs())
    asymmetric, symmetric = (high - low) / max(2**bits - 1, 1), magnitude / max(2 ** (bits - 1) - 1, 1)
    half = torch.maximum(asymmetric, symmetric) / 2
    largest: Tensor = (half * (1.02 + 2.0 ** (bits - 10)) + magnitude * ROUNDING).expand_as(x)
    return largest
