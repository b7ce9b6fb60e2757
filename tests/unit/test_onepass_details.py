"""One pass over a text and padded rows, in edge cases."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from pressgauge import H2OPress, KnormPress, TOVAPress, generate, perplexity
from pressgauge.conformance import architectures
from pressgauge.likelihood import Method
from support.attention_modules import Beside, broken

PRESS = KnormPress(0.5, prune_after=4)


def equal(one: Any, other: Any, near: float = 1e-9) -> None:
    """Check that NLL is equal, bit-identical if ``near`` is 0, and evictions are the same."""
    torch.testing.assert_close(one.nll, other.nll, rtol=0, atol=near, equal_nan=True)
    assert all(map(torch.equal, one.evicted_at, other.evicted_at))
    assert torch.equal(one.hits, other.hits)
    assert (one.held, one.evictions) == (other.held, other.evictions)


def with_aside() -> Any:
    """A Llama with a module outside its layers that attends to the token itself, next to layer 1."""

    class Alone(Beside):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output, weights = LlamaAttention.forward(self, hidden_states, *args, **kwargs)
            attend: Any = self.aside
            single = {**kwargs, "attention_mask": None}
            single = {name: value for name, value in single.items() if name not in ("cache", "past_key_values")}
            cos, sin = single.pop("position_embeddings")
            parts = [
                attend(
                    hidden_states[:, t : t + 1], position_embeddings=(cos[:, t : t + 1], sin[:, t : t + 1]), **single
                )
                for t in range(hidden_states.shape[1])
            ]
            return output + torch.cat([part[0] for part in parts], dim=1), weights

    model = broken(Alone)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        aside: Any = LlamaAttention(model.config, 0).double().requires_grad_(False)
    aside.layer_idx = None
    model.model.layers[1].self_attn.aside = aside
    return model


@pytest.mark.parametrize("press", [PRESS, None], ids=["press", "none"])
def test_modules_outside_layers_are_unchanged_in_one_pass(press: Any) -> None:
    """Attention outside layers is neither compressed nor refused."""
    model = with_aside()
    ids = architectures.tokens(2, 24)
    one = perplexity(model, ids, press, prompt=9)
    equal(one, perplexity(model, ids, press, prompt=9, method="stepwise"))
    assert (one.evictions > 0) == (press is not None)


@pytest.mark.parametrize("press", [H2OPress(0.4, prune_after=5), TOVAPress(0.4, prune_after=5)], ids=["h2o", "tova"])
def test_attention_scores_are_scaled_as_the_model_scales(press: Any) -> None:
    """Scaling factors are those of the model."""
    model = architectures.build("llama")
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.1
    ids = architectures.tokens(1, 24)
    one = perplexity(model, ids, press, prompt=9)
    equal(one, perplexity(model, ids, press, prompt=9, method="stepwise"))
    assert one.evictions > 0


@pytest.mark.parametrize("rows", [1, 2])
def test_queries_that_share_one_kv_head_are_measured_in_one_pass(rows: int) -> None:
    """Multi-query attention is supported, for one row and for several."""
    model = architectures.build("llama", num_key_value_heads=1)
    ids = architectures.tokens(rows, 24)
    one = perplexity(model, ids, PRESS, prompt=9)
    equal(one, perplexity(model, ids, PRESS, prompt=9, method="stepwise"))
    assert one.evictions > 0


class Wide(Qwen2Attention):
    """Attention that ignores the window of its layer."""

    mask: Callable[[int], Tensor | None]

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        mask = type(self).mask(hidden_states.shape[1])
        return super().forward(hidden_states, *args, **{**kwargs, "attention_mask": mask})


def seen(tokens: int, window: int) -> Tensor:
    """``[1, 1, T, T]``: a causal mask with a window."""
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril().triu(1 - window)


def added(mask: Tensor) -> Tensor:
    """The same as an additive mask."""
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)


@pytest.mark.parametrize(
    ("mask", "right"),
    [
        (lambda tokens: seen(tokens, 8), True),
        (lambda tokens: added(seen(tokens, 8)), True),
        (lambda tokens: seen(tokens, 9), False),
        (lambda tokens: added(seen(tokens, 9)), False),
        (lambda tokens: None, False),
    ],
    ids=["window", "added", "one-more", "one-more-added", "no-mask"],
)
def test_a_layer_that_attends_beyond_its_window_is_refused_in_one_pass(mask: Any, right: bool) -> None:
    """Attention beyond a window of 8 is refused for texts longer than the window."""
    model = architectures.build(
        "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2, layer_types=None
    )
    model.model.layers[2].self_attn.__class__ = type("Changed", (Wide,), {"mask": staticmethod(mask)})
    ids = architectures.tokens(1, 20)
    press = KnormPress(0.5, prune_after=4, skip_layers=(2,))
    if right:
        perplexity(model, ids, press, prompt=9)
    else:
        with pytest.raises(ValueError, match="layer 2 attends beyond the window of 8 tokens that its cache keeps"):
            perplexity(model, ids, press, prompt=9)
    perplexity(model, ids[:, :8], press, prompt=5)


def roberta() -> Any:
    """A model that numbers positions itself."""
    config = RobertaConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, is_decoder=True
    )
    model: Any = RobertaForCausalLM(config)
    return model.double().eval()


def test_padded_rows_are_refused_if_a_model_numbers_positions_itself() -> None:
    """Padded rows are refused if a model numbers positions itself, and rows of equal length are accepted."""
    model = roberta()
    ids, mask = architectures.padded([14, 9])
    for feed in (
        lambda **given: generate(model, ids, max_new_tokens=2, **given),
        lambda **given: perplexity(model, ids, prompt=4, method="stepwise", **given),
    ):
        with pytest.raises(ValueError, match="numbers positions itself and counts padding, so padded rows cannot be"):
            feed(attention_mask=mask)
        feed(attention_mask=torch.ones_like(mask))


def gpt2() -> Any:
    """A model with learned positions, which must be within its table."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = GPT2Config(vocab_size=61, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
        model: Any = GPT2LMHeadModel(config)
    return model.double().eval()


