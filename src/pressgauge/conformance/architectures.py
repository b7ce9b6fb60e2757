"""Tiny random float64 models of the supported architectures."""

import inspect
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    cache_utils,
)

from pressgauge.conformance import devices
from pressgauge.conformance.guard import guarded

Model = Any
"""A causal model. transformers' type hints lack ``generate`` and the keys of a layer."""

VOCABULARY = 61
LAYERS = 3

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GROUPED: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,  # each serves 3 query heads
    "head_dim": 8,
}


def neox(**changes: Any) -> Model:
    """A GPT-NeoX: every query head has its own KV head."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(**{**_COMMON, "hidden_size": 32, "num_attention_heads": 4, **changes}))


def llama(**changes: Any) -> Model:
    """A Llama with grouped queries."""
    return LlamaForCausalLM(LlamaConfig(**{**_GROUPED, **changes}))


def mistral(**changes: Any) -> Model:
    """A Mistral, by default without a sliding window."""
    return MistralForCausalLM(MistralConfig(**{**_GROUPED, "sliding_window": None, **changes}))


def qwen2(**changes: Any) -> Model:
    """A Qwen2, with biases on queries, keys and values."""
    settings = {key: value for key, value in _GROUPED.items() if key != "head_dim"}
    return Qwen2ForCausalLM(Qwen2Config(**{**settings, **changes}))


def qwen3(**changes: Any) -> Model:
    """A Qwen3, with norms on queries and keys."""
    # Norm weights are random: with weights of 1, all keys would have the same norm.
    model = Qwen3ForCausalLM(Qwen3Config(**{**_GROUPED, **changes}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                weight.uniform_(0.3, 2.0)
    return model


WINDOW = 4096
"""Window of ``gemma3()``, longer than the texts of the laws, whose oracles know no windows."""


def gemma3(**changes: Any) -> Model:
    """The text model of Gemma 3: caches of a sliding window in every other layer, and norms on queries and keys."""
    layers = changes.get("num_hidden_layers", LAYERS)
    types = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
    settings = {"layer_types": types, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, **changes}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{**_GROUPED, **settings}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                weight.uniform_(-0.7, 1.0)
    return model


def gpt2(num_hidden_layers: int = LAYERS, max_position_embeddings: int = 512, **changes: Any) -> Model:
    """A GPT-2, with learned positions."""
    sizes = {"n_layer": num_hidden_layers, "n_positions": max_position_embeddings, "n_embd": 32, "n_head": 4}
    ids = {name: _COMMON[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **ids, **changes}))


def gpt_oss(**changes: Any) -> Model:
    """A GPT-OSS without windows: a sink logit per head takes part in each softmax."""
    layers = changes.get("num_hidden_layers", LAYERS)
    experts = {"num_local_experts": 2, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * layers}
    model: Model = GptOssForCausalLM(GptOssConfig(**{**_GROUPED, **experts, **changes}))
    # The other implementations of experts have no kernel for float64.
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.uniform_(0, 12)
    return model


def deepseek_v3(**changes: Any) -> Model:
    """A DeepSeek V3 without experts: since transformers 5.17, a layer caches a latent and a rotary key in one head."""
    latent = {"q_lora_rank": 16, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    heads = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    dense = {"first_k_dense_replace": changes.get("num_hidden_layers", LAYERS)}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**{**_COMMON, **latent, **heads, **dense, **changes}))


def _delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule (arXiv 2412.06464, equation 10), token by token in the dtype of the values.

    transformers' two functions compute in float32, by different sums, so that a text fed singly differs.
    """
    group = value.shape[2] // key.shape[2]
    query, key = (
        (part * (part.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()).repeat_interleave(group, dim=2)
        for part in (query, key)
    )
    state = value.new_zeros(*value.shape[::2], key.shape[-1], value.shape[-1])
    if initial_state is not None:
        state = initial_state.to(value)
    read = []
    for token in range(value.shape[1]):
        state = state * g[:, token].exp().to(state)[..., None, None]
        here = key[:, token, :, :, None]
        known = (state * here).sum(dim=-2)
        state = state + here * ((value[:, token] - known) * beta[:, token, :, None])[..., None, :]
        read.append((state * query[:, token, :, :, None]).sum(dim=-2) / key.shape[-1] ** 0.5)
    return torch.stack(read, dim=1), state


def qwen3_next(num_hidden_layers: int = LAYERS, **changes: Any) -> Model:
    """A Qwen3-Next without experts, the last layer of which has linear attention.

    Skips the test if the installed transformers has no cache layers for linear attention.
    """
    if not hasattr(cache_utils, "LinearAttentionLayer"):
        pytest.skip(f"transformers {transformers.__version__} has no cache layers for linear attention")
    linear = {f"linear_num_{name}_heads": heads for name, heads in (("key", 2), ("value", 4))}
    linear |= {f"linear_{name}_head_dim": 8 for name in ("key", "value")}
    layers = {
        "num_hidden_layers": num_hidden_layers,
        "layer_types": ["full_attention"] * (num_hidden_layers - 1) + ["linear_attention"],
        "mlp_only_layers": list(range(num_hidden_layers)),
    }
    model: Model = transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(**{**_GROUPED, **linear, **layers, **changes})
    )
    module = model.model.layers[-1].linear_attn
    own = inspect.unwrap(type(module).forward)
    exact = dict.fromkeys(("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"), _delta_rule)
    forward = types.FunctionType(own.__code__, {**own.__globals__, **exact}, own.__name__, own.__defaults__)
    module.forward = types.MethodType(forward, module)
    return model


