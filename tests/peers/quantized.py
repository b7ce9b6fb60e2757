"""transformers' quantised cache, as a compressor that ignores its ratio."""

from typing import Any

from transformers import Cache, QuantizedCache


class Quantized:
    """Four bits per number, by optimum-quanto; at most the newest 7 entries are not quantised."""

    def __init__(self, keep_ratio: float) -> None:
        pass

    def cache(self, config: Any) -> Cache:
        return QuantizedCache("quanto", config, nbits=4, q_group_size=4, residual_length=8)
