"""Zamba: layers share weights of attention, whose modules are told their layer in each call."""

from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache

from pressgauge import KnormPress, TOVAPress, perplexity
from pressgauge.conformance.versions import using
from pressgauge.models import interface
from support.wide import float64_throughout
from support.zoo import oracle, specimens

IDS = specimens.tokens(2, 24)
PASSES = [8, *[1] * 16]
PRESS = KnormPress(0.5, prune_after=4)
EXACT = 1e-9
"""Largest error in float64."""


class Layer(nn.Module):
    """A layer whose attention module has no index of its own."""

    def __init__(self, index: int | None) -> None:
        super().__init__()
        self.attention = nn.Linear(1, 1)
        self.attention.layer_idx = index  # type: ignore[assignment]
        self.other = nn.Linear(1, 1)


def test_modules_without_an_index_have_that_of_their_layer() -> None:
    """Not modules that never have one, those outside the layers, those with an index of their own, and those beside one
    of their class with the index."""
    decoder: Any = nn.Module()
    decoder.layers = nn.ModuleList([Layer(-1), Layer(None), Layer(7), Layer(3)])
    decoder.layers[3].beside = Layer(None)
    decoder.before = Layer(-1)
    decoder.after = Layer(None)
    attention = [layer.attention for layer in decoder.layers]
    assert interface.layer_indices(decoder) == {
        id(attention[0]): 0,
        id(attention[1]): 1,
        id(attention[2]): 7,
        id(attention[3]): 3,
        id(decoder.before.attention): -1,
    }


@cache
def zamba(name: str) -> Any:
    """A model of four layers, of which two have attention and a recurrence. Read-only."""
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[transformers.CONFIG_MAPPING[name]]
    if not interface.takes_dynamic_cache(kind):
        pytest.skip(f"transformers {transformers.__version__} decodes {name} with a cache of its own")
    return specimens.build(name)


def attending(name: str) -> tuple[int, ...]:
    """Layers with attention."""
    types = zamba(name).config.layer_types
    return tuple(layer for layer, kind in enumerate(types) if kind == "hybrid")


@cache
def allowed(name: str) -> float:
    """Largest difference between methods: those of float64, and of Zamba2's scan and recurrence without a press."""
    with float64_throughout():
        onepass, stepwise = (perplexity(zamba(name), IDS, None, 8, method).nll for method in ("onepass", "stepwise"))
    own = float((onepass - stepwise).abs().max())
    assert own < (1e-6 if name == "zamba2" else 1e-14)
    return EXACT + 2 * own


@pytest.mark.parametrize("name", ["zamba", "zamba2"])
@pytest.mark.parametrize("press", [PRESS, TOVAPress(0.5, prune_after=4)], ids=["knorm", "tova"])
def test_one_pass_equals_decoding(name: str, press: Any) -> None:
    """With the layers skipped that have no attention; the others evict."""
    with pytest.raises(ValueError, match=r"linear attention, which caches no keys.*skip_layers='unprunable'"):
        perplexity(zamba(name), IDS, press, 8)
    press = type(press)(0.5, prune_after=4, skip_layers="unprunable")
    with float64_throughout():
        onepass, stepwise = (perplexity(zamba(name), IDS, press, 8, method) for method in ("onepass", "stepwise"))
    assert float((onepass.nll - stepwise.nll).abs().max()) < allowed(name)
    assert all(map(torch.equal, onepass.evicted_at, stepwise.evicted_at))
    assert onepass.held == stepwise.held == tuple(12 * (layer in attending(name)) for layer in range(4))
    assert onepass.evictions == 2 * 12 * sum(table.shape[1] for table in onepass.evicted_at if table.min() <= 24)


@torch.no_grad()
@pytest.mark.parametrize("name", ["zamba", "zamba2"])
def test_logits_are_those_of_the_stock_model_with_evicted_keys_masked(name: str) -> None:
    """Attached and with a plain cache."""
    model, ids = zamba(name), IDS[:1]
    press = KnormPress(0.5, prune_after=4, skip_layers="unprunable")
    for attached in (True, False):
        cache: Any = DynamicCache(config=model.config) if attached else press.cache(model.config)
        with float64_throughout():
            with press(model) if attached else nullcontext():
                logits = [model(part, **using(cache)).logits for part in ids.split(PASSES, dim=1)]
            expected = oracle.expected(model, ids, PASSES, cache.evicted_at)
        assert cache.evictions
        assert float((torch.cat(logits, dim=1) - expected).abs().max()) < EXACT


@pytest.mark.parametrize("name", ["zamba", "zamba2"])
def test_padded_rows_are_as_alone_or_refused(name: str) -> None:
    """Padding within the prompt does not reach the states; padding fed singly would."""
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    press = KnormPress(0.5, prune_after=4, skip_layers="unprunable")
    with float64_throughout():
        alone = perplexity(zamba(name), IDS[:1, 5:], press, 3)
        onepass, stepwise = (
            perplexity(zamba(name), IDS, press, 8, method, attention_mask=mask) for method in ("onepass", "stepwise")
        )
    assert float((onepass.nll[0] - alone.nll[0]).abs().max()) < EXACT
    assert float((stepwise.nll[0] - alone.nll[0]).abs().max()) < allowed(name)
    with pytest.raises(ValueError, match="recurrent layers, which treat padding fed singly as text"):
        perplexity(zamba(name), IDS, press, 1, "stepwise", attention_mask=mask)
