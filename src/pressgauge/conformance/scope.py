"""Scope of the laws: models that number their layers with keys from the first, and texts within their windows."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from pressgauge.conformance.outcomes import not_applicable
from pressgauge.models import interface
from pressgauge.rules import Window


def require_keys_first(model: PreTrainedModel) -> None:
    """Skip a test on a model in which a layer without keys precedes one with keys."""
    keeps = [interface.caches_keys(layer) for layer in interface.layer_classes(model.config)]
    if keeps != sorted(keeps, reverse=True):
        not_applicable(
            f"layer {keeps.index(False)} of {type(model).__name__} caches no keys, and a later layer does; the laws "
            "follow layers from the first to the last with keys: name a model whose last layers have none"
        )


def require_within_windows(windows: Mapping[int, Window], tokens: int) -> None:
    """Skip a test whose text of this many tokens is longer than what a layer with a window stores.

    Args:
        windows: windows of a model's layers, by index.
        tokens: number of tokens.
    """
    for layer, window in sorted(windows.items()):
        if (stored := window.stores(tokens)) < tokens:
            not_applicable(
                f"layer {layer} attends within {window} and stores {stored} of this law's {tokens} tokens; the laws "
                "know evictions of a compressor, and none by age: name a model with longer windows"
            )
