"""Our presses retain the same entries as kvpress's, where the definitions agree: one eviction from a prompt, to a
number that is the same in exact arithmetic and in kvpress's floats.

Repeated words give scores that are equal up to noise. Of these, we retain the earlier entries and kvpress those that
topk returns first. Only these may differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from kvpress import TOVAPress
from torch import Tensor

import pressgauge
from conformance.ours import SCORED_BY_ATTENTION, SUBJECTS
from peers.packages import kvpress as packaged
from peers.packages.kvpress import WINDOW, press
from pressgauge.conformance.checks import TELLING_APART
from pressgauge.conformance.session import Trace, run
from pressgauge.conformance.strategies import HEADS, normal_keys
from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.conformance.traces import kept, run_scripted
from pressgauge.models import load
from pressgauge.texts import load_text

OURS = {subject.name: subject for subject in [*SUBJECTS, *SCORED_BY_ATTENTION]}


@dataclass(frozen=True)
class Pair:
    """A press of ours and one of kvpress, and options that make them equivalent."""

    ours: str
    theirs: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return self.theirs


PAIRS = [
    Pair("knorm-prefill", "knorm", {}),
    Pair("streaming-llm-prefill", "streaming_llm", {}),
    Pair("keydiff-prefill", "keydiff", {}),
    Pair("snapkv-prefill", "snapkv", {"recent": WINDOW}),
    # kvpress's always retains the last token.
    Pair("tova-prefill", "tova", {"recent": 1}),
]
RATIOS = (0.125, 0.25, 0.5, 0.75)
"""Exact in binary, so that kvpress's floats are exact too."""
TOKENS = 256
MOST_TIES = 0.02
"""Share of the held entries that may differ because of ties."""


@cache
def loaded(name: str) -> tuple[Any, Any]:
    """A model for these tests only, since kvpress changes it."""
    return load(name, dtype="float64")


def theirs(pair: Pair) -> Subject:
    """Subject of kvpress's press of a pair."""
    return subject_of(pair.theirs, getattr(packaged, pair.theirs))


def noted(pair: Pair, model: Any, ids: Tensor, keep_ratio: float) -> tuple[Trace, dict[int, Tensor]]:
    """Trace of our press on a prompt, and its scores of the whole prompt, ``[B, K, T]`` per layer."""
    subject = OURS[pair.ours]
    scores: dict[int, Tensor] = {}
    kind: Any = subject.factory
    score: Callable[..., Tensor] = kind.score

    def noting(self: pressgauge.Press, keys: Tensor, *, layer: int, **given: Any) -> Tensor:
        found = score(self, keys, layer=layer, **given)
        # Fixed scores are verified by scoring a few entries again.
        if layer not in scores or found.shape[-1] >= scores[layer].shape[-1]:
            scores[layer] = found
        return found

    with patch.object(kind, "score", noting):
        return run(subject, model, ids, [ids.shape[1]], keep_ratio=keep_ratio, prune_after=0, **pair.options), scores


def check_same(mine: Trace, own: Trace, scores_of: dict[int, Tensor]) -> None:
    """Check that both hold the same entries, except for a few with the score of the lowest retained one."""
    held = differing = 0
    for layer in range(mine.layers):
        for row, heads in enumerate(zip(kept(mine, layer), kept(own, layer), strict=True)):
            for head, (one, other) in enumerate(zip(*heads, strict=True)):
                assert len(one) == len(other)
                held += len(one)
                if one == other:
                    continue
                differing += len(one - other)
                scores = scores_of[layer][row, head].tolist()
                last = max(scores[token] for token in other - one)
                for token in one ^ other:
                    assert abs(scores[token] - last) <= TELLING_APART * abs(last), f"layer {layer}, token {token}"
    assert differing <= MOST_TIES * held


def compare(pair: Pair, model: Any, ids: Tensor, keep_ratio: float) -> None:
    """Run a prompt with both presses, and compare the held entries."""
    mine, scores = noted(pair, model, ids, keep_ratio)
    check_same(mine, run(theirs(pair), model, ids, [TOKENS], keep_ratio=keep_ratio), scores)


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
