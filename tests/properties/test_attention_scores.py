"""Presses that score by attention: one pass equals decoding, and caches handle their attention scores."""

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
def test_one_pass_equals_decoding(press: Press, name: str) -> None:
    """One pass has the NLL of decoding to 1e-9 and the same evictions, with padded rows."""
    model = architectures.shared(name)
    ids, mask = architectures.padded([26, 15])
    prompt = 18 if press.schedule == "prefill" else 3
    one = perplexity(model, ids, press, prompt, "onepass", attention_mask=mask)
    other = perplexity(model, ids, press, prompt, "stepwise", attention_mask=mask)
    torch.testing.assert_close(one.nll, other.nll, rtol=0, atol=1e-9, equal_nan=True)
    assert all(mine.equal(own) for mine, own in zip(one.evicted_at, other.evicted_at, strict=True))
    assert one.evictions > 0


@torch.no_grad()
def test_counted_attention_cannot_be_cropped() -> None:
    """Cropping is refused, since attention of removed tokens has been counted."""
    model = architectures.shared("llama")
    with H2OPress(0.5)(model):
        cache = cache_of(model(architectures.tokens(1, 6)))
    with pytest.raises(
        ValueError, match="cannot crop to 4 tokens: H2OPress has counted the attention of the tokens after"
    ):
        cache.crop(4)
    assert cache.get_seq_length() == 6


@torch.no_grad()
@pytest.mark.parametrize(
    "press", [H2OPress(0.5, prune_after=4), TOVAPress(0.5, prune_after=4)], ids=["sums", "queries"]
)
def test_remembered_attention_is_counted_reordered_and_freed(press: Press) -> None:
    """Remembered attention is included in the overhead, reordered with rows, and freed after the only eviction."""
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
