"""akv-cache 1.4.0: ``AKVCache(preset="balanced")``."""

import torch
from akv import AKVCache
from torch import Tensor

from peers.verify.plain import alive, crashing, entries, error, llama, plain_bytes, run, still, tokens


def test_batches_crash() -> None:
    """A batch is quantised as if it had one row."""
    keys, values = entries(200, rows=2)
    with crashing(RuntimeError):
        AKVCache(preset="balanced").update(keys, values, 0)


def test_bfloat16_crashes() -> None:
    """Quantised entries have another dtype than the queries."""
    model = llama(torch.bfloat16)
    with crashing(RuntimeError, TypeError):
        run(model, tokens(200), [200], AKVCache(preset="balanced"))


def stored(keys: Tensor, values: Tensor) -> Tensor:
    """Keys ``[B, K, T, D]`` as read back."""
    return AKVCache(preset="balanced").update(keys, values, 0)[0]  # type: ignore[no-any-return]


def test_later_tokens_are_in_the_scale() -> None:
    """Quantised tokens have the scale of tokens that follow them."""
    keys, values = entries(256)
    large = keys.clone()
    large[:, :, 120] *= 20
    one, other = (error(stored(each, values)[:, :, :120], keys[:, :, :120]) for each in (keys, large))
    numbers = f"error of tokens 0 to 119 {one:.3f}, {other:.3f} before a large token 120"
    still(other > 2 * one, numbers, "the same")


def test_crop_is_wrong() -> None:
    """``crop`` takes a length, where transformers passes the number to remove as a negative one."""
    model, cache = llama(), AKVCache(preset="balanced")
    run(model, tokens(100), [100], cache)
    cache.crop(-4)
    try:
        run(model, tokens(1), [1], cache)
        outcome = f"{cache.get_seq_length()} tokens"
    except (RuntimeError, IndexError) as crash:
        outcome = f"a {type(crash).__name__}"
    still(outcome != "97 tokens", f"after 100 tokens, crop(-4) and one more: {outcome}", "97 tokens")


def test_more_bytes_than_an_uncompressed_cache() -> None:
    """The dequantised entries are held twice, and a saving is reported."""
    keys, values = entries(1024, dim=64)
    cache = AKVCache(preset="balanced")
    cache.update(keys.half(), values.half(), 0)
    held, plain = alive(cache), plain_bytes(1024, keys.half())
    reported = cache.memory_report()["savings_ratio"]
    still(held > plain, f"{held / plain:.2f} times DynamicCache's bytes, {reported:.2f}x reported", "fewer")
    assert torch.float16 == cache.layers[0].keys.dtype
