"""A real model, Gemma 3 270M, gives what was recorded: ``nox -s real`` fetches it and runs these tests."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pressgauge.models import load
from pressgauge.texts import load_text
from regression.golden import Golden
from regression.perplexities import EXACT
from regression.real import MODEL, TEXTS, perplexities_of_real_text, recalls

pytestmark = pytest.mark.skipif(
    MODEL not in os.environ, reason=f"Gemma 3 270M was not found: {MODEL} must name its GGUF file, as nox -s real does"
)


@pytest.fixture(scope="module")
def gemma() -> Any:
    """The model in float64, and its tokenizer."""
    return load(os.environ[MODEL], dtype="float64")


@pytest.mark.parametrize("name", TEXTS)
def test_perplexity_of_a_real_model_is_as_recorded(name: str, golden: Golden, gemma: Any, shared_folder: Path) -> None:
    """Perplexity and evictions of each press under each schedule are those recorded."""
    model, tokenizer = gemma
    ids = load_text(str(shared_folder / "data" / TEXTS[name]), tokenizer, samples=1, tokens=512)
    measure = partial(perplexities_of_real_text, model, ids)
    golden.check(f"perplexity-gemma-3-270m-{name}", measure, lambda: {"nll": EXACT}, "float64")


def test_answers_of_a_real_model_are_as_recorded(golden: Golden, gemma: Any) -> None:
    """Recall in tasks under each press is that recorded."""
    golden.check("tasks-gemma-3-270m", partial(recalls, *gemma), dict, "float64")
