"""transformers' ``QuantizedCache`` with its backends ``fp8``, ``quanto`` and ``hqq``."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import QuantizedCache

from peers.verify.plain import crashing, entries, error, llama, run, still, tokens


def stored(keys: Tensor, values: Tensor) -> Tensor:
    """Keys ``[B, K, T, D]`` as read back."""
    cache = QuantizedCache("fp8", llama().config)
    cache.update(keys, values, 0)
    return cache.update(keys[:, :, :0], values[:, :, :0], 0)[0]


def test_one_scale_for_the_batch() -> None:
    """A row's entries depend on the numbers of another row: one scale per tensor."""
    keys, values = entries(8, rows=2)
    alone = error(stored(keys, values)[0], keys[0])
    coupled = error(stored(keys * torch.tensor([1, 1e6])[:, None, None, None], values)[0], keys[0])
    still(coupled > 5 * alone, f"error of row 0 {alone:.3f}, {coupled:.3f} beside a large row", "the same error")


def test_padding_is_in_the_scale() -> None:
    """Padding slots count towards the scale: the entries of a text change with its padding."""
    keys, values = entries(8)
    padded = torch.cat([5 * keys, keys], dim=2)
    apart = error(stored(padded, torch.cat([values, values], dim=2))[:, :, 8:], stored(keys, values))
    still(apart > 0.005, f"entries differ by {apart:.3f} with padding slots of 5 times the norm", "the same entries")


def test_the_scale_is_frozen_at_the_first_pass() -> None:
    """Later keys beyond the first pass's range are NaN: the scale is the first pass's."""
    keys, values = entries(8)
    cache = QuantizedCache("fp8", llama().config)
    cache.update(keys, values, 0)
    later, _ = cache.update(3 * keys, values, 0)
    bad, by = int((~later.isfinite()).sum()), error(later[:, :, 8:].nan_to_num(), 3 * keys)
    still(bad > 0 or by > 0.1, f"{bad} numbers are not finite, error {by:.3f}", "all finite, an error below .04")


def test_crop_raises_an_index_error() -> None:
    """``crop`` reads ``keys``, which are empty, and raises an IndexError."""
    model = llama()
    cache = QuantizedCache("fp8", model.config)
    run(model, tokens(12), [12], cache)
    with crashing(IndexError):
        cache.crop(-4)


def filled(backend: str) -> Any:
    """A cache after two rows of 80 tokens, all of them quantised."""
    model = llama()
    cache = QuantizedCache(backend, model.config, q_group_size=16, residual_length=8)
    run(model, tokens(80, rows=2), [64, 8, 8], cache)
    return cache


def test_a_copy_crashes_with_quanto() -> None:
    """optimum-quanto's tensors do not support deepcopy."""
    with crashing(RuntimeError, match="__deepcopy__"):
        copy.deepcopy(filled("quanto"))


def continued(cache: Any, operation: str, rows: int) -> None:
    """An operation on rows, and one more token."""
    getattr(cache, operation)(torch.tensor([1]) if rows == 1 else 2)
    run(llama(), tokens(1, rows=rows), [1], cache)


@pytest.mark.parametrize("backend", ["quanto", "hqq", "fp8"])
@pytest.mark.parametrize("operation", ["batch_select_indices", "batch_repeat_interleave"])
def test_rows_cannot_be_selected_or_repeated(backend: str, operation: str) -> None:
    """Both act on the residual, and leave the quantised entries as they are."""
    cache = QuantizedCache(backend, llama().config) if backend == "fp8" else filled(backend)
    if backend == "fp8":
        run(llama(), tokens(80, rows=2), [80], cache)
    rows = 1 if operation == "batch_select_indices" else 4
    with crashing(RuntimeError, IndexError):
        continued(cache, operation, rows)


def test_rows_are_coupled_with_hqq() -> None:
    """With the default axis, the numbers of a group are from different rows."""
    keys, values = entries(64, rows=2)
    errors = []
    for factor in (1, 30):
        cache = QuantizedCache("hqq", llama().config, q_group_size=16, residual_length=8)
        scaled = keys * torch.tensor([1, factor])[:, None, None, None]
        cache.update(scaled, values, 0)
        errors.append(error(cache.update(keys[:, :, :1], values[:, :, :1], 0)[0][0, :, :64], keys[0]))
    numbers = f"error of row 0 {errors[0]:.3f}, {errors[1]:.3f} beside a row of 30 times the norm"
    still(errors[1] > 2 * errors[0], numbers, "the same")


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_crop_crashes_while_the_residual_is_empty(backend: str) -> None:
    """``crop`` acts on the residual, which has no dimensions once it is quantised."""
    with crashing(IndexError):
        filled(backend).crop(-4)
