"""nexusquant-kv 0.6.3: ``nexusquant(model)``, ``nexusquant_evict(model)`` and ``E8QuantizedCache``."""

from typing import Any

import pytest
import torch
from nexusquant import E8QuantizedCache, nexusquant, nexusquant_evict, nexusquant_simple
from torch import Tensor
from transformers import DynamicCache

from peers.verify.plain import alive, crashing, entries, error, llama, off, run, still, tokens


def stored(cache: Any) -> Tensor:
    """Keys of layer 0 ``[B, K, T, D]``."""
    return cache.layers[0].keys  # type: ignore[no-any-return]


def quantise(model: Any, keys: Tensor, values: Tensor) -> Tensor:
    """Keys as read back after one pass in the context."""
    cache = DynamicCache()
    with nexusquant_simple(model, verbose=False):
        cache.update(keys, values, 0)
    return stored(cache)


def test_the_documented_call_crashes() -> None:
    """``with nexusquant(model):`` formats ``bits_per_dim``, which is None, in a message that ``verbose`` prints."""
    with crashing(TypeError, match="__format__"), nexusquant(llama()):
        pass


def test_another_model_is_changed() -> None:
    """The classes of transformers are patched: every model quantises within the context."""
    one, other, ids = llama(), llama(seed=5), tokens(40)
    plain = run(other, ids, [39, 1], DynamicCache())
    with nexusquant_simple(one, verbose=False):
        by = off(run(other, ids, [39, 1], DynamicCache()), plain)
    still(by > 0.1, f"logits of a second model are off by {by:.2f} within the context of the first", "0")


def test_padding_moves_the_rotation() -> None:
    """Keys are unrotated by their slot, not by their position: entries of a text change with its padding."""
    keys, values = entries(64)
    padding = torch.cat([keys[:, :, :8], keys], dim=2), torch.cat([values[:, :, :8], values], dim=2)
    alone = quantise(llama(), keys, values)
    apart, own = error(quantise(llama(), *padding)[:, :, 8:], alone), error(alone, keys)
    numbers = f"entries differ by {apart:.3f} with 8 padding slots; their own error is {own:.3f}"
    still(apart > own, numbers, "the same entries")


def test_the_error_grows_with_every_chunk() -> None:
    """All that is held is quantised again with every chunk."""
    keys, values = entries(1024, dim=64)
    cache, errors = DynamicCache(), []
    with nexusquant_simple(llama(head_dim=64), verbose=False):
        for start in range(0, 1024, 32):
            cache.update(keys[:, :, start : start + 32], values[:, :, start : start + 32], 0)
            errors.append(error(stored(cache)[:, :, :32], keys[:, :, :32]))
    numbers = f"error of the first 32 tokens {errors[0]:.3f} after their pass, {errors[-1]:.3f} after 32 passes"
    still(errors[-1] > 1.5 * errors[0], numbers, "written once, the same")


def test_memory_saved_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    """Entries stay in the model's dtype, and "Memory saved" is printed."""
    plain, cache = DynamicCache(), DynamicCache()
    model = llama(torch.float16)
    run(model, tokens(600), [600], plain)
    with nexusquant_evict(model):
        run(model, tokens(600), [600], cache)
    printed = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "Compression ratio" in line]
    share = alive(cache) / alive(plain)
    still(share >= 1, f"{share:.2f} times DynamicCache's bytes, compression {printed} printed", "fewer")


def test_the_cache_quantises() -> None:
    """``E8QuantizedCache`` stores other entries than it gets."""
    keys, values = entries(64)
    cache = E8QuantizedCache.from_model(llama())
    cache.update(keys, values, 0)
    assert error(stored(cache), keys) > 0.05
