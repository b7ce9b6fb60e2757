"""Layers with attention and a recurrence: entries are evicted, and states are left as they are."""

from functools import cache
from typing import Any

import pytest
import torch
import transformers

from pressgauge import KnormPress, TOVAPress, perplexity
from pressgauge.cache import PressedLayer
from pressgauge.conformance.versions import using
from pressgauge.models import interface
from support.zoo import specimens

PRESS = KnormPress(0.5, prune_after=4)
IDS = specimens.tokens(2, 20)


@cache
def falcon_h1() -> Any:
    """A Falcon-H1, each layer of which has both. Read-only."""
    if not hasattr(transformers.cache_utils, "LinearAttentionAndFullAttentionLayer"):
        pytest.skip(f"transformers {transformers.__version__} has no such layers")
    state_space = {"n_heads": 8, "d_head": 8, "d_ssm": 64, "d_state": 8, "chunk_size": 8}
    config: Any = specimens.tiny(
        transformers.FalconH1Config,
        {"num_hidden_layers": 2, **{f"mamba_{name}": value for name, value in state_space.items()}},
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return transformers.FalconH1ForCausalLM(config).double().eval()


@pytest.mark.parametrize("press", [PRESS, TOVAPress(0.5, prune_after=4)], ids=["knorm", "tova"])
def test_one_pass_equals_decoding(press: Any) -> None:
    """Up to the recurrence, which is in float32, and whose states both methods keep."""
    onepass, stepwise = (perplexity(falcon_h1(), IDS, press, 8, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(onepass.nll, stepwise.nll, rtol=0, atol=1e-5)
    assert all(map(torch.equal, onepass.evicted_at, stepwise.evicted_at))
    assert onepass.held == stepwise.held == (10, 10)
    # The padding of a row that is fed singly would be text to the recurrence.
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    with pytest.raises(ValueError, match="recurrent layers, which treat padding fed singly as text"):
        perplexity(falcon_h1(), IDS, press, 1, "stepwise", attention_mask=mask)


@torch.no_grad()
def test_rows_are_reordered_with_their_states() -> None:
    """A cache whose rows are exchanged continues as one that was fed the other way round."""
    model, logits = falcon_h1(), []
    for fed, order in (([0, 1], [1, 0]), ([1, 0], [0, 1])):
        kept = PRESS.cache(model.config, unpadded=True)
        with PRESS(model):
            model(IDS[fed, :16], **using(kept))
            kept.reorder_cache(torch.tensor(order))
            logits.append(model(IDS[[1, 0], 16:17], **using(kept)).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_crop_is_refused_and_a_reset_cache_is_as_new() -> None:
    """States have taken in all tokens."""
    model = falcon_h1()
    kept = KnormPress(1).cache(model.config)
    first = model(IDS[:1, :8], **using(kept)).logits
    with pytest.raises(ValueError, match=r"^cannot crop to 6 tokens: layer 0 has recurrent states, .*; start again"):
        kept.crop(6)
    assert kept.get_seq_length() == 8
    kept.reset()
    layer: Any = kept.layers[0]
    assert isinstance(layer, PressedLayer)
    assert interface.keeps_states(layer)
    assert torch.equal(model(IDS[:1, :8], **using(kept)).logits, first)
    layer.reset()
    assert (layer.keys, layer.columns, vars(layer)["has_previous_state"]) == (None, 0, {0: False})
