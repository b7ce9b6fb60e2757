"""Trained models that tests share."""

from functools import cache
from typing import Any

from pressgauge.conformance.guard import guarded
from pressgauge.models import load


@cache
def _loaded(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    return load(name, dtype=dtype, device=device)


def trained_model(name: str, dtype: str, device: str = "cpu") -> tuple[Any, Any]:
    """A reference model, or one from a folder or a hub, loaded once, and its tokenizer. Not to be changed."""
    model, tokenizer = _loaded(name, dtype, device)
    return guarded(model), tokenizer
