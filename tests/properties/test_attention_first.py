"""Rules 1 and 6: every pass attends to the held entries and to itself, at true positions, and evicts afterwards.

The oracle is one full forward pass in float64 with explicit attention, masked by ``evicted_at``.
"""

import pytest
import torch

from pressgauge import KnormPress, replay
from pressgauge.conformance import architectures
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.subjects import Subject
from support.drive import run

LENGTH = 30
FEEDINGS: dict[str, list[int]] = {
    "whole": [LENGTH],
    "prompt and single tokens": [12] + [1] * (LENGTH - 12),
    "single tokens": [1] * LENGTH,
    "chunks, and two turns": [5, 7, 1, 1, 1, 9, 1, 1, 4],
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attached", [True, False])
def test_both_attention_implementations_are_right(implementation: str, attached: bool) -> None:
    """Rules 1 and 6 hold for sdpa and for eager attention, which uses additive masks."""
    model = architectures.build("llama")
    model.set_attn_implementation(implementation)
    ids = architectures.tokens(1, LENGTH)
    for passes in FEEDINGS.values():
        result = run(model, KnormPress(0.5, prune_after=6), ids, passes, attached=attached)
        expected = masked_logits(model, ids, result.cache.evicted_at)
        # transformers' eager attention computes its softmax in float32 for any dtype.
        assert (result.logits - expected).abs().max() < (1e-10 if implementation == "sdpa" else 1e-4)


@pytest.mark.parametrize("feeding", ["prompt and single tokens", "chunks, and two turns"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_replay_equals_the_record_of_the_cache(
    subject: Subject, feeding: str, dtype: torch.dtype, device: torch.device
) -> None:
    """``replay`` of the keys passed to a cache equals its ``evicted_at`` in every dtype."""
    model = architectures.cast("llama", dtype, device)
    ids = architectures.tokens(1, LENGTH).to(device)
    passes = FEEDINGS[feeding]
    press = subject(0.4, prune_after=5, recent=2, skip_layers=(1,))
    result = run(model, press, ids, passes)
    for layer, keys in enumerate(result.keys):
        assert keys.dtype == dtype
        assert torch.equal(replay(press, keys, passes, layer=layer), result.cache.evicted_at[layer])
