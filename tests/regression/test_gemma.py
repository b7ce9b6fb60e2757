"""Perplexity, evictions and answers of Gemma 3 270M are those recorded."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pressgauge.conformance.trained import trained_model
from pressgauge.texts import load_text
from regression import gemma
from regression.golden import Golden


@pytest.fixture(scope="module")
def loaded(real_model: str) -> tuple[Any, Any]:
    """The model in float64, and its tokenizer. Shared and read-only."""
    return trained_model(real_model, "float64")


@pytest.fixture
def recorded(golden: Golden) -> Golden:
    """Baselines that the session of this model records."""
    if golden.device.type != "cpu":
        pytest.skip("not applicable: this model is measured in float64 on the CPU")
    return replace(golden, by=gemma.COMMAND)


def test_perplexity_is_as_recorded(recorded: Golden, shared_folder: Path, loaded: tuple[Any, Any]) -> None:
    """Perplexity and evictions of a window of WikiText-2 are those recorded."""
    model, tokenizer = loaded
    text = shared_folder / "data" / "wikitext-2" / "test.txt"
    ids = load_text(str(text), tokenizer, samples=1, tokens=gemma.TOKENS)
    recorded.check("perplexity-gemma", partial(gemma.perplexities, model, ids), lambda: {"nll": gemma.CLOSE}, "float64")


def test_answers_are_as_recorded(recorded: Golden, loaded: tuple[Any, Any]) -> None:
    """Answers to the tasks, and what was evicted before them, are those recorded."""
    recorded.check("tasks-gemma", partial(gemma.recalls, *loaded), dict, "float64")
