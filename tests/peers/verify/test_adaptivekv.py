"""adaptivekv 0.1.0: ``AdaptiveKVCache``, with its documented arguments."""

from typing import Any

import torch
from adaptivekv import AdaptiveKVConfig, AllocationConfig
from adaptivekv.cache import AdaptiveKVCache
from transformers import DynamicCache

from peers.verify.plain import alive, entries, llama, off, plain_bytes, run, still, tokens


def documented() -> Any:
    """The README's example: quantisation to 2, 3 and 4 bits, no eviction."""
    return AdaptiveKVCache(AdaptiveKVConfig(allocation=AllocationConfig(strategy="threshold", bits=(2, 3, 4))))


def evicting(**given: Any) -> Any:
    """The class's example, with smaller numbers."""
    return AdaptiveKVCache(enable_token_eviction=True, min_cache_tokens=1, sink_tokens=2, enable_quantization=False,
                           **{"recent_window": 4, **given})  # fmt: skip


def test_the_mask_forgets_the_query() -> None:
    """``get_mask_sizes`` gives what is held without the tokens of the pass."""
    cache = documented()
    cache.update(*entries(8), 0)
    announced = cache.get_mask_sizes(4, 0)[0]
    returned = cache.update(*entries(4), 0)[0].shape[2]
    still(announced != returned, f"{announced} announced, {returned} returned", "12 and 12")


def test_a_prompt_in_two_equal_chunks_is_silently_wrong() -> None:
    """The mask of the second chunk is that of the first: its queries see the future of the wrong half."""
    model, ids = llama(), tokens(24)
    by = off(run(model, ids, [12, 12], documented()), run(model, ids, [12, 12], DynamicCache()))
    still(by > 0.05, f"logits of a prompt in two chunks of 12 are off by {by:.2f}", "0: nothing read is quantised")


def test_the_default_quantises_nothing_that_is_read() -> None:
    """The entries handed to attention are the originals, and the quantised copy is held beside them."""
    keys, values = entries(1024, dim=64)
    cache = documented()
    read, _ = cache.update(keys.half(), values.half(), 0)
    held, plain = alive(cache), plain_bytes(1024, keys.half())
    same = torch.equal(read, keys.half())
    still(same and held > plain, f"read back unchanged: {same}; {held / plain:.2f} times DynamicCache's bytes",
          "quantised entries are read, in fewer bytes")  # fmt: skip


def test_eviction_precedes_attention() -> None:
    """A prompt longer than the budget is evicted before its queries attend."""
    cache = evicting(max_cache_tokens=8)
    read, _ = cache.update(*entries(20), 0)
    still(read.shape[2] == 8, f"attention gets {read.shape[2]} of 20 entries of the prompt", "20, then eviction")


def test_the_keep_ratio_compounds() -> None:
    """The ratio is of what is held, at every token: a half becomes the least that is allowed."""
    cache = evicting(keep_ratio=0.5)
    keys, values = entries(120)
    cache.update(keys[:, :, :100], values[:, :, :100], 0)
    for token in range(100, 120):
        cache.update(keys[:, :, token : token + 1], values[:, :, token : token + 1], 0)
    held = cache.get_seq_length()
    still(held < 30, f"{held} of 120 entries held at keep_ratio .5", "60")


def test_positions_are_counted_from_what_is_held() -> None:
    """``get_seq_length`` is the number held, from which the model takes the next position."""
    cache = evicting(max_cache_tokens=8)
    cache.update(*entries(20), 0)
    still(cache.get_seq_length() == 8, f"the next token's position is {cache.get_seq_length()} after 20 tokens", "20")


def test_rows_are_coupled() -> None:
    """One set of tokens is retained for the batch: a row's entries depend on its neighbour."""
    keys, values = entries(20)
    other, _ = entries(20, seed=9)
    alone, _ = evicting(max_cache_tokens=8).update(keys, values, 0)
    both, _ = evicting(max_cache_tokens=8).update(torch.cat([keys, 30 * other]), torch.cat([values, values]), 0)
    still(not torch.equal(alone[0], both[0]), "row 0 retains other entries beside a row of large keys", "the same")
