"""Layers that borrow the keys of another, which in the caches of some releases have no layer of their own."""

from typing import Any

import pytest
import torch
import transformers

from pressgauge import KnormPress, perplexity
from support.zoo import specimens

PRESS = KnormPress(0.5, prune_after=8, skip_layers="unprunable")


@pytest.fixture(params=specimens.VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model whose last layers borrow keys."""
    if request.param not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {request.param}")
    return specimens.build(request.param)


def test_lenders_and_borrowers_are_skipped_and_the_layer_beside_them_is_pruned(model: Any) -> None:
    """Layers 0, 2 and 4 have windows; 2 and 3 lend to 4 and 5."""
    ids = specimens.tokens(2, 36)
    assert PRESS.resolved(model).skipped == (0, 2, 3, 4, 5)
    found, expected = (perplexity(model, ids, PRESS, 12, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-9, rtol=0)
    assert found.held == expected.held
    assert found.held[1] == 18


def test_without_a_press_they_are_measured_in_one_pass(model: Any) -> None:
    ids = specimens.tokens(2, 36)
    found, expected = (perplexity(model, ids, None, 12, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-9, rtol=0)
