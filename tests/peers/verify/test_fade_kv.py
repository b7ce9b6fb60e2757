"""fade-kv 1.1.0: ``create_tiered_cache(model, config=FadeConfig.safe())``, and tiers assigned after passes."""

from typing import Any

import torch
from fade import FadeConfig, create_tiered_cache
from fade.policy import reassign_tiers_by_position
from torch import Tensor
from transformers import DynamicCache

from peers.verify.plain import alive, entries, error, llama, off, plain_bytes, run, still, tokens


def tiered(model: Any) -> Any:
    """The README's cache, in float32."""
    return create_tiered_cache(model, dtype=torch.float32, config=FadeConfig.safe())


def stored(cache: Any) -> Tensor:
    """Keys of layer 0 as read back."""
    return cache._materialize(0)[0]  # type: ignore[no-any-return]


def test_padding_is_in_the_scale() -> None:
    """Padding slots count towards the scale of the quantised tokens."""
    keys, values = entries(200)
    padded = keys.clone()
    padded[:, :, 4:20] *= 10
    errors = []
    for each in (keys, padded):
        cache = tiered(llama())
        cache.update(each, values, 0)
        reassign_tiers_by_position(cache, 1)
        errors.append(error(stored(cache)[:, :, 20:130], keys[:, :, 20:130]))
    numbers = f"error {errors[0]:.3f}, {errors[1]:.3f} after 16 padding slots of 10 times the norm"
    still(errors[1] > 2 * errors[0], numbers, "the same")


def test_the_error_grows_with_every_assignment() -> None:
    """Quantised tokens are dequantised and quantised again at every assignment of tiers."""
    keys, values = entries(1024)
    cache = tiered(llama())
    errors = []
    for start in range(0, 1024, 64):
        cache.update(keys[:, :, start : start + 64], values[:, :, start : start + 64], 0)
        reassign_tiers_by_position(cache, 1)
        errors.append(error(stored(cache)[:, :, 4:64], keys[:, :, 4:64]))
    numbers = f"error of tokens 4 to 63 {errors[1]:.3f} after 128 tokens, {errors[-1]:.3f} after 1,024"
    still(errors[-1] > 1.2 * errors[1], numbers, "written once, the same")


def test_beam_search_is_wrong() -> None:
    """``reorder_cache`` reorders ``layers``, which are empty."""
    model, ids = llama(), tokens(20, rows=2)
    results = []
    for cache in (tiered(model), DynamicCache()):
        run(model, ids, [20], cache)
        reordered: Any = cache
        reordered.reorder_cache(torch.tensor([1, 1]))
        results.append(run(model, tokens(1, rows=2), [1], cache))
    by = off(*results)
    still(by > 0.1, f"logits after a reorder differ by {by:.2f}, no token being quantised", "no difference")


def test_crop_and_reset_do_nothing() -> None:
    """Both act on ``layers``, which are empty."""
    model = llama()
    cache = tiered(model)
    run(model, tokens(20), [20], cache)
    cache.crop(-8)
    cropped = cache.get_seq_length()
    cache.reset()
    left = cache.get_seq_length()
    still((cropped, left) == (20, 20), f"{cropped} of 20 tokens after crop(-8), {left} after reset", "12 and 0")


def test_more_bytes_than_an_uncompressed_cache() -> None:
    """Dequantised entries and a buffer of twice the size are held beside the quantised ones."""
    keys, values = entries(1024, dim=64)
    cache = create_tiered_cache(llama(head_dim=64), config=FadeConfig.safe())
    cache.update(keys.half(), values.half(), 0)
    reassign_tiers_by_position(cache, 1)
    cache.update(keys[:, :, :1].half(), values[:, :, :1].half(), 0)
    held, plain = alive(cache), plain_bytes(1025, keys.half())
    reported = plain / cache.compressed_storage_bytes()
    still(held > plain, f"{held / plain:.2f} times DynamicCache's bytes, {reported:.1f}x reported", "fewer")
