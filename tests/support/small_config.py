"""Sizes of a tiny configuration, for architectures without a model in the suite."""

from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 16,
    "layer_types": ["full_attention"] * 2,
}
