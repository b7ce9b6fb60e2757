"""tiny-turboquant 0.18.0: ``TinyKVCache(compression="safe")``."""

import pytest
from tiny_turboquant import TinyKVCache
from torch import Tensor

from peers.verify.plain import entries, error, llama, run, still, tokens


def stored(keys: Tensor, values: Tensor) -> Tensor:
    """Keys ``[B, K, T, D]`` as read back."""
    return TinyKVCache(compression="safe").update(keys, values, 0)[0]


def test_a_block_is_scaled_with_later_tokens() -> None:
    """Token 0 is stored with the scale of tokens 0 to 127, so a later token changes it."""
    keys, values = entries(256)
    large = keys.clone()
    large[:, :, 127] *= 20
    one, other = (
        error(stored(keys, values)[:, :, 0], keys[:, :, 0]),
        error(stored(large, values)[:, :, 0], keys[:, :, 0]),
    )
    still(other > 3 * one, f"error of token 0 {one:.3f}, {other:.3f} before a large token 127", "the same error")


def test_padding_is_in_the_scale() -> None:
    """Padding slots count towards the scale of their block."""
    keys, values = entries(256)
    padded = keys.clone()
    padded[:, :, :16] *= 5
    one, other = (error(stored(each, values)[:, :, 16:128], keys[:, :, 16:128]) for each in (keys, padded))
    still(other > 2 * one, f"error {one:.3f}, {other:.3f} after 16 padding slots of 5 times the norm", "the same")


def test_beam_search_crashes() -> None:
    """``reorder_cache`` indexes ``keys``, which are empty."""
    with pytest.raises(IndexError):
        llama().generate(tokens(150), past_key_values=TinyKVCache(compression="safe"), num_beams=2, max_new_tokens=4)


def test_crop_crashes() -> None:
    """``crop`` slices ``keys``, which are empty."""
    model, cache = llama(), TinyKVCache(compression="safe")
    run(model, tokens(150), [150], cache)
    with pytest.raises(IndexError):
        cache.crop(-4)


def test_a_cache_cannot_be_used_after_reset() -> None:
    """``reset`` leaves what is quantised and the residual behind: the next text is appended to the last one."""
    model, cache = llama(), TinyKVCache(compression="safe")
    run(model, tokens(300), [300], cache)
    cache.reset()
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        cache.reset()
        run(model, tokens(300, rows=2), [300], cache)


def test_large_keys_are_not_finite() -> None:
    """Scales and zero points are float16, whose largest number is 65,504."""
    keys, values = entries(256)
    bad = int((~stored(1e5 * keys, values).isfinite()).sum())
    still(bad > 0, f"{bad} numbers of keys of 1e5 are not finite in float32", "all finite")
