"""Layers that use the keys of other layers, without a cache layer of their own in some releases."""

from typing import Any

import pytest
import torch
import transformers

from pressgauge import KnormPress, perplexity
from support.zoo import specimens

PRESS = KnormPress(0.5, prune_after=3, skip_layers="unprunable")


@pytest.fixture(params=specimens.VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model whose last layers use keys of others."""
    if request.param not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {request.param}")
    return specimens.build(request.param)


def test_layers_that_share_keys_evict_together(model: Any) -> None:
    """No layer is skipped: those with windows hold half of the window, and those with keys of their own half of all."""
    ids = specimens.tokens(2, 36)
    assert PRESS.resolved(model).skipped == ()
    found, expected = (perplexity(model, ids, PRESS, 12, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-9, rtol=0)
    assert found.held == expected.held
    assert found.held[:4] == (4, 18, 4, 18)


def test_without_a_press_they_are_measured_in_one_pass(model: Any) -> None:
    ids = specimens.tokens(2, 36)
    found, expected = (perplexity(model, ids, None, 12, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-9, rtol=0)
