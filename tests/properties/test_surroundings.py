"""An attached press with threads, copies of the model, training and assisted decoding: correct or refused."""

import copy
import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from pressgauge import KnormPress, PressedCache
from pressgauge.conformance import architectures
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.versions import cache_of, using
from support.drive import run

PRESS = KnormPress(0.5, prune_after=4)
PASSES = [12, 1, 1, 3, 1, 1, 1]


def test_threads_share_one_attached_model() -> None:
    """Each thread's passes use its own cache, as with the plain model."""
    model = architectures.shared("llama")
    texts = [architectures.tokens(1, sum(PASSES), seed) for seed in range(4)]
    expected = [run(model, PRESS, ids, PASSES).logits for ids in texts]
    found: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def decode(number: int) -> None:
        cache = PRESS.cache(model.config)
        logits = [model(part, **using(cache)).logits for part in texts[number].split(PASSES, dim=1)]
        found[number] = torch.cat(logits, dim=1)

    with PRESS(model):
        for _ in range(5):
            threads = [threading.Thread(target=decode, args=(number,)) for number in range(len(texts))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(torch.equal(found.pop(number), logits) for number, logits in enumerate(expected))


@torch.no_grad()
def test_a_copy_of_an_attached_model_carries_no_press() -> None:
    """A copy of an attached model computes and generates as the plain model, during and after the context."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 12)
    settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    expected, tokens = model(ids).logits, model.generate(ids, **settings)
    with PRESS(model):
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        inside = copied(ids)
        assert type(cache_of(inside)) is DynamicCache
        assert torch.equal(inside.logits, expected)
        assert torch.equal(copied.generate(ids, **settings), tokens)
    assert torch.equal(copied(ids).logits, expected)
    with PRESS(copied):
        assert isinstance(cache_of(copied(ids)), PressedCache)


@torch.no_grad()
def test_another_model_of_the_same_class_is_unaffected() -> None:
    """Other models of the process keep their attention, although its functions are shared."""
    model, other = architectures.build("llama"), architectures.shared("llama")
    ids = architectures.tokens(1, 20)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        expected = other(ids)
        with PRESS(model):
            found = other(ids)
            assert torch.equal(found.logits, expected.logits)
            assert type(cache_of(found)) is DynamicCache
            with PRESS(other):
                assert cache_of(other(ids)).held == [10] * architectures.LAYERS
            assert torch.equal(other(ids).logits, expected.logits)
            assert cache_of(model(ids)).held == [10] * architectures.LAYERS


def test_gradients_flow_through_passes_that_evict() -> None:
    """Gradients through evictions are those of one pass masked by the evictions."""
    ids = architectures.tokens(1, 90)
    passes = [60, *[1] * 20, 6, *[1] * 4]
    model, other = architectures.build("llama"), architectures.build("llama")
    with PRESS(model):
        cache = PRESS.cache(model.config)
        logits = torch.cat([model(part, **using(cache)).logits for part in ids.split(passes, dim=1)], dim=1)
    logits.square().mean().backward()
    differentiable: Any = masked_logits
    differentiable.__wrapped__(other, ids, cache.evicted_at).square().mean().backward()
    assert cache.evictions
    for parameter, reference in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-9, atol=1e-9)


def test_gradient_checkpointing_is_refused_in_training() -> None:
    """Gradient checkpointing is refused in training, where it disables the cache, and allowed in evaluation."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 12)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    expected = run(model, PRESS, ids, [12]).logits
    model.train()
    with PRESS(model), pytest.raises(ValueError, match=r"takes the cache.*turn it off, or call model.eval\(\)"):
        model(ids)
    model.eval()
    assert torch.equal(run(model, PRESS, ids, [12]).logits, expected)


@pytest.mark.parametrize("schedule", ["budget", "prefill"])
@pytest.mark.parametrize("by", ["assistant_model", "prompt_lookup_num_tokens"])
def test_assisted_decoding_is_refused(by: str, schedule: Any) -> None:
    """Assisted decoding is refused, since it feeds several candidates and removes some again."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 12)
    press = KnormPress(0.5, prune_after=4, schedule=schedule)
    helped: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": 6,
        by: architectures.build("llama") if by == "assistant_model" else 2,
    }
    with press(model), pytest.raises(ValueError, match=f"assisted decoding.*: leave {by} out"):
        model.generate(ids, **helped)
    with pytest.raises(ValueError, match=r"assisted decoding.*: generate without assistant_model and"):
        model.generate(ids, **using(press.cache(model.config)), **helped)
