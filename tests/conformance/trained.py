"""A trained model that laws share."""

from functools import cache
from typing import Any

from pressgauge.models import load

from .guard import guarded


@cache
def trained_model() -> tuple[Any, Any]:
    """The reference Llama in float32, loaded once, and its tokenizer. Not to be changed."""
    model, tokenizer = load("reference", dtype="float32")
    return guarded(model), tokenizer
