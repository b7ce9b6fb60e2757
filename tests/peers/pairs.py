"""Presses of ours and of kvpress that are equivalent, and the comparison of the entries that they retain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import DynamicCache

import pressgauge
from conformance.ours import SCORED_BY_ATTENTION, SUBJECTS
from peers.packages import kvpress as packaged
from peers.packages.kvpress import WINDOW
from pressgauge import perplexity
from pressgauge.conformance.checks import TELLING_APART
from pressgauge.conformance.session import Trace, run
from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.conformance.traces import kept
from pressgauge.conformance.versions import using
from pressgauge.likelihood import score
from support.last_logits import last_logits

OURS = {subject.name: subject for subject in [*SUBJECTS, *SCORED_BY_ATTENTION]}


Tokens = list[list[set[int]]]
"""Tokens that a layer retains, by row and KV head."""


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
MOST_TIES = 0.02
"""Share of the held entries that may differ because of ties."""

PROMPT, LATER = 192, 24
"""Of texts for Gemma: tokens of the prompt that is compressed, and of those scored; together they fit into a window."""
KEEP_RATIO = 0.5
"""Exact in binary, so that kvpress's float is exact too."""


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


def check_same(mine: Trace, own: Sequence[Tokens], scores_of: dict[int, Tensor]) -> int:
    """Check that ours holds the tokens that are given by layer, except for ties with the lowest retained one.

    Returns:
        The number of those.

    Raises:
        AssertionError: if another entry differs, or too many do.
    """
    held = differing = 0
    for layer in range(mine.layers):
        for row, heads in enumerate(zip(kept(mine, layer), own[layer], strict=True)):
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
    return differing


@dataclass(frozen=True)
class Retaining(pressgauge.Press):
    """Retains, of the prompt, the tokens that are given by layer."""

    tokens: tuple[Tokens, ...] = ()

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Any = None) -> Tensor:
        """1 for the given tokens, and 0 for the others: ``[B, K, N]``."""
        scores = keys.new_zeros(keys.shape[:3])
        for row, heads in enumerate(self.tokens[layer]):
            for head, own in enumerate(heads):
                scores[row, head, [token for token in own if token < keys.shape[2]]] = 1
        return scores


@dataclass(frozen=True)
class Agreement:
    """Perplexities of the tokens after a prompt that is compressed.

    Attributes:
        mine, own: under our press and kvpress's.
        same: in one pass of ours, in which the entries are evicted that kvpress evicted.
        differing: ties of which the two retain different ones, over all layers.
    """

    mine: float
    own: float
    same: float
    differing: int


def agreement(pair: Pair, model: Any, ids: Tensor, prompt: int, keep_ratio: float) -> Agreement:
    """Compare both presses of a pair on a text, of which the first ``prompt`` tokens are compressed."""
    with last_logits(model, ids.shape[1] - prompt + 1):
        own = run(theirs(pair), model, ids[:, :prompt], [prompt], keep_ratio=keep_ratio)
        own_tokens = tuple(kept(own, layer) for layer in range(own.layers))
        mine, scores = noted(pair, model, ids[:, :prompt], keep_ratio)
        press = OURS[pair.ours](keep_ratio=keep_ratio, prune_after=0, **pair.options)
        retaining = Retaining(keep_ratio, prune_after=0, schedule="prefill", tokens=own_tokens)
        found, same = (perplexity(model, ids, one, prompt).ppl for one in (press, retaining))
        decoded = _decoded(theirs(pair)(keep_ratio), model, ids, prompt)
    return Agreement(found, decoded, same, check_same(mine, own_tokens, scores))


@torch.no_grad()
def _decoded(press: Any, model: Any, ids: Tensor, prompt: int) -> float:
    """Perplexity under a press of kvpress's, by its documented use and true positions."""
    cache = DynamicCache(config=model.config)
    with press(model):
        logits = [model(ids[:, :prompt], **using(cache)).logits[:, -1:]]
    for at in range(prompt, ids.shape[1] - 1):
        logits.append(model(ids[:, at : at + 1], position_ids=torch.tensor([[at]]), **using(cache)).logits)
    return float(score(torch.cat(logits, dim=1), ids[:, prompt:])[0].mean().exp())
