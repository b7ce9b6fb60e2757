"""Layers that borrow the keys of another, which in the caches of some releases have no layer of their own."""

import pytest
import torch
import transformers
from zoo import specimens

from pressgauge import KnormPress, perplexity

PRESS = KnormPress(0.5, prune_after=8, skip_layers="unprunable")


@pytest.mark.parametrize("name", specimens.VARIANTS)
def test_lenders_and_borrowers_are_skipped_and_the_layer_beside_them_is_pruned(name: str) -> None:
    """Layers 0, 2 and 4 have windows; 2 and 3 lend to 4 and 5."""
    if name not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model = specimens.build(name)
    ids = specimens.tokens(2, 36)
    assert PRESS.resolved(model).skipped == (0, 2, 3, 4, 5)
    found, expected = (perplexity(model, ids, PRESS, 12, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-9, rtol=0)
    assert found.held == expected.held
    assert found.held[1] == 18


@pytest.mark.parametrize("name", specimens.VARIANTS)
def test_without_a_press_they_are_measured_in_one_pass(name: str) -> None:
    if name not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model = specimens.build(name)
    ids = specimens.tokens(2, 36)
    found, expected = (perplexity(model, ids, None, 12, method) for method in ("onepass", "stepwise"))
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-9, rtol=0)
