"""Our own measuring functions, in the conventions of the audit."""

from typing import Any

import torch
from torch import Tensor

from pressgauge import Press, generate, perplexity
from pressgauge.cache import PressedCache
from pressgauge.measuring.footprints import Footprint
from pressgauge.measuring.subjects import Measurement
from pressgauge.timing import measure_timing


def peak_memory(model: Any, tokenizer: Any, prompt: Tensor, new_tokens: int, *, compressor: Press) -> int | None:
    """``Timing.peak_memory_bytes``."""
    return measure_timing(model, prompt, compressor, new_tokens, pairs=2).peak_memory_bytes


def kv_bytes(model: Any, tokenizer: Any, prompt: Tensor, new_tokens: int, *, compressor: Press) -> int:
    """``Perplexity.kv_bytes``, by decoding."""
    ids = torch.cat([prompt, prompt[:, :new_tokens]], dim=1)
    return perplexity(model, ids, compressor, prompt.shape[1], "stepwise").kv_bytes


def nbytes(model: Any, tokenizer: Any, prompt: Tensor, new_tokens: int, *, compressor: Press) -> int:
    """``PressedCache.nbytes``, after ``generate``."""
    cache = generate(model, prompt, compressor, new_tokens).cache
    assert isinstance(cache, PressedCache)
    return cache.nbytes


GIVEN = {"compressor": "argument", "prompt": "ids"}
OF_CACHE = GIVEN | {"figure": "cache", "metadata": "excluded"}

SUBJECTS: dict[str, list[Measurement]] = {
    "evaluator": [],
    "benchmark": [],
    "memory": [
        Footprint.of("timing-peak", peak_memory, GIVEN | {"figure": "peak"}),
        Footprint.of("timing-cache", peak_memory, OF_CACHE | {"device": "cpu"}),
        Footprint.of("perplexity", kv_bytes, OF_CACHE),
        Footprint.of("pressed-cache", nbytes, OF_CACHE),
    ],
}
