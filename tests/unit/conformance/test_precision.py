"""Tolerances in narrow dtypes, and caches that store their entries in one."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from pressgauge.conformance import architectures
from pressgauge.conformance.checks import wrong_tokens
from pressgauge.conformance.precision import in_dtype, rounded, rounding, tolerance


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float16, 0.01, 0.05), (torch.bfloat16, 0.1, 0.5)])
def test_the_tolerance_is_above_the_error_of_a_model(dtype: torch.dtype, low: float, high: float) -> None:
    """The tolerance of a dtype is a multiple of what a model loses in it, also on another text."""
    assert low < tolerance(dtype) < high
    narrow = in_dtype(architectures.shared("llama"), dtype)
    exact = in_dtype(narrow, torch.float64)
    ids = architectures.text(narrow, 1, 40, seed=3)
    with torch.no_grad():
        found, expected = narrow(ids).logits, exact(ids).logits
    assert wrong_tokens(found, expected) == []
    assert wrong_tokens(found * (1 + 2 * high), expected) != []


def test_two_runs_in_a_narrow_dtype_are_not_compared() -> None:
    """Logits of two runs in float16 are not compared, while those of float64 are."""
    logits = torch.ones(1, 3, 2)
    with pytest.raises(pytest.skip.Exception, match=r"two runs in torch\.float16 may choose differently"):
        wrong_tokens(logits.half(), logits.half())
    assert wrong_tokens(logits.double(), logits.double() * 2) == [0, 1, 2]


def test_a_model_has_one_copy_in_each_dtype() -> None:
    """A model is copied once for each dtype, and the copy says so in its config."""
    model = architectures.shared("llama")
    half = in_dtype(model, torch.float16)
    assert in_dtype(model, torch.float64) is model
    assert in_dtype(model, torch.float16) is half
    assert (half.dtype, half.config.dtype) == (torch.float16, torch.float16)
    assert model.dtype == torch.float64


def test_a_model_whose_parameters_were_changed_is_copied_again() -> None:
    """A copy follows its model: scripted models are given other keys before each run."""
    model = copy.deepcopy(architectures.shared("llama"))
    stale = in_dtype(model, torch.float16)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert stale.lm_head.weight.any()
    assert not in_dtype(model, torch.float16).lm_head.weight.any()


def test_entries_are_rounded_where_they_are_stored() -> None:
    """A cache stores entries in the narrow dtype and returns them in that of the model; nothing is widened."""
    cache = rounding(DynamicCache(), torch.float16)
    keys = torch.full((1, 1, 2, 4), 1.0001, dtype=torch.float64)
    returned, _ = cache.update(keys, keys, 0)
    assert returned.dtype == torch.float64
    assert torch.equal(returned, torch.ones_like(keys))
    layer: Any = cache.layers[0]
    assert layer.keys.dtype == torch.float16
    assert rounded(keys.half(), torch.bfloat16).dtype == torch.float16
    assert rounded(keys, None) is keys
