"""Padding, for models that treat it as text or compute NaN behind it."""

import pytest
import torch

from pressgauge import perplexity
from pressgauge.conformance import architectures
from pressgauge.models import padding


def test_recurrent_layers_are_known_by_the_cache() -> None:
    """Alone or besides attention layers."""
    assert padding.has_recurrent_layers(architectures.hybrid().config)
    assert not padding.has_recurrent_layers(architectures.shared("llama").config)


@pytest.mark.parametrize(
    ("dtype", "implementation", "finite"),
    [(torch.float64, "eager", False), (torch.float32, "eager", True), (torch.float64, "sdpa", True)],
    ids=str,
)
def test_eager_attention_in_float64_computes_nan_behind_padding(
    dtype: torch.dtype, implementation: str, finite: bool
) -> None:
    """Stock: the smallest number of float64 is minus infinity in the softmax's float32; stepwise refuses it."""
    model = architectures.build("llama").to(dtype)
    model.set_attn_implementation(implementation)
    assert padding.computes_behind_padding(model) == finite
    ids, mask = architectures.padded([12, 9])
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    assert bool(logits[1, 3:].isfinite().all()) == finite
    if finite:
        assert perplexity(model, ids, None, 4, "stepwise", attention_mask=mask).scored_tokens
    else:
        with pytest.raises(ValueError, match="in float64 computes NaN behind padding, by its eager attention"):
            perplexity(model, ids, None, 4, "stepwise", attention_mask=mask)
    assert perplexity(model, ids, None, 4, attention_mask=mask).nll[1].nansum() > 0


def test_eager_attention_whose_softmax_is_in_float64_computes_behind_padding() -> None:
    """As that of gpt-oss."""
    model = architectures.shared("gpt_oss")
    assert model.config._attn_implementation == "eager"
    assert padding.computes_behind_padding(model)
