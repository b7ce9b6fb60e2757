"""transformers' ``QuantizedCache("fp8", config)``."""

import pytest
import torch
from torch import Tensor
from transformers import QuantizedCache

from peers.verify.plain import entries, error, llama, run, still, tokens


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
    with pytest.raises(IndexError):
        cache.crop(-4)
