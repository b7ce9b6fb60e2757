"""What generation and perplexity pass on to a model and to their checks."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge import KnormPress, decoder, generate, likelihood, perplexity
from pressgauge.conformance import architectures
from pressgauge.models import interface, support
from pressgauge.models.support import Support
from support.zoo import specimens

PRESS = KnormPress(0.5, prune_after=4)


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_is_given_a_mask_where_something_is_padded(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask and positions in every pass of padded rows, and in none otherwise; checks are asked about the prompt."""
    own, given, asked, proved = interface.feed, set[int](), set[int](), set[Any]()

    def feed(model: Any, ids: Tensor, named: Any, *rest: Any) -> Tensor:
        given.add(len(rest))
        return own(model, ids, named, *rest)

    monkeypatch.setattr(interface, "feed", feed)
    for module in (decoder, likelihood):
        monkeypatch.setattr(module, "refuse_padding", lambda model, mask, prompt, press: asked.add(prompt))
        monkeypatch.setattr(module, "prove", lambda model, cache, seen: proved.add(model))
    model = architectures.shared("llama")
    ids, mask = architectures.padded([9, 6 if padded else 9])
    generate(model, ids, PRESS, 3, attention_mask=mask)
    assert asked == {9}
    asked.clear()
    perplexity(model, ids, PRESS, 4, "stepwise", attention_mask=mask)
    perplexity(model, ids, PRESS, 4, "plain", attention_mask=mask)
    assert asked == {4}
    assert given == {2 if padded else 0}
    assert proved == {model}


def test_padded_rows_generate_what_they_generate_alone() -> None:
    """Without a press and with one."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([9, 6])
    for press in (None, PRESS):
        both = generate(model, ids, press, 5, attention_mask=mask).tokens
        alone = generate(model, ids[1:, 3:], press, 5).tokens
        assert both[1:, 3:].equal(alone)


def test_padding_of_rows_is_not_added_up() -> None:
    """Layers without keys take as much of it in each row as the prompt has columns."""
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    decoder.refuse_padding(architectures.hybrid(), mask, 4)


def test_a_seed_draws_what_its_generator_draws() -> None:
    """Whatever was drawn before."""
    model, ids = architectures.shared("llama"), architectures.tokens(1, 5)
    found = [generate(model, ids, None, 6, temperature=1.0, seed=3).tokens for _ in range(2)]
    assert found[0].equal(found[1])
    probabilities = model(ids).logits[:, -1].float().softmax(dim=-1)
    first = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(3))
    assert found[0][:, 5:6].equal(first)
    assert generate(model, ids, None, 2, temperature=1.0).new_tokens == 2


def test_bytes_of_decoding_are_those_of_its_cache() -> None:
    """With a press, those of the storage, which has no slack for a few entries."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 12)
    stepwise, onepass = (perplexity(model, ids, PRESS, 3, method) for method in ("stepwise", "onepass"))
    assert stepwise.kv_bytes == onepass.kv_bytes > 0
    assert stepwise.held == onepass.held


def test_recurrence_is_checked_on_the_end_of_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last 8 tokens, since a padded row ends with tokens of its own."""
    checked: list[Tensor] = []
    monkeypatch.setattr(likelihood, "_check_recurrence", lambda model, ids: checked.append(ids))
    ids = architectures.tokens(3, 12)
    perplexity(architectures.shared("llama"), ids, PRESS, 3)
    assert len(checked) == 1
    assert checked[0].equal(ids[2:, 4:])


def test_layers_that_select_keys_are_refused_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of the model, and the method that measures it."""
    supported = Support("Choosy", 2, None, {}, selecting=True)
    monkeypatch.setattr(support, "of_config", lambda config: supported)
    sentence = (
        f"Choosy ({interface.VERSION}) has layers that index, compress or select keys, so that one pass over a text is "
        "not what decoding computes: use method='stepwise'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        perplexity(architectures.shared("llama"), architectures.tokens(1, 6))


@pytest.mark.parametrize("tokens", [6, 7, 8, 9, 20])
def test_windows_hold_in_one_pass_what_they_hold_in_decoding(tokens: int) -> None:
    """At most the entries that the next query attends to."""
    model = architectures.build(
        "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=None
    )
    ids = architectures.tokens(2, tokens)
    stepwise, onepass = (perplexity(model, ids, None, 3, method) for method in ("stepwise", "onepass"))
    assert stepwise.held == onepass.held == (tokens, *[min(tokens, 7)] * (len(onepass.held) - 1))
    assert len(onepass.held) > 1


def test_layers_without_keys_have_tables_of_one_head() -> None:
    """In one pass as in decoding, with no eviction in them."""
    model = architectures.hybrid()
    press = KnormPress(0.5, prune_after=4, skip_layers="unprunable")
    ids = architectures.tokens(1, 12)
    stepwise, onepass = (perplexity(model, ids, press, 3, method) for method in ("stepwise", "onepass"))
    for layer in architectures.LINEAR:
        assert stepwise.evicted_at[layer].shape == onepass.evicted_at[layer].shape == (1, 1, 12)
    assert all(map(torch.equal, stepwise.evicted_at, onepass.evicted_at))


@pytest.mark.skipif("gemma3n_text" not in specimens.names(), reason="transformers has no Gemma 3n")
def test_layers_that_read_the_keys_of_others_hold_nothing() -> None:
    """They have no entries of their own, in one pass as in decoding."""
    model = specimens.build("gemma3n_text, shared keys")
    ids = architectures.text(model, 1, 12)
    stepwise, onepass = (perplexity(model, ids, None, 3, method) for method in ("stepwise", "onepass"))
    own = len(stepwise.held)
    assert stepwise.kv_bytes == onepass.kv_bytes > 0
    assert onepass.held[:own] == stepwise.held
    assert not any(onepass.held[own:])