ARCHITECTURES: dict[str, Callable[..., Model]] = {
    "neox": neox,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}
FURTHER: dict[str, Callable[..., Model]] = {
    "gpt2": gpt2,
    "gpt_oss": gpt_oss,
    "gemma3": gemma3,
    "deepseek_v3": deepseek_v3,
    "qwen3_next": qwen3_next,
}
"""Architectures that the laws run on by name, and one press in every run."""
NAMED = {**ARCHITECTURES, **FURTHER}


def build(architecture: str, **changes: Any) -> Model:
    """Build a new float64 model, with wide weights so that attention is far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = NAMED[architecture](initializer_range=0.3, **changes)
    model.double()
    model.eval()
    return model


@cache
def _small() -> Model:
    return build("llama", num_hidden_layers=2, hidden_size=16, intermediate_size=8, num_attention_heads=2)


def small() -> Model:
    """Shared Llama of two layers for runs of many passes, on the device of models under test."""
    return guarded(_small().to(devices.chosen()))


@cache
def _attending_by(implementation: str) -> Model:
    model = build("llama")
    model.set_attn_implementation(implementation)
    return model


def attending_by(implementation: str) -> Model:
    """Shared Llama with this ``attn_implementation``, on the device of models under test."""
    return guarded(_attending_by(implementation).to(devices.chosen()))


LINEAR = (0, 1, 2)
"""Layers of ``hybrid()`` without keys."""


def hybrid() -> Model:
    """A Qwen3-Next with one attention layer and three linear-attention layers.

    Skips the test if the installed transformers has no cache layers for linear attention.
    """
    if not hasattr(cache_utils, "LinearAttentionLayer"):
        pytest.skip(f"transformers {transformers.__version__} has no cache layers for linear attention")
    config = transformers.Qwen3NextConfig(
        **{**_GROUPED, "num_hidden_layers": 4},
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        mlp_only_layers=[0, 1, 2, 3],
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model: Model = transformers.Qwen3NextForCausalLM(config)
    model.double()
    model.eval()
    return model


_built = cache(build)


def shared(architecture: str) -> Model:
    """The model of this architecture shared by all tests, which must not change it."""
    return guarded(_built(architecture))


def tokens(rows: int, length: int, seed: int = 0, size: int = VOCABULARY) -> torch.Tensor:
    """Random token ids ``[rows, length]``, without the first three, which may be special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, size, (rows, length), generator=generator)


def vocabulary(model: Model) -> int:
    """Number of tokens that a model knows."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def text(model: Model, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids ``[rows, length]`` of a model's vocabulary, on the CPU."""
    return tokens(rows, length, seed, vocabulary(model))


@cache
def _cast(architecture: str, dtype: torch.dtype, device: torch.device) -> Model:
    model = build(architecture)
    model.to(device=device, dtype=dtype)
    return model


def cast(architecture: str, dtype: torch.dtype, device: torch.device) -> Model:
    """Shared copy of the model in another dtype or on another device."""
    return guarded(_cast(architecture, dtype, device))


def under_test(architecture: str, dtype: torch.dtype = torch.float64) -> Model:
    """Shared model in this dtype, on the device of models under test."""
    device = devices.chosen()
    return shared(architecture) if (dtype, device.type) == (torch.float64, "cpu") else cast(architecture, dtype, device)


def padded(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded batch of rows of these lengths, and its mask; the padding id is in no row."""
    columns = max(lengths)
    ids = tokens(len(lengths), columns, seed)
    mask = torch.tensor([[int(column >= columns - length) for column in range(columns)] for length in lengths])
    return ids.masked_fill(mask == 0, 0), mask
