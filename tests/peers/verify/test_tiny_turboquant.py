"""tiny-turboquant 0.18.0: ``TinyKVCache(compression="safe")``."""

from tiny_turboquant import TinyKVCache
from torch import Tensor

from peers.verify.plain import alive, crashing, entries, error, llama, run, still, tokens


def stored(keys: Tensor, values: Tensor) -> Tensor:
    """Keys ``[B, K, T, D]`` as read back."""
    return TinyKVCache(compression="safe").update(keys, values, 0)[0]  # type: ignore[no-any-return]


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
    with crashing(IndexError):
        llama().generate(tokens(150), past_key_values=TinyKVCache(compression="safe"), num_beams=2, max_new_tokens=4)


def test_crop_crashes() -> None:
    """``crop`` slices ``keys``, which are empty."""
    model, cache = llama(), TinyKVCache(compression="safe")
    run(model, tokens(150), [150], cache)
    with crashing(IndexError):
        cache.crop(-4)


def test_reset_leaves_state_behind() -> None:
    """``reset`` leaves what is quantised and the residual behind: the next text is appended to the last one."""
    model, cache = llama(), TinyKVCache(compression="safe")
    run(model, tokens(300), [300], cache)
    cache.reset()
    left = cache.get_seq_length()
    still(left == 300, f"{left} tokens after a reset", "0")


def test_more_is_kept_alive_than_reported() -> None:
    """The residual is a slice, which keeps the tokens before it alive beside their quantised form."""
    keys, values = entries(512)
    cache = TinyKVCache(compression="safe")
    cache.update(keys, values, 0)
    held, reported = alive(cache), cache.layers[0].memory_report()["total_storage_bytes"]
    still(held > 1.3 * reported, f"{held:,} bytes kept alive, {reported:,} reported", "the same")


def test_large_keys_are_not_finite() -> None:
    """Scales and zero points are float16, whose largest number is 65,504."""
    keys, values = entries(256)
    bad = int((~stored(1e5 * keys, values).isfinite()).sum())
    still(bad > 0, f"{bad} numbers of keys of 1e5 are not finite in float32", "all finite")