@pytest.mark.parametrize("method", ["onepass", "stepwise", "plain"])
@pytest.mark.parametrize("press", [PRESS, None], ids=["press", "none"])
def test_padded_rows_of_learned_positions_are_independent(method: Any, press: Any) -> None:
    """Positions count a row's own tokens, and are valid at padding."""
    model = gpt2()
    ids, mask = architectures.padded([20, 13])
    both = perplexity(model, ids, press, 8, method, attention_mask=mask)
    for row, length in enumerate((20, 13)):
        padding = 20 - length
        alone = perplexity(model, ids[row : row + 1, padding:], press, max(1, 8 - padding), method)
        # A row with one token in the prompt is scored from its second token on.
        scored = alone.nll[:, -12:]
        torch.testing.assert_close(both.nll[row, -scored.shape[1] :], scored[0], rtol=0, atol=1e-9)
    if method == "stepwise":
        together = generate(model, ids, press, 6, attention_mask=mask).tokens[:, 20:]
        for row, length in enumerate((20, 13)):
            assert torch.equal(
                together[row], generate(model, ids[row : row + 1, 20 - length :], press, 6).tokens[0, length:]
            )


@pytest.mark.parametrize("prompt", [1, 5, 12])
@pytest.mark.parametrize("press", [PRESS, None], ids=["press", "none"])
def test_rows_without_tokens_have_no_score(press: Any, prompt: int) -> None:
    """Rows of at most one token have no score, and other rows are not affected."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([16, 1, 9])
    methods: list[Method] = ["onepass", "stepwise"]
    for method in methods:
        found = perplexity(model, ids, press, prompt, method, attention_mask=mask)
        assert found.scored.sum(dim=1).tolist() == [16 - prompt, 0, min(8, 16 - prompt)]
        assert torch.equal(found.nll.isfinite(), found.scored)
        assert not (found.hits & ~found.scored).any()
        assert not (found.affected & ~found.scored).any()
