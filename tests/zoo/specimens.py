"""Tiny random models of every causal architecture that the installed transformers has."""

import contextlib
import inspect
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 61
LAYERS = 4
WINDOW = 8

TINY: dict[str, Any] = {
    # names of the same thing in different configurations
    **dict.fromkeys(("vocab_size", "text_vocab_size", "audio_vocab_size"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "attention_hidden_size", "dim_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "dim_head", "d_kv", "kv_channels", "swa_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "dim_ff", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 256),
    **dict.fromkeys(("sliding_window", "attention_window", "window_size", "attention_chunk_size"), WINDOW),
    # mixtures of experts
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_selected_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "moe_ffn_hidden_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    # latent attention and indexers
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 6,
    "index_n_heads": 2,
    "index_head_dim": 16,
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_dt_rank": 4,
    "state_size": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "time_step_rank": 4,
    "lru_width": 32,
    # small ones
    "rotary_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "use_cache": True,
    "vision_config": None,
    "audio_config": None,
}

_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0}

CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3": {"vision_config": _VISION, "mm_tokens_per_image": 4},
    "gemma3n_text": {**_PER_LAYER, "laurel_rank": 8, "activation_sparsity_pattern": 0.0},
    "gemma4.text_config": _PER_LAYER,
    "gemma4_text": _PER_LAYER,
    "git": {"vision_config": _VISION},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longcat_flash": {"ffn_hidden_size": 16, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "num_layers": 2},
    "mamba2": {"num_heads": 8, "expand": 2},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "index_local_blocks": 1,
    },
    "xlm": {"n_words": VOCABULARY, "emb_dim": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What the general rule gets wrong, by architecture."""


class NotBuilt(Exception):  # noqa: N818  # it is an answer
    """Why there is no model of an architecture."""


def names() -> list[str]:
    """The architectures, by their model types."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _settings(kind: type[PreTrainedConfig], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``TINY`` that a kind of configuration has, and the changes."""
    known = set(kind().to_dict()) | set(inspect.signature(kind.__init__).parameters)
    given = {name: value for name, value in TINY.items() if name in known and value is not None}
    if len(types := getattr(kind(), "layer_types", None) or []) > LAYERS and "layer_types" in known:
        given["layer_types"] = _sample(types)
    if "kv_lora_rank" in known:
        # Latent attention expands a head of its own for each query head.
        given["num_key_value_heads"] = given.get("num_attention_heads", 4)
    return {**given, **changes}


def _sample(types: list[str]) -> list[str]:
    """So many layers that each kind is among them, in their order."""
    start = types[:LAYERS]
    missing = [kind for kind in dict.fromkeys(types) if kind not in start]
    return [*start[: LAYERS - len(missing)], *missing]


def configuration(model_type: str) -> PreTrainedConfig:
    """A tiny configuration.

    Raises:
        Exception: whatever the configuration's own checks raise.
    """
    kind: Any = transformers.CONFIG_MAPPING[model_type]
    changes = CHANGES.get(model_type, {})
    settings = _settings(kind, changes)
    for name, part in getattr(kind, "sub_configs", {}).items():
        tellable = isinstance(part, type) and issubclass(part, PreTrainedConfig) and part.model_type
        if name in ("text_config", "decoder") and tellable and name not in changes:
            settings[name] = _settings(part, CHANGES.get(f"{model_type}.{name}", {}))
    return kind(**settings)  # type: ignore[no-any-return]


@torch.no_grad()
def _try(model: Any) -> None:
    if not model(tokens(1, 12), use_cache=False).logits.isfinite().all():
        raise ValueError("its logits are no numbers")


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """``[rows, length]`` token ids, none of which is special."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def build(model_type: str) -> Any:
    """A model with random weights wide enough that attention is far from uniform, in float64, or in float32 if it does
    not run in float64.

    Raises:
        NotBuilt: if there is none, with the reason.
    """
    try:
        config = configuration(model_type)
        for part in (config, config.get_text_config(decoder=True)):
            with contextlib.suppress(Exception):
                part._experts_implementation = "eager"
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model: Any = AutoModelForCausalLM.from_config(config)
            size = sum(parameter.numel() for parameter in model.parameters())
            if size > 100_000_000:
                raise NotBuilt(f"it has {size:,} parameters, which is not tiny")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.double().eval()
        try:
            _try(model)
        except RuntimeError:
            model.float()
            _try(model)
        return model
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(" ".join(f"{type(error).__name__}: {error}".split())[:160]) from error
