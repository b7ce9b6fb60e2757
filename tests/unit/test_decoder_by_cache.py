"""Models whose attention bypasses transformers' interface: a press serves them by a plain cache."""

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache, FalconConfig, GPTNeoConfig

from pressgauge import KnormPress, PressedCache, TOVAPress, generate, perplexity
from pressgauge.conformance.versions import CACHE, using
from support.wide import float64_throughout
from support.zoo import oracle, specimens

NAMES = (
    *("big_bird", "falcon", "git", "gpt_neox_japanese", "jetmoe", "megatron-bert", "mvp", "rembert"),
    *("roformer", "trocr", "xglm"),
)
IDS = specimens.tokens(2, 24)
PASSES = [8, *[1] * 16]
PRESS = KnormPress(0.5, prune_after=4)
EXACT = 1e-9
"""Largest error in float64."""


@cache
def model(name: str) -> Any:
    """A tiny model in float64. Read-only."""
    return specimens.build(name).double()


@torch.no_grad()
def greedy(built: Any, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Greedy tokens with a plain cache, by forward calls."""
    kept: Any = PRESS.cache(built.config)
    fed = ids
    for _ in range(new_tokens):
        chosen = built(fed, **using(kept)).logits[:, -1:].argmax(dim=-1)
        ids, fed = torch.cat([ids, chosen], dim=1), chosen
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_stepwise_equals_the_stock_model_with_evicted_keys_masked(name: str) -> None:
    """In a batch of rows of equal length, and for each alone; not in releases in which its mask is of another size."""
    if name == "git" and CACHE != "cache":
        pytest.skip("transformers cannot build a tiny GIT by its configuration")
    built = model(name)
    if name in ("big_bird", "megatron-bert", "rembert", "roformer") and CACHE != "cache":
        with pytest.raises(ValueError, match=r"makes masks of as many columns as it has seen tokens.*press=None"):
            PRESS.cache(built.config)
        return
    with float64_throughout():
        found = perplexity(built, IDS, PRESS, 8, "stepwise")
        for row, ids in enumerate(IDS.split(1)):
            tables = [table[row : row + 1] for table in found.evicted_at]
            expected = oracle.nll(oracle.expected(built, ids, PASSES, tables), ids, 8)
            assert float((found.nll[row] - expected[0]).abs().max()) < EXACT
    assert found.held == (12,) * 4
    assert found.affected_tokens == found.scored_tokens - 2


def test_generation_equals_decoding_by_hand() -> None:
    """With a new cache, one that is given, and one of an earlier turn."""
    built = model("falcon")
    ids, expected = IDS[:1, :10], greedy(model("falcon"), IDS[:1, :10], 12)
    whole = generate(built, ids, PRESS, 12, eos_token_id=())
    assert torch.equal(whole.tokens, expected)
    assert isinstance(whole.cache, PressedCache)
    assert whole.cache.evictions
    given = DynamicCache(config=built.config)
    first = generate(built, ids, PRESS, 5, cache=given, eos_token_id=())
    assert first.cache is given
    further = generate(built, first.tokens, PRESS, 7, cache=first.cache, eos_token_id=())
    assert torch.equal(further.tokens, expected)
    with pytest.raises(ValueError, match="the cache belongs to KnormPress"):
        generate(built, further.tokens, KnormPress(0.7), 1, cache=further.cache)


def test_what_a_plain_cache_cannot_do_is_refused() -> None:
    """Attaching, one pass, scores by queries, padding, and skipped layers."""
    built = model("falcon")
    alone = r"does not go through transformers' attention interface: a press that needs no queries works by method="
    for action in (
        lambda: PRESS(built).__enter__(),
        lambda: PRESS.resolved(built),
        lambda: perplexity(built, IDS, PRESS, 8),
        lambda: perplexity(built, IDS, TOVAPress(0.5, prune_after=4), 8, "stepwise"),
    ):
        with pytest.raises(ValueError, match=alone):
            action()
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    padded = "works with a press by a plain cache only, which never sees the attention mask, so padded rows"
    with pytest.raises(ValueError, match=padded):
        perplexity(built, IDS, PRESS, 8, "stepwise", attention_mask=mask)
    with pytest.raises(ValueError, match=padded):
        generate(built, IDS, PRESS, 2, attention_mask=mask)
    with pytest.raises(ValueError, match="one mask for all layers, which hold 4 to 8 entries: skip no layers"):
        perplexity(built, IDS, KnormPress(0.5, prune_after=4, skip_layers=(1,)), 8, "stepwise")
    kept: Any = PRESS.cache(built.config)
    with torch.no_grad(), pytest.raises(ValueError, match=r"may be padded: if no row is padded, use press\.cache\("):
        built(IDS, **using(kept))


def test_results_do_not_change_the_model_or_other_methods() -> None:
    """A padded batch without a press is as before, and so is the uncompressed run."""
    built = model("falcon")
    mask = torch.ones_like(IDS)
    before = perplexity(built, IDS, None, 8, "stepwise", attention_mask=mask).nll
    perplexity(built, IDS, PRESS, 8, "stepwise")
    assert torch.equal(perplexity(built, IDS, None, 8, "stepwise").nll, before)
    assert not any(module._forward_pre_hooks for module in built.modules())


def test_layers_that_attend_by_slots_leave_no_layer() -> None:
    """GPT-Neo has one mask for its global and local layers, which would hold different numbers of entries."""
    config = GPTNeoConfig(num_layers=4, attention_types=[[["global", "local"], 2]])
    with pytest.raises(
        ValueError, match=r"one mask for all layers, and some have local attention of 256 slots.*press="
    ):
        KnormPress(0.5, skip_layers=(1, 3)).cache(config)
    KnormPress(0.5).cache(GPTNeoConfig(num_layers=4, attention_types=[[["global"], 4]]))
    with pytest.raises(ValueError, match="adds ALiBi biases by the slot"):
        KnormPress(0.5).cache(FalconConfig(alibi=True))


def test_a_wrapper_is_known_by_its_text_model() -> None:
    """GOT-OCR 2 has attention of its own for images, and a Qwen2 for text."""
    if "got_ocr2" not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no GOT-OCR 2 as a causal model")
    built = model("got_ocr2")
    found = [perplexity(built, IDS, PRESS, 8, method) for method in ("onepass", "stepwise")]
    assert float((found[0].nll - found[1].nll).abs().max()) < EXACT
