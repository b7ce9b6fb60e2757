"""Our presses retain the same entries as kvpress's, where the definitions agree: one eviction from a prompt, to a
number that is the same in exact arithmetic and in kvpress's floats.

Repeated words give scores that are equal up to noise. Of these, we retain the earlier entries and kvpress those that
topk returns first. Only these may differ.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kvpress import TOVAPress
from torch import Tensor

from peers.packages.kvpress import press
from peers.pairs import KEEP_RATIO, LATER, OURS, PAIRS, PROMPT, Agreement, Pair, agreement, check_same, noted, theirs
from pressgauge.conformance.session import run
from pressgauge.conformance.strategies import HEADS, normal_keys
from pressgauge.conformance.subjects import subject_of
from pressgauge.conformance.traces import kept, run_scripted
from pressgauge.models import load
from pressgauge.texts import load_text

RATIOS = (0.125, 0.25, 0.5, 0.75)
"""Exact in binary, so that kvpress's floats are exact too."""
TOKENS = 256
EQUAL = 1e-5
"""Relative difference of perplexities; some layers of models compute in float32."""


@cache
def loaded(name: str) -> tuple[Any, Any]:
    """A model for these tests only, since kvpress changes it."""
    return load(name, dtype="float64")


def compare(pair: Pair, model: Any, ids: Tensor, keep_ratio: float) -> None:
    """Run a prompt with both presses, and compare the held entries."""
    mine, scores = noted(pair, model, ids, keep_ratio)
    own = run(theirs(pair), model, ids, [TOKENS], keep_ratio=keep_ratio)
    check_same(mine, [kept(own, layer) for layer in range(own.layers)], scores)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("keep_ratio", RATIOS)
def test_retained_entries_are_equal_on_the_reference_model(pair: Pair, keep_ratio: float) -> None:
    """On the reference model and its language, both presses retain the same entries."""
    model, tokenizer = loaded("reference")
    compare(pair, model, load_text("reference", tokenizer, samples=3, tokens=TOKENS), keep_ratio)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("keep_ratio", RATIOS)
def test_retained_entries_are_equal_on_real_weights_and_text(
    shared_folder: Path, pair: Pair, keep_ratio: float
) -> None:
    """On a trained Llama and WikiText, both presses retain the same entries."""
    model, tokenizer = loaded(str(shared_folder / "models" / "tinystories-260k"))
    text = shared_folder / "data" / "wikitext-2" / "test.txt"
    compare(pair, model, load_text(str(text), tokenizer, samples=3, tokens=TOKENS), keep_ratio)


def check_perplexities(found: Agreement) -> None:
    """Check that perplexities are equal with kvpress's choice of ties, and with ours if there are none."""
    assert found.same == pytest.approx(found.own, rel=EQUAL)
    assert found.differing or found.mine == pytest.approx(found.own, rel=EQUAL)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_perplexities_are_equal_on_the_reference_model(pair: Pair) -> None:
    """On the reference model and its language, perplexities are equal with the same choice of ties."""
    model, tokenizer = loaded("reference")
    ids = load_text("reference", tokenizer, samples=1, tokens=64 + LATER)
    check_perplexities(agreement(pair, model, ids, 64, KEEP_RATIO))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_perplexities_are_equal_on_gemma(real_model: str, shared_folder: Path, pair: Pair) -> None:
    """On Gemma 3 270M and WikiText-2, perplexities are equal with the same choice of ties."""
    model, tokenizer = loaded(real_model)
    text = shared_folder / "data" / "wikitext-2" / "test.txt"
    ids = load_text(str(text), tokenizer, samples=1, tokens=PROMPT + LATER)
    check_perplexities(agreement(pair, model, ids, PROMPT, KEEP_RATIO))


def test_tova_still_raises_on_a_prompt_of_one_token() -> None:
    """kvpress's TOVAPress raises a RuntimeError on a prompt of one token, the reason for ``OneTokenRefused``."""
    with pytest.raises(RuntimeError, match=r"max\(\)"):
        run_scripted(subject_of("TOVAPress", press(TOVAPress, {})), normal_keys(1), [1], keep_ratio=0.5)


def test_retained_entries_are_equal_without_ties() -> None:
    """On keys that are all different, both presses retain exactly the same entries."""
    for pair in PAIRS:
        for keep_ratio in RATIOS:
            keys = normal_keys(64)
            mine = run_scripted(OURS[pair.ours], keys, [64], keep_ratio=keep_ratio, prune_after=0, **pair.options)
            own = run_scripted(theirs(pair), keys, [64], keep_ratio=keep_ratio)
            assert kept(mine) == kept(own)
            assert sum(len(head) for row in kept(own) for head in row) == HEADS * 64 * keep_ratio
