"""Generation and padded rows, in edge cases."""

from typing import Any

import pytest
import torch
import transformers

from pressgauge import KnormPress, generate, perplexity
from pressgauge.conformance import architectures
from pressgauge.decoder import _processors
from pressgauge.likelihood import Method
from support.zoo import specimens

PRESS = KnormPress(0.5, prune_after=4)
METHODS: list[Method] = ["onepass", "stepwise"]


def test_a_changed_cache_is_not_compared_with_old_tokens() -> None:
    """After rows are reordered, tokens are not compared, even if old tensors are still referenced."""
    model = architectures.shared("llama")
    ids, more = architectures.tokens(2, 9), architectures.tokens(2, 3, seed=1)
    first = generate(model, ids, max_new_tokens=3)
    cache: Any = first.cache
    kept = [layer.keys for layer in cache.layers]
    turned = torch.cat([first.tokens.flip(0), more], dim=1)
    cache.reorder_cache(torch.tensor([1, 0]))
    found = generate(model, turned, max_new_tokens=4, cache=cache)
    assert torch.equal(found.tokens, generate(model, turned, max_new_tokens=4).tokens)
    assert all(keys.shape[2] == 11 for keys in kept)


def test_counts_of_a_generation_are_integers() -> None:
    """Counts are integers, which JSON supports."""
    found = generate(architectures.shared("llama"), architectures.tokens(2, 6), PRESS, 3)
    assert [type(count) for count in (found.generated, found.new_tokens)] == [int, int]
    assert (found.generated, found.new_tokens) == (6, 3)


@pytest.mark.parametrize("temperature", [True, False, "1", None, 1j])
def test_a_temperature_is_a_number(temperature: Any) -> None:
    """A boolean is refused as a temperature."""
    with pytest.raises(TypeError, match=r"temperature must be a number, 0 \(greedy\) or above, got "):
        generate(architectures.shared("llama"), architectures.tokens(1, 5), temperature=temperature)


def test_layers_without_keys_take_padding_within_the_prompt_only() -> None:
    """Rule 11: with layers without keys, padding is correct within the prompt and refused if fed singly."""
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
            with pytest.raises(ValueError, match="recurrent layers, which treat padding fed singly as text"):
                perplexity(model, ids, None, prompt, "stepwise", attention_mask=mask)
            continue
        both = perplexity(model, ids, None, prompt, "stepwise", attention_mask=mask)
        if prompt - (16 - lengths[1]) < 1:
            continue
        alone = perplexity(model, ids[1:, 16 - lengths[1] :], None, prompt - (16 - lengths[1]), "stepwise")
        torch.testing.assert_close(both.nll[1:], alone.nll, rtol=0, atol=1e-5)


@pytest.mark.parametrize("press", [PRESS, None], ids=["press", "none"])
def test_counts_of_held_entries_exclude_common_padding(press: Any) -> None:
    """Columns of padding in all rows are not counted as entries."""
    ids, mask = architectures.padded([14, 12, 9])
    found = [
        perplexity(architectures.shared("llama"), ids[1:], press, 5, method, attention_mask=mask[1:])
        for method in METHODS
    ]
    assert [each.held for each in found] == [(6 if press else 12,) * architectures.LAYERS] * 2


def test_padding_of_a_batch_reaches_the_decoder_of_a_wrapper() -> None:
    """Rows are independent in Gemma 3 with images, which creates the masks of its text model itself."""
    if "gemma3" not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no gemma3")
    model = specimens.build("gemma3").double().eval()
    ids = specimens.tokens(1, 20)
    lengths = (20, 13)
    batch = torch.cat([ids, torch.cat([torch.zeros(1, 7, dtype=torch.long), ids[:, 7:]], dim=1)])
    mask = torch.tensor([[int(column >= 20 - length) for column in range(20)] for length in lengths])
    press = KnormPress(0.5, prune_after=4, skip_layers="unprunable")
    both = perplexity(model, batch, press, 10, "stepwise", attention_mask=mask)
    assert both.evictions
    for row, length in enumerate(lengths):
        alone = perplexity(model, batch[row : row + 1, 20 - length :], press, length - 10, "stepwise")
        torch.testing.assert_close(both.nll[row], alone.nll[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_logits_are_divided_by_the_temperature(temperature: float) -> None:
    """Before softmax, for every temperature."""
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    processors: Any = _processors(temperature, None, None)
    assert processors(torch.zeros(1, 1, dtype=torch.long), logits.clone()).equal(logits / temperature)
    assert len(_processors(1.0, None, 1)) == 0
    assert len(_processors(1.0, 3, 0.5)) == 2


def test_a_model_without_a_generation_configuration_generates() -> None:
    """Without a token that ends a row, and without one for padding."""
    model = architectures.build("llama")
    ids = architectures.tokens(2, 6)
    expected = generate(model, ids, None, 3, eos_token_id=[])
    model.generation_config = None
    found = generate(model, ids, None, 3)
    assert found.tokens.equal(expected.tokens)
    assert found.generated == 2 * 3
