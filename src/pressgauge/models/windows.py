"""Layers of a model with a sliding window or chunks, and layers that read the keys and values of another."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from pressgauge.models import interface
from pressgauge.rules import Window


def windows(config: PretrainedConfig, classes: Sequence[Any] | None = None) -> dict[int, Window]:
    """Windows of the layers that store keys and values of a window only, by index.

    Args:
        config: the configuration.
        classes: layers of the model's own cache; created from ``config`` by default.
    """
    text: Any = config.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None) or []
    found = {}
    for index, layer in enumerate(interface.layer_classes(config) if classes is None else classes):
        if type(layer) is DynamicSlidingWindowLayer:
            sliding = getattr(text, "sliding_window", None) is not None
            chunked = types[index] == "chunked_attention" if index < len(types) else not sliding
            found[index] = Window(layer.sliding_window, chunked)
    return found


def owners(config: PretrainedConfig) -> dict[int, int]:
    """For each layer that reads the keys and values of another, the layer that it reads."""
    text: Any = config.get_text_config(decoder=True)
    count = text.num_hidden_layers
    modes = getattr(text, "kv_sharing_modes", None)
    if modes is None:
        # Before transformers 5.23, the last layers each use those of the last layer of their type before them.
        first = count - (getattr(text, "num_kv_shared_layers", 0) or 0)
        modes = ["store"] * first + ["reuse"] * (count - first)
    named = [str(getattr(mode, "value", mode)) for mode in modes]
    if "reuse" not in named:
        return {}
    stored: dict[str, int] = {}
    found = {}
    for index, (mode, kind) in enumerate(zip(named, text.layer_types, strict=True)):
        if mode == "store":
            stored[kind] = index
        elif mode == "reuse" and kind in stored:
            found[index] = stored[kind]
    return found
