"""transformers' ``QuantizedCache``, with its three backends."""

from typing import Any

from transformers import QuantizedCache

from peers.packages.adapt import QUANTISES, declared

GROUP = 8
RESIDUAL = 8
"""The default residual of 128 tokens is longer than most texts here."""


def quanto(keep_ratio: float, model: Any, nbits: int = 4) -> Any:
    """Integers by optimum-quanto, per channel."""
    return QuantizedCache("quanto", model.config, nbits=nbits, q_group_size=GROUP, residual_length=RESIDUAL)


def hqq(keep_ratio: float, model: Any, nbits: int = 4) -> Any:
    """Integers by HQQ."""
    return QuantizedCache("hqq", model.config, nbits=nbits, q_group_size=GROUP, residual_length=RESIDUAL)


def fp8(keep_ratio: float, model: Any) -> Any:
    """8-bit floats with one scale."""
    return QuantizedCache("fp8", model.config)


# The residual is a "maximum capacity": it is emptied once full, so no number of tokens is exact at every moment.
declared(quanto, lambda nbits: {**QUANTISES, "bits": nbits}, {"nbits": [4, 2]})
declared(hqq, lambda nbits: {**QUANTISES, "bits": nbits}, {"nbits": [4, 2]})
# Three bits of mantissa: a relative error of .026 for normally distributed numbers.
declared(fp8, {**QUANTISES, "bits": 8, "error": 0.04})
