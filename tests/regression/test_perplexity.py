"""Perplexity and evictions are those recorded."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pressgauge.presses import PRESSES
from pressgauge.texts import load_text
from regression.decoding import decoding, entries
from regression.golden import Golden
from regression.perplexities import EXACT, TOKENS, perplexities
from regression.rounding import tolerance

FIXED = [name for name, kind in PRESSES.items() if kind.fixed_scores]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ["reference", "reference-neox"])
def test_perplexity_is_as_recorded(name: str, dtype: str, golden: Golden, reference: Callable[..., Any]) -> None:
    """Perplexity and evictions of two reference documents are those recorded: on the CPU in float64, and elsewhere in
    the dtypes of that device."""
    if (golden.device.type == "cpu") != (dtype == "float64"):
        pytest.skip(f"not applicable: on {golden.device.type} nothing is recorded in {dtype}")
    model, tokenizer = reference(name, dtype, str(golden.device))
    ids = load_text("reference", tokenizer, samples=2, tokens=TOKENS).to(golden.device)
    # Presses whose scores change take as long as all others, so they run on one model.
    measure = partial(perplexities, model, ids, PRESSES if name == "reference" else FIXED)
    if dtype == "float64":
        golden.check(f"perplexity-{name}", measure, lambda: {"nll": EXACT}, dtype)
    else:
        golden.check(f"perplexity-{name}-{dtype}", measure, lambda: tolerance(model, measure), dtype)


def test_perplexity_of_real_text_is_as_recorded(
    golden: Golden, shared_folder: Path, tinystories: Callable[..., Any]
) -> None:
    """Perplexity and evictions of two windows of WikiText-2, under a pretrained model with a context of 512 tokens, are
    those recorded."""
    if golden.device.type != "cpu":
        pytest.skip("not applicable: real text is measured in float64 on the CPU")
    model, tokenizer = tinystories("float64")
    text = shared_folder / "data" / "wikitext-2" / "test.txt"
    ids = load_text(str(text), tokenizer, samples=2, tokens=512)
    golden.check("perplexity-tinystories", partial(perplexities, model, ids, FIXED), lambda: {"nll": EXACT}, "float64")


def test_decoding_is_as_recorded(golden: Golden, reference: Callable[..., Any]) -> None:
    """The NLL of token-by-token decoding with a plain cache is that recorded."""
    if golden.device.type == "mps":
        pytest.skip("not applicable: Apple's devices have no float64")
    model, tokenizer = reference("reference", "float64", str(golden.device))
    ids = load_text("reference", tokenizer, samples=1, tokens=128).to(golden.device)
    golden.check("decoding", partial(decoding, model, ids), lambda: {"nll": EXACT}, "float64")


def test_entries_read_are_as_recorded(golden: Golden) -> None:
    """Entries read from a cache, and their order, are those recorded."""
    golden.check("entries", partial(entries, torch.float32), dict, "float32")
