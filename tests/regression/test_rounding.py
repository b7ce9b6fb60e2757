"""Perturbed rounding changes single bits, and tolerances follow from the largest change."""

from typing import Any

import pytest
import torch

from pressgauge.conformance import architectures
from regression.baseline import Rows
from regression.rounding import EVERY, TIMES, rounded_otherwise, tolerance

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_some_numbers_are_off_by_their_last_bit(dtype: torch.dtype) -> None:
    """One in 16 numbers is off by its last bit upwards and one in 16 downwards, others in each run, and none outside
    the context."""
    model: Any = architectures.cast("llama", dtype, torch.device("cpu"))
    layer = model.lm_head
    generator = torch.Generator().manual_seed(0)
    given = torch.randn((256, layer.in_features), generator=generator).to(dtype)
    usual = layer(given)
    moved = []
    for seed in (1, 2):
        with rounded_otherwise(model, seed):
            bits = layer(given).view(INTEGERS[dtype]) - usual.view(INTEGERS[dtype])
        assert bits.abs().max() == 1
        assert (bits != 0).float().mean().item() == pytest.approx(2 / EVERY, rel=0.1)
        moved.append(bits)
    assert not moved[0].equal(moved[1])
    assert layer(given).equal(usual)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_a_tolerance_is_four_times_the_largest_change(dtype: torch.dtype) -> None:
    """A tolerance is four times the largest change over all rows and runs, and allows one hit more or less."""
    model: Any = architectures.cast("llama", dtype, torch.device("cpu"))
    ids = architectures.tokens(1, 12)
    found = []

    def measure() -> Rows:
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        found.append(float(loss))
        return {"one": {"nll": float(loss), "hits": 200}, "other": {"nll": 2 * float(loss), "hits": 400}}

    allowed = tolerance(model, measure)
    usual, *others = found
    most = max(abs(other / usual - 1) for other in others)
    assert most > 0
    assert allowed == pytest.approx({"nll": TIMES * most, "hits": TIMES / 200}, rel=0.06)
