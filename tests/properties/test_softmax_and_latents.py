"""Attention sinks, softcaps and multi-head latent attention: one pass, decoding and a plain loop agree."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GptOssConfig, GptOssForCausalLM

from pressgauge import H2OPress, KnormPress, Press, SnapKVPress, TOVAPress, perplexity
from pressgauge.conformance import architectures
from pressgauge.conformance.oracle import Rules
from pressgauge.likelihood import Method
from support import loop_oracle
from support.loop_oracle import Rule

LENGTH, PROMPT = 44, 14
LONG, LONG_PROMPT = 290, 250
"""Queries of more than one block of 256, in the second of which two parts are merged."""

_SIZES: dict[str, Any] = {
    "vocab_size": architectures.VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "layer_types": ["full_attention"] * 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}


def with_larger_sinks(model: Any) -> Any:
    """The model with sinks that take about as much attention as all keys, more or less in each head."""
    for layer in model.model.layers:
        layer.self_attn.sinks.data = torch.tensor([0.0, 4.0, 8.0, 12.0])
    return model


def gpt_oss() -> Any:
    """A GPT-OSS with a sink logit per head."""
    model = GptOssForCausalLM(GptOssConfig(**_SIZES, num_local_experts=2, num_experts_per_tok=2))
    return with_larger_sinks(model)


def gemma2() -> Any:
    """A Gemma 2 with a softcap that matters."""
    return Gemma2ForCausalLM(Gemma2Config(**_SIZES, attn_logit_softcapping=1.5, query_pre_attn_scalar=4))


def granite_swa() -> Any:
    """A Granite whose sinks scale the output of attention."""
    if not hasattr(transformers, "GraniteSWAForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no GraniteSWA")
    return with_larger_sinks(transformers.GraniteSWAForCausalLM(transformers.GraniteSWAConfig(**_SIZES)))


_LATENT: dict[str, Any] = {
    **{name: value for name, value in _SIZES.items() if name not in ("head_dim", "layer_types")},
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


def deepseek_v3() -> Any:
    """A DeepSeek V3 without experts."""
    config = transformers.DeepseekV3Config(**_LATENT, first_k_dense_replace=3)
    return transformers.DeepseekV3ForCausalLM(config)


def minicpm3() -> Any:
    """A MiniCPM3, whose keys and values have different dimensions."""
    if not hasattr(transformers, "MiniCPM3ForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no MiniCPM3")
    return transformers.MiniCPM3ForCausalLM(transformers.MiniCPM3Config(**_LATENT))


MODELS = {kind.__name__: kind for kind in (gpt_oss, gemma2, granite_swa, deepseek_v3, minicpm3)}


@cache
def built(name: str) -> Any:
    """The model in float64, with wide weights. Read-only."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = MODELS[name]()
        # The other implementations of experts have no kernel for float64.
        model.config._experts_implementation = "eager"
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.double().eval()
    return model


@contextmanager
def float64_softmax() -> Iterator[None]:
    """Context in which eager attention, which mostly computes its softmax in float32, computes it in float64."""
    softmax = torch.nn.functional.softmax

    def wide(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if states.dtype == torch.float64:
            kwargs.pop("dtype", None)
        return softmax(states, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", wide)
        yield


PRESSES: dict[str, tuple[Press, Rule]] = {
    "knorm": (KnormPress(0.4, prune_after=6), Rule(Rules(0.4, 6), "norm")),
    "knorm-long": (KnormPress(0.4, prune_after=6), Rule(Rules(0.4, 6), "norm")),
    "knorm-step": (
        KnormPress(0.6, prune_after=6, schedule="step", interval=3, sinks=2, recent=3),
        Rule(Rules(0.6, 6, "step", sinks=2, recent=3, interval=3), "norm"),
    ),
    "h2o": (H2OPress(0.4, prune_after=6), Rule(Rules(0.4, 6, recent_share=0.5), "sum")),
    "snapkv": (SnapKVPress(0.5, prune_after=6, recent=4), Rule(Rules(0.5, 6, "prefill", recent=4), "window")),
    "tova": (TOVAPress(0.4, prune_after=6), Rule(Rules(0.4, 6), "last")),
}


def _nll(logits: Tensor, ids: Tensor, prompt: int) -> Tensor:
    scores = logits[:, prompt - 1 : -1].log_softmax(dim=-1)
    return -scores.gather(2, ids[:, prompt:, None])[..., 0]


@dataclass(frozen=True)
class Case:
    """A model and a press, by name."""

    model: str
    press: str


SCORED_OTHERWISE = ("snapkv", "h2o")
"""Presses whose scores the float32 share of GraniteSWA's sinks moves across a rounding edge."""

CASES = [
    Case(model, press)
    for model in MODELS
    for press in PRESSES
    if model != "granite_swa" or press not in SCORED_OTHERWISE
]


@pytest.mark.parametrize("subject", CASES, ids=lambda case: f"{case.model}-{case.press}")
def test_one_pass_and_decoding_equal_a_plain_loop_over_the_stock_model(subject: Case) -> None:
    """Evictions are those of a plain loop over the model's own attention weights and cached keys, and NLL agree."""
    model, (press, method) = built(subject.model), PRESSES[subject.press]
    length, prompt = (LONG, LONG_PROMPT) if subject.press == "knorm-long" else (LENGTH, PROMPT)
    ids = architectures.tokens(1, length)
    # GraniteSWA computes the share of its sinks in float32.
    tolerance = 1e-4 if subject.model == "granite_swa" else 1e-9
    ways: tuple[Method, ...] = ("onepass", "stepwise")
    with float64_softmax():
        logits, tables = loop_oracle.decode(model, ids, [prompt, *[1] * (length - prompt)], method)
        with torch.no_grad():
            plain = model(ids).logits
        assert float((logits - plain).abs().max()) > 1e-3, "evictions are to matter"
        for way in ways:
            found = perplexity(model, ids, press, prompt, way)
            assert all(map(torch.equal, found.evicted_at, tables)), f"{way} evicts others"
            off = float((found.nll - _nll(logits, ids, prompt)).abs().max())
            assert off < tolerance, f"{way} is off by {off:.2g} nats"
