"""Compressors that do not support float64: their laws run in a dtype that they declare.

Where a compressor sees nothing but entries, the model stays in float64 and passes its entries in the declared dtype.
Laws remain exact: the expected logits are those of attention to the rounded entries. A compressor that works on the
model itself gets a model in the declared dtype. Its logits are compared with those of a float64 model with the same
weights, within ``MULTIPLE`` times the error of the uncompressed model; two runs in this dtype are not compared.
"""

import copy
import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from pressgauge.conformance import architectures

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Dtypes by their names in declarations."""

EXACT = 1e-10
"""Error tolerance in float64, relative to the largest logit."""
MULTIPLE = 4
"""Tolerance in other dtypes, in errors of the uncompressed model."""

_CAST: weakref.WeakKeyDictionary[Any, dict[torch.dtype, tuple[list[int], Any]]] = weakref.WeakKeyDictionary()
"""Copies of models, each with the versions of the parameters of which it was made."""


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model itself if it has this dtype, or a copy of it, the same for each call until a parameter is changed."""
    if model.dtype == dtype:
        return model
    copies = _CAST.setdefault(model, {})
    versions = [parameter._version for parameter in model.parameters()]
    if dtype not in copies or copies[dtype][0] != versions:
        made = copy.deepcopy(model).to(dtype)
        made.config.dtype = dtype
        copies[dtype] = versions, made
    return copies[dtype][1]


@functools.cache
def tolerance(dtype: torch.dtype) -> float:
    """Tolerance of logits, relative to the largest.

    In float64 it is ``EXACT``, else ``MULTIPLE`` times the largest error of a tiny model of any architecture, without a
    compressor, against float64 with the same weights.
    """
    if dtype == torch.float64:
        return EXACT
    errors = []
    for architecture in architectures.ARCHITECTURES:
        narrow = in_dtype(architectures.shared(architecture), dtype)
        ids = architectures.text(narrow, 1, 64)
        with torch.no_grad():
            found, exact = (model(ids, use_cache=False).logits for model in (narrow, copy.deepcopy(narrow).double()))
        errors.append(float((found - exact).abs().max() / exact.abs().max()))
    return MULTIPLE * max(errors)


def rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A float64 or float32 tensor in ``dtype``; any tensor as it is if that is None or not narrower."""
    return tensor if dtype is None or dtype.itemsize >= tensor.dtype.itemsize else tensor.to(dtype)


def rounding(cache: Cache, dtype: torch.dtype | None) -> Cache:
    """A cache that stores its entries in ``dtype``, and returns them in that of the model."""
    if dtype is not None:
        update = cache.update

        def narrow(key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            stored = update(rounded(key_states, dtype), rounded(value_states, dtype), layer_idx, *args, **kwargs)
            return stored[0].to(key_states.dtype), stored[1].to(value_states.dtype)

        cache.update = narrow  # type: ignore[method-assign]
    return cache
