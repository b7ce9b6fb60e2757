"""randkv 0.1.0: ``RandKVCache(model_config=..., prompt_length=..., randkv_config=...)``."""

from typing import Any

from randkv import RandKVConfig
from randkv.transformers import RandKVCache
from transformers import DynamicCache

from peers.verify.plain import llama, off, run, still, tokens


def cache_of(model: Any, prompt: int) -> Any:
    """A cache with a budget of 24 and a buffer of 4."""
    return RandKVCache(model_config=model.config, prompt_length=prompt,
                       randkv_config=RandKVConfig(budget=24, buffer_size=4))  # fmt: skip


def test_a_later_chunk_sees_the_future() -> None:
    """The mask of an evicting pass is that of the retained slots, whose order is not that of its queries."""
    model, ids = llama(), tokens(40)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 63 + 1
    one, other = (run(model, each, [20, 20], cache_of(model, 20))[:, 20:30] for each in (ids, changed))
    still(off(one, other) > 1e-3, f"logits of tokens 20 to 29 change by {off(one, other):.3f} with token 39", "0")


def test_reset_leaves_state_behind() -> None:
    """After ``reset``, positions and what was evicted are those of the last text."""
    model, ids = llama(), tokens(40)
    fresh = run(model, ids, [20, *[1] * 20], cache_of(model, 20))
    cache = cache_of(model, 20)
    run(model, ids, [20, *[1] * 20], cache)
    cache.reset()
    try:
        again = run(model, ids, [20, *[1] * 20], cache)
        outcome = f"logits off by {off(again, fresh):.2f}"
        wrong = off(again, fresh) > 1e-3
    except (ValueError, RuntimeError, IndexError) as crash:
        outcome, wrong = f"a {type(crash).__name__}: {crash}", True
    still(wrong, f"the same text after reset: {outcome}", "the same logits")


def test_crop_leaves_state_behind() -> None:
    """After ``crop``, the next token has the position of one that follows what was removed."""
    model, ids = llama(), tokens(24)
    cache = cache_of(model, 20)
    run(model, ids[:, :23], [20, 1, 1, 1], cache)
    cache.crop(-3)
    plain = run(model, ids[:, :21], [20, 1], DynamicCache())[:, -1]
    try:
        by = off(run(model, ids[:, 20:21], [1], cache)[:, -1], plain)
        outcome, wrong = f"logits off by {by:.2f}", by > 1e-3
    except (ValueError, RuntimeError, IndexError) as crash:
        outcome, wrong = f"a {type(crash).__name__}: {crash}", True
    still(wrong, f"20 tokens, three more, crop(-3), and the first of them again: {outcome}", "no difference")
