"""Rule 7: without evictions, everything is bit-identical to transformers' ``DynamicCache``."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import KnormPress
from pressgauge.conformance import architectures
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import using
from support.drive import run

LENGTH = 24
PASSES = [9, 1, 1, 5] + [1] * 8


@cache
def without(architecture: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Any]:
    """Logits ``[1, T, V]`` and cache of the text without a press. Read-only."""
    model = architectures.cast(architecture, dtype, device)
    plain: Any = DynamicCache(config=model.config)
    with torch.no_grad():
        passes = architectures.tokens(1, LENGTH).to(device).split(PASSES, dim=1)
        logits = [model(one, **using(plain)).logits for one in passes]
    return torch.cat(logits, dim=1), plain


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nothing_evicted_is_nothing_changed(
    architecture: str, attached: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """With r = 1, or at most P tokens, logits and cache are bit-identical to those of a ``DynamicCache``."""
    model = architectures.cast(architecture, dtype, device)
    ids = architectures.tokens(1, LENGTH).to(device)
    expected, plain = without(architecture, dtype, device)
    for press in (KnormPress(1.0, prune_after=0), KnormPress(0.1, prune_after=LENGTH)):
        result = run(model, press, ids, PASSES, attached=attached)
        assert torch.equal(result.logits, expected)
        for ours, theirs in zip(result.cache.layers, plain.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_a_ratio_of_one_never_evicts(subject: Subject) -> None:
    """Rule 7: a ratio of 1 never evicts, for every press and schedule."""
    model = architectures.shared("llama")
    result = run(model, subject(1.0, prune_after=0), architectures.tokens(1, LENGTH), PASSES)
    assert result.cache.evictions == 0
    assert result.cache.held == [LENGTH] * architectures.LAYERS


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
@pytest.mark.parametrize("rows", [1, 2])
def test_generated_tokens_are_those_of_the_plain_model(architecture: str, rows: int) -> None:
    """Rule 7: ``model.generate`` gives the tokens of the plain model, attached and with a plain cache."""
    model = architectures.shared(architecture)
    ids = architectures.tokens(rows, 11)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids, **settings)
    press = KnormPress(1.0, prune_after=0)
    assert torch.equal(model.generate(ids, **using(press.cache(model.config)), **settings), expected)
    with press(model):
        assert torch.equal(model.generate(ids, **settings), expected)


def test_padded_batches_are_unchanged() -> None:
    """Rule 7: an attached press that evicts nothing leaves the logits of padded batches unchanged."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 10)
    mask = torch.tensor([[0] * 4 + [1] * 6, [1] * 10])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, position_ids=positions).logits
    result = run(model, KnormPress(1.0, prune_after=0), ids, [10], mask=mask)
    assert torch.equal(result.logits, expected)
