"""Presses whose scores come from attention, on models: one pass against decoding, and what a cache does with votes."""

from dataclasses import replace

import pytest
import torch

from pressgauge import H2OPress, Press, TOVAPress, perplexity
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import cache_of, using
from support.evictions import PRESSES


@pytest.mark.parametrize(
    ("press", "name"),
    [
        *(pytest.param(press, "llama", id=f"{what}-llama") for what, press in PRESSES.items()),
        *(
            pytest.param(PRESSES[what], name, id=f"{what}-{name}")
            for what in ("h2o", "snapkv", "tova")
            for name in ("neox", "qwen2", "qwen3")
        ),
    ],
)
def test_one_pass_is_what_decoding_gives(press: Press, name: str) -> None:
    """NLL to 1e-9 and every eviction, with padded rows; a press never looks at the model: not all meet all."""
    model = architectures.shared(name)
    ids, mask = architectures.padded([26, 15])
    prompt = 18 if press.schedule == "prefill" else 3
    one = perplexity(model, ids, press, prompt, "onepass", attention_mask=mask)
    other = perplexity(model, ids, press, prompt, "stepwise", attention_mask=mask)
    torch.testing.assert_close(one.nll, other.nll, rtol=0, atol=1e-9, equal_nan=True)
    assert all(mine.equal(own) for mine, own in zip(one.evicted_at, other.evicted_at, strict=True))
    assert one.evictions > 0


@torch.no_grad()
def test_what_was_counted_cannot_be_cropped() -> None:
    """The votes of tokens that are taken back have been cast."""
    model = architectures.shared("llama")
    with H2OPress(0.5)(model):
        cache = cache_of(model(architectures.tokens(1, 6)))
    with pytest.raises(ValueError, match="cannot crop to 4 tokens: H2OPress has counted the votes of the tokens after"):
        cache.crop(4)
    assert cache.get_seq_length() == 6


@torch.no_grad()
@pytest.mark.parametrize(
    "press", [H2OPress(0.5, prune_after=4), TOVAPress(0.5, prune_after=4)], ids=["sums", "queries"]
)
def test_what_is_remembered_is_counted_reordered_and_let_go(press: Press) -> None:
    """Rows that change places take their votes with them; after its only eviction a press remembers nothing."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 12)
    more = architectures.tokens(2, 3, seed=1)
    order = torch.tensor([1, 0])
    with press(model):
        turned = cache_of(model(ids))
        turned.reorder_cache(order)
        straight = cache_of(model(ids[order]))
        assert turned.overhead_nbytes == straight.overhead_nbytes > 0
        for step in range(3):
            for cache in (turned, straight):
                model(more[:, step : step + 1], **using(cache))
    assert all(one.equal(other) for one, other in zip(turned.evicted_at, straight.evicted_at, strict=True))
    once = replace(press, schedule="prefill")
    with once(model):
        cache = cache_of(model(ids))
        before = cache.overhead_nbytes
        model(more[:, :1], **using(cache))
    assert cache.overhead_nbytes < before
