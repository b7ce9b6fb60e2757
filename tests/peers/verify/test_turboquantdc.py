"""turboquantdc 0.2.0: ``TurboQuantCache(bits=4, mse_only=True)``, called production-ready in the README."""

import pytest
import torch
from turboquantdc.hf_integration import TurboQuantCache

from peers.verify.plain import alive, crashing, entries, llama, plain_bytes, run, still, tokens


def test_beam_search_crashes() -> None:
    """``reorder_cache`` reads signs that are not stored with ``mse_only=True``."""
    with crashing(KeyError, match="qjl_signs"):
        llama().generate(
            tokens(20), past_key_values=TurboQuantCache(bits=4, mse_only=True), num_beams=2, max_new_tokens=4
        )


@pytest.mark.parametrize("operation", ["batch_select_indices", "batch_repeat_interleave"])
def test_rows_cannot_be_selected_or_repeated(operation: str) -> None:
    """The same for the other operations on rows."""
    model, cache = llama(), TurboQuantCache(bits=4, mse_only=True)
    run(model, tokens(20, rows=2), [20], cache)
    with crashing(KeyError, match="qjl_signs"):
        getattr(cache, operation)(torch.tensor([1]) if operation == "batch_select_indices" else 2)


def test_more_bytes_than_an_uncompressed_cache() -> None:
    """Indices of 4 bits are stored as int64, and a saving is reported."""
    keys, values = entries(1024, dim=64)
    cache = TurboQuantCache(bits=4, mse_only=True)
    cache.update(keys.half(), values.half(), 0)
    held, plain = alive(cache), plain_bytes(1024, keys.half())
    reported = cache.memory_savings()["overall_compression_ratio"]
    still(held > plain, f"{held / plain:.2f} times DynamicCache's bytes, {reported:.2f}x reported", "fewer")


def test_large_keys_are_not_finite() -> None:
    """Norms are stored in the model's dtype."""
    keys, values = entries(8, dim=64)
    stored, _ = TurboQuantCache(bits=4, mse_only=True).update((2e4 * keys).half(), values.half(), 0)
    bad = int((~stored.isfinite()).sum())
    still(bad > 0, f"{bad} of {stored.numel()} numbers of keys of norms of 1.6e5 are not finite", "all finite")
