"""Generation and padded rows, in the cases that only one line of code decides."""

from typing import Any

import pytest
import torch

from pressgauge import KnormPress, generate, perplexity
from pressgauge.conformance import architectures

PRESS = KnormPress(0.5, prune_after=4)


def test_a_changed_cache_is_compared_with_no_tokens_though_its_old_tensors_live() -> None:
    """Somebody may keep the keys that a cache held before its rows changed places."""
    model = architectures.shared("llama")
    ids, more = architectures.tokens(2, 9), architectures.tokens(2, 3, seed=1)
    first = generate(model, ids, max_new_tokens=3)
    kept = [layer.keys for layer in first.cache.layers]
    turned = torch.cat([first.tokens.flip(0), more], dim=1)
    first.cache.reorder_cache(torch.tensor([1, 0]))  # type: ignore[arg-type]
    found = generate(model, turned, max_new_tokens=4, cache=first.cache)
    assert torch.equal(found.tokens, generate(model, turned, max_new_tokens=4).tokens)
    assert all(keys.shape[2] == 11 for keys in kept)


@pytest.mark.parametrize("temperature", [True, False, "1", None, 1j])
def test_a_temperature_is_a_number(temperature: Any) -> None:
    """A truth value is none."""
    with pytest.raises(TypeError, match=r"temperature must be a number, 0 \(greedy\) or above, got "):
        generate(architectures.shared("llama"), architectures.tokens(1, 5), temperature=temperature)


@pytest.mark.parametrize(
    "press", [KnormPress(0.5, prune_after=4, skip_layers="unprunable"), None], ids=["press", "none"]
)
def test_layers_without_keys_take_padding_within_the_prompt_only(press: Any) -> None:
    """Padding that is fed singly would be text to them: rule 11 holds where it is part of the prompt, and is refused
    where it is not."""
    model = architectures.hybrid()
    for lengths, prompt, right in (
        ([16, 13], 8, True),
        ([16, 13], 3, True),
        ([16, 13], 2, False),
        ([16, 15], 1, False),
        ([16, 16], 1, True),
    ):
        ids, mask = architectures.padded(lengths)
        if not right:
            with pytest.raises(ValueError, match="layers without keys, which take padding that is fed singly for text"):
                perplexity(model, ids, press, prompt, "stepwise", attention_mask=mask)
            continue
        both = perplexity(model, ids, press, prompt, "stepwise", attention_mask=mask)
        if prompt - (16 - lengths[1]) < 1:
            continue
        alone = perplexity(model, ids[1:, 16 - lengths[1] :], press, prompt - (16 - lengths[1]), "stepwise")
        torch.testing.assert_close(both.nll[1:], alone.nll, rtol=0, atol=1e-5)
