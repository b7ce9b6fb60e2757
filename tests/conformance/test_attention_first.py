"""Rules 1 and 6: every pass attends to what is held and to itself, at true positions, and only then evicts.

The oracle is one full forward pass in float64 with explicit attention, masked by ``evicted_at``.
"""

from typing import Any

import pytest
import torch

from conformance import architectures
from conformance.drive import Run, masked_logits, run
from conformance.subjects import Subject
from pressgauge import KnormPress, replay

LENGTH = 30
FEEDINGS: dict[str, list[int]] = {
    "whole": [LENGTH],
    "prompt and single tokens": [12] + [1] * (LENGTH - 12),
    "single tokens": [1] * LENGTH,
    "chunks, and two turns": [5, 7, 1, 1, 1, 9, 1, 1, 4],
}
VARIANTS: list[dict[str, Any]] = [
    {"prune_after": 6},
    {"prune_after": 4, "sinks": 2, "recent": 3},
    {"prune_after": 6, "interval": 3},
    {"prune_after": 6, "skip_layers": (1,)},
]


def exact(architecture: str, result: Run, ids: torch.Tensor) -> None:
    """The law itself: logits of every pass equal those of full attention masked by what the cache says it evicted."""
    model = architectures.shared(architecture)
    expected = masked_logits(model, ids, result.cache.evicted_at)
    worst = (result.logits - expected).abs().max().item()
    assert worst < 1e-10, f"logits differ from masked attention by {worst:.3g}"


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
def test_logits_are_those_of_attention_masked_by_the_history(subject: Subject, architecture: str) -> None:
    """Rules 1 and 6, attached: for every way of feeding, each with another of the variants."""
    model = architectures.shared(architecture)
    ids = architectures.tokens(1, LENGTH)
    turn = list(architectures.ARCHITECTURES).index(architecture)
    for number, passes in enumerate(FEEDINGS.values()):
        options = dict(VARIANTS[(number + turn) % len(VARIANTS)])
        if subject.schedule == "prefill":
            options.pop("interval", None)
        press = subject(0.5, **options)
        result = run(model, press, ids, passes)
        least = max(press.prune_after, press.sinks + press.recent)
        assert result.cache.evictions or (subject.schedule == "prefill" and passes[0] <= least)
        exact(architecture, result, ids)


@pytest.mark.parametrize("feeding", FEEDINGS)
def test_the_plain_cache_gives_the_same_logits(subject: Subject, feeding: str) -> None:
    """Rules 1 and 6, with stock attention and nothing attached."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, LENGTH)
    result = run(model, subject(0.5, prune_after=6), ids, FEEDINGS[feeding], attached=False)
    exact("llama", result, ids)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attached", [True, False])
def test_both_attention_implementations_are_right(implementation: str, attached: bool) -> None:
    """Rules 1 and 6 hold for sdpa and for eager attention, which takes its masks as numbers."""
    model = architectures.build("llama")
    model.set_attn_implementation(implementation)
    ids = architectures.tokens(1, LENGTH)
    for passes in FEEDINGS.values():
        result = run(model, KnormPress(0.5, prune_after=6), ids, passes, attached=attached)
        expected = masked_logits(model, ids, result.cache.evicted_at)
        # transformers' eager attention takes its softmax in float32, whatever the model's dtype.
        assert (result.logits - expected).abs().max() < (1e-10 if implementation == "sdpa" else 1e-4)


@pytest.mark.parametrize("feeding", FEEDINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_replay_equals_what_the_cache_recorded(
    subject: Subject, feeding: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Given the keys that the cache was handed, ``replay`` equals ``evicted_at`` exactly, in every dtype."""
    model = architectures.cast("llama", dtype, device)
    ids = architectures.tokens(1, LENGTH).to(device)
    passes = FEEDINGS[feeding]
    press = subject(0.4, prune_after=5, recent=2, skip_layers=(1,))
    result = run(model, press, ids, passes)
    for layer, keys in enumerate(result.keys):
        assert keys.dtype == dtype
        assert torch.equal(replay(press, keys, passes, layer=layer), result.cache.evicted_at[layer])


def test_a_query_position_is_the_number_of_tokens_seen(subject: Subject) -> None:
    """Rule 6 (C3 of the bug catalogue): the cache's length is what was seen, so models count positions rightly."""
    model = architectures.shared("llama")
    result = run(model, subject(0.2, prune_after=0, sinks=0), architectures.tokens(1, 20), [10] + [1] * 10)
    assert max(result.cache.held) < 20
    assert result.cache.get_seq_length() == result.cache.seen == 20


def test_positions_from_held_would_be_noticed() -> None:
    """The oracle has teeth: with positions taken from the number held, logits are far from those of the law."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, LENGTH)
    press = KnormPress(0.5, prune_after=6)
    cache = press.cache(model.config)
    logits = []
    with torch.no_grad(), press(model):
        for step in range(LENGTH):
            held = torch.tensor([[max(cache.held)]])
            logits.append(model(ids[:, step : step + 1], past_key_values=cache, position_ids=held).logits)
    expected = masked_logits(model, ids, cache.evicted_at)
    assert (torch.cat(logits, dim=1) - expected).abs().max() > 1e-3
