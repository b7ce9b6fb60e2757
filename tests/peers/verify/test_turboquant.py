"""turboquant 0.2.0: ``TurboQuantCache(bits=4)``. Its window of 128 tokens is no option of the cache."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache
from turboquant import TurboQuantCache

from peers.verify.plain import alive, crashing, entries, llama, off, plain_bytes, run, still, tokens


def test_token_129_crashes() -> None:
    """The codebook is integrated with ``np.trapz``, which numpy 2.4 does not have."""
    cache = TurboQuantCache(bits=4)
    cache.update(*entries(128), 0)
    with crashing(AttributeError, match="trapz"):
        cache.update(*entries(1), 0)


def test_more_bytes_than_an_uncompressed_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an older numpy, the dequantised entries are held beside the quantised ones, and savings are reported."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    keys, values = entries(1024)
    cache = TurboQuantCache(bits=4)
    cache.update(keys.half(), values.half(), 0)
    held, plain = alive(cache), plain_bytes(1024, keys.half())
    reported = cache.memory_usage_bytes()["savings_ratio"]
    still(held > plain, f"{held / plain:.2f} times DynamicCache's bytes, {reported:.2f}x savings reported", "fewer")


def test_beam_search_is_silently_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """``reorder_cache`` reorders ``keys``, which the next pass makes anew from what is not reordered."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    model, ids = llama(), tokens(20, rows=2)
    results = []
    for cache in (TurboQuantCache(bits=4), DynamicCache()):
        run(model, ids, [20], cache)
        reordered: Any = cache
        reordered.reorder_cache(torch.tensor([1, 1]))
        results.append(run(model, tokens(1, rows=2), [1], cache))
    by = off(*results)
    still(by > 0.1, f"logits after a reorder differ by {by:.2f}, all 20 tokens being unquantised", "no difference")
