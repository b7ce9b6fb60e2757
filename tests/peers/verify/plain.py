"""What the scripts share: a tiny Llama, its logits, and bytes that a cache keeps alive."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


def llama(dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Any:
    """A random Llama: 2 layers, 4 heads of 16 over 2 KV heads."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
    settings: Any = LlamaConfig(**{**sizes, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, **config})
    return LlamaForCausalLM(settings).eval().to(dtype)


def tokens(count: int, rows: int = 1, seed: int = 1) -> Tensor:
    """Token ids ``[B, T]``."""
    return torch.randint(1, 64, (rows, count), generator=torch.Generator().manual_seed(seed))


def entries(count: int, rows: int = 1, heads: int = 2, dim: int = 16, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Keys and values ``[B, K, T, D]``."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, heads, count, dim, generator=generator)
    return keys, torch.randn(rows, heads, count, dim, generator=generator)


@torch.no_grad()
def run(model: Any, ids: Tensor, lengths: list[int], cache: Any, **given: Any) -> Tensor:
    """Logits ``[B, T, V]`` of ``ids`` fed in passes of these lengths."""
    found = []
    for part in ids.split(lengths, dim=1):
        found.append(model(part, past_key_values=cache, use_cache=True, **given).logits)
    return torch.cat(found, dim=1)


def off(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest of ``other``."""
    return float((one - other).abs().max() / other.abs().max())


def error(one: Tensor, other: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((one - other).norm() / other.norm())


def alive(cache: Any) -> int:
    """Bytes of every tensor storage that is reachable from the cache, each counted once."""
    storages, seen, todo = {}, set(), [cache]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, list | tuple | set):
            todo += one
        elif hasattr(one, "__dict__") and not isinstance(one, type):
            todo += vars(one).values()
    return sum(storages.values())


def plain_bytes(count: int, like: Tensor, layers: int = 1) -> int:
    """Bytes of a ``DynamicCache`` that holds ``count`` tokens of keys like these, and as many of values."""
    cache = DynamicCache()
    rows, heads, _, dim = like.shape
    for layer in range(layers):
        cache.update(like.new_zeros(rows, heads, count, dim), like.new_zeros(rows, heads, count, dim), layer)
    return alive(cache)


SAID: dict[str, tuple[str, str]] = {}
"""What was measured and what is right, by the name of the test."""


def _said(measured: str, right: str) -> None:
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0].rpartition("::")[2]
    SAID[test] = (measured, right)


def still(defect: bool, numbers: str, right: str) -> None:
    """Assert that a defect is there still. A release without it fails, so that its finding is taken off the list."""
    _said(numbers, right)
    assert defect, f"no longer so: {numbers}. Right: {right}"


@contextmanager
def crashing(*kinds: type[Exception], match: str | None = None, right: str = "no error") -> Iterator[None]:
    """Assert that a call crashes still, as ``still`` does."""
    with pytest.raises(kinds, match=match) as caught:
        yield
    line = next(iter(str(caught.value).splitlines()), "")
    _said(f"{caught.type.__name__}: {line[:120]}", right)
