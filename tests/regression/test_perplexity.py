"""Perplexity, and what was evicted for it, is what it was when it was recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pressgauge.text import load_text
from regression.live import decoding, entries
from regression.perplexities import EXACT, TOKENS, perplexities
from regression.plugin import Golden


@pytest.mark.parametrize("name", ["reference", "reference-neox"])
def test_perplexity_is_as_recorded(name: str, golden: Golden, reference: Callable[..., Any]) -> None:
    """Two documents of the reference language."""
    model, tokenizer = reference(name, dtype="float64")
    ids = load_text("reference", tokenizer, samples=2, tokens=TOKENS)
    golden.check(f"perplexity-{name}", lambda: perplexities(model, ids), {"nll": EXACT})


def test_perplexity_of_real_text_is_as_recorded(
    golden: Golden, shared_folder: Path, tinystories: Callable[..., Any]
) -> None:
    """Two windows of WikiText-2, under a pretrained model whose context is 512 tokens."""
    model, tokenizer = tinystories("float64")
    text = shared_folder / "data" / "wikitext-2" / "test.txt"
    ids = load_text(str(text), tokenizer, samples=2, tokens=512)
    golden.check("perplexity-tinystories", lambda: perplexities(model, ids), {"nll": EXACT})


def test_decoding_is_as_recorded(golden: Golden, reference: Callable[..., Any]) -> None:
    """Token by token, by a loop that passes nothing but the cache."""
    model, tokenizer = reference("reference", dtype="float64")
    ids = load_text("reference", tokenizer, samples=1, tokens=128)
    golden.check("decoding", lambda: decoding(model, ids), {"nll": EXACT})


def test_what_is_read_from_a_cache_is_as_recorded(golden: Golden) -> None:
    """In the same order, entry by entry."""
    golden.check("entries", lambda: entries(torch.float32), {}, "float32")
