"""transformers' ``QuantizedCache``, with its three backends."""

from typing import Any

from transformers import QuantizedCache

from peers.packages.adapt import QUANTISES, Made, declared

GROUP = 8
RESIDUAL = 8


def made(backend: str, **given: Any) -> Made:
    """The documented call; the default residual of 128 tokens is longer than most texts here."""
    return Made(lambda config: QuantizedCache(backend, config, **given))


def quanto(keep_ratio: float, nbits: int = 4) -> Made:
    """Integers by optimum-quanto, per channel."""
    return made("quanto", nbits=nbits, q_group_size=GROUP, residual_length=RESIDUAL)


def hqq(keep_ratio: float, nbits: int = 4) -> Made:
    """Integers by HQQ."""
    return made("hqq", nbits=nbits, q_group_size=GROUP, residual_length=RESIDUAL)


def fp8(keep_ratio: float) -> Made:
    """8-bit floats with one scale."""
    return made("fp8")


# The residual is a "maximum capacity": it is emptied once full, so no number of tokens is exact at every moment.
declared(quanto, lambda nbits: {**QUANTISES, "bits": nbits}, {"nbits": [4, 2]})
declared(hqq, lambda nbits: {**QUANTISES, "bits": nbits}, {"nbits": [4, 2]})
declared(fp8, {**QUANTISES, "bits": 8})
