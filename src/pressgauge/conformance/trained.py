"""Trained models shared by tests."""

from functools import cache
from typing import Any

from pressgauge.conformance.guard import guarded
from pressgauge.models import load


@cache
def _loaded(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    return load(name, dtype=dtype, device=device)


def trained_model(name: str, dtype: str, device: str = "cpu") -> tuple[Any, Any]:
    """A model, loaded once, and its tokenizer. Tests must not change them."""
    model, tokenizer = _loaded(name, dtype, device)
    return guarded(model), tokenizer
