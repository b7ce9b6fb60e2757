"""Cases that one pass and a cache could miss: tokens in parts, a window behind a shared mask, a skipped layer."""

from typing import Any

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from pressgauge import KnormPress, PressedCache, perplexity
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import CACHE


class InParts:
    """A cache that receives a layer's tokens of a pass in two parts."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        half = keys.shape[2] // 2
        if half:
            self.cache.update(keys[:, :, :half], values[:, :, :half], *args, **kwargs)
        return self.cache.update(keys[:, :, half:], values[:, :, half:], *args, **kwargs)


@pytest.mark.parametrize("press", [None, KnormPress(0.5, prune_after=6)])
def test_one_pass_reads_all_parts_of_a_pass(press: KnormPress | None) -> None:
    """One pass equals decoding if a layer passes its tokens to the cache in parts."""
    model = architectures.build("llama")
    attention = model.model.layers[1].self_attn
    own = attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        name = next((name for name in (CACHE, "past_key_values") if kwargs.get(name) is not None), None)
        return own(*args, **({**kwargs, name: InParts(kwargs[name])} if name else kwargs))

    attention.forward = forward
    ids = architectures.tokens(1, 24)
    found, expected = (perplexity(model, ids, press, 8, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-9, rtol=0)


def test_a_window_behind_a_shared_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that caches a window only is refused in one pass, even if all layers share one causal mask."""
    settings: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    model = architectures.build("qwen2", layer_types=None, **settings)
    mask = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
    own = Qwen2Attention.forward

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return own(self, hidden_states, *args, **{**kwargs, "attention_mask": mask})

    monkeypatch.setattr(Qwen2Attention, "forward", forward)
    with pytest.raises(ValueError, match="attends beyond the window of 8"):
        perplexity(model, architectures.tokens(1, 20))


def test_a_pass_that_missed_a_skipped_layer_is_found_out() -> None:
    config = architectures.build("llama").config
    cache: PressedCache = KnormPress(0.5, prune_after=4, skip_layers=(1,)).cache(config)
    states = torch.randn(1, 2, 13, 8, dtype=torch.float64)
    for layer in range(config.num_hidden_layers):
        cache.update(states[:, :, :10], states[:, :, :10], layer)
    for layer in (0, 2):
        cache.update(states[:, :, 10:11], states[:, :, 10:11], layer)
    with pytest.raises(RuntimeError, match="interrupted"):
        cache.update(states[:, :, 11:12], states[:, :, 11:12], 0)
