"""quantcore-ai 0.4.2: ``make_turboquant_cache(model.config, bits=...)``, which ``optimize_model`` uses."""

from typing import Any

from transformers import DynamicCache
from turboquant.hf_integration import make_turboquant_cache

from peers.verify.plain import crashing, entries, llama, run, still, tokens


def cache_of(model: Any, **given: Any) -> Any:
    """The cache of mode ``fast``."""
    return make_turboquant_cache(model.config, bits=4, verbose=False, **given)


def test_the_mask_counts_what_was_seen() -> None:
    """With a window, the mask has a column for every token seen, and keys are those held."""
    cache = cache_of(llama(), max_cache_len=16)
    for _ in range(5):
        returned = cache.update(*entries(4), 0)[0].shape[2]
    announced = cache.get_mask_sizes(4, 0)[0] - 4
    still(announced != returned, f"after 20 tokens {announced} columns and {returned} keys", "the same number")


def test_a_window_crashes_once_it_is_full() -> None:
    """The mask and the keys have different lengths from the pass after the first eviction on."""
    model = llama()
    with crashing(RuntimeError):
        run(model, tokens(24), [12, 4, 4, 4], cache_of(model, max_cache_len=16))


def test_beam_search_crashes() -> None:
    """``reorder_cache`` indexes ``keys``, which are empty."""
    with crashing(IndexError):
        llama().generate(tokens(20), past_key_values=cache_of(llama()), num_beams=2, max_new_tokens=4)


def test_crop_crashes() -> None:
    """``crop`` slices ``keys``, which are empty."""
    model = llama()
    cache = cache_of(model)
    run(model, tokens(20), [20], cache)
    with crashing(IndexError):
        cache.crop(-4)


def test_reset_leaves_keys_behind() -> None:
    """After ``reset`` the quantised keys of the last text are there still."""
    model = llama()
    cache = cache_of(model)
    run(model, tokens(20), [20], cache)
    cache.reset()
    plain = DynamicCache()
    plain.update(*entries(4), 0)
    returned = cache.update(*entries(4), 0)[0].shape[2]
    still(returned != 4, f"{returned} keys after reset and 4 tokens", "4")
