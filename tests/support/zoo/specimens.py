"""Tiny random models of every causal architecture of the installed transformers.

A configuration is derived from the defaults of its class: ``RULES`` set fields by name, and lists with an element per
layer are shortened so that each kind of layer remains. Exceptions are listed in ``CHANGES``, so architectures of a new
release are included without changes here.
"""

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 61
LAYERS = 4
WINDOW = 8
MOST_PARAMETERS = 10_000_000
SPECIAL = 50
"""First token id that may be special, such as those of images."""

# Values by the first pattern that matches a field's whole name. None is not changed.
HEADS, KV_HEADS, HEAD_DIM, WIDTH = 4, 2, 8, 32
RULES: dict[str, Any] = {
    r"(decoder_|encoder_)?vocab_size(_per_layer_input)?": VOCABULARY,
    # Some decoders read the encoder's number of layers from their configuration.
    r"num_hidden_layers|n_layers?|num_layers|(num_)?(en|de)coder_layers": LAYERS,
    r"(num_|n_|decoder_|encoder_|num_decoder_|num_encoder_)(attention_)?heads?": HEADS,
    r"(num_|n_)(global_|swa_|sliding_)?(key_value|kv)_heads|num_attention_groups|num_heads_kv": KV_HEADS,
    r"(global_|swa_|sliding_|attention_)?(v_)?head_dim|d_kv|kv_channels": HEAD_DIM,
    r"hidden_size|d_model|n_embd|dim|embed_dim|model_dim|embedding_size|decoder_hidden_size|lru_width": WIDTH,
    r"(ffn_|mlp_|dense_|shared_|decoder_|encoder_)?(intermediate_size|ffn_dim|ffn_hidden_size)(_mlp)?": 48,
    r"d_ff|n_inner|d_inner|intermediate_dim": 48,
    r"(moe_|expert_|shared_expert_|moe_shared_expert_)+(intermediate_size|ffn_hidden_size|dim)": 24,
    r"(num_|n_|moe_num_)(local_|routed_)?experts|num_moe_experts": 4,
    r"(num_experts_per_(tok|token)|moe_(top)?k|top_k(_experts)?|moe_topk|experts_per_token)": 2,
    r"n_group|topk_group|num_expert_groups?": 1,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|context_length|seq_length": 256,
    r"pad_token_id": 0,
    r"bos_token_id": 1,
    r"eos_token_id": 2,
    r"q_lora_rank": 16,
    r"kv_lora_rank": 12,
    r"qk_rope_head_dim": 4,
    r"qk_nope_head_dim": 8,
    r"(sliding_|attention_|local_)?(window|window_size|attention_window_size|chunk_size|attention_window)": WINDOW,
    r"sliding_window|attention_chunk_size|sliding_window_size": WINDOW,
    r"rotary_dim|hidden_size_per_layer_input|index(er)?_head_dim": 8,
    r"mamba_(d_head|head_dim)|(linear_)?(key|value)_head_dim": 8,
    r"index(er)?_n_heads": 4,
    r"index(er)?_topk|indexer_budget": WINDOW,
    r"index_block_size": 4,
    r"index_topk_blocks": 2,
}
OPTIONAL = ("head_dim", "num_key_value_heads", "n_routed_experts", "num_experts_per_tok", "n_shared_experts")
"""Fields that the rules set even if the default is None."""
_TOKENS = re.compile(r".*(token_id|token_index|token)$")


def fields(kind: type[PreTrainedConfig]) -> list[str]:
    """Names of the fields of a configuration class."""
    names: list[str] = []
    for base in kind.__mro__:
        if base is PreTrainedConfig or not issubclass(base, PreTrainedConfig):
            break
        names += inspect.signature(base.__init__).parameters
        names += getattr(base, "__dataclass_fields__", {})
    common = {"pad_token_id", "bos_token_id", "eos_token_id"} & set(vars(kind()))
    return [name for name in dict.fromkeys([*names, *common]) if name not in ("self", "kwargs", "args")]


def chosen_layers(kinds: list[Any], count: int) -> list[int]:
    """``count`` layers, or more if there are more kinds, in which each kind of layer occurs."""
    first = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    chosen = list(first.values())
    rest = [layer for layer in range(len(kinds)) if layer not in chosen]
    # Equally many of each kind, if there are enough.
    while len(chosen) < count and rest:
        counts = {kind: sum(kinds[layer] == kind for layer in chosen) for kind in first}
        layer = min(rest, key=lambda layer: (counts[kinds[layer]], layer))
        chosen.append(layer)
        rest.remove(layer)
    return sorted(chosen)


def _value(config: PreTrainedConfig, name: str) -> Any:
    """Value of a field of a configuration; None if it has none, or one per layer."""
    try:
        return getattr(config, name, None)
    except AttributeError:
        return None
    except Exception:  # transformers has an error of its own for fields that differ between layers
        return vars(config).get(name, 1)


def _kind(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _per_layer(default: PreTrainedConfig, names: list[str], depth: int) -> dict[str, list[Any]]:
    """Fields with an element per layer."""
    found = {}
    for name in names:
        value = _value(default, name)
        if isinstance(value, list | tuple) and len(value) == depth > 1:
            found[name] = list(value)
    return found


def tiny(kind: type[PreTrainedConfig], changes: Mapping[str, Any]) -> PreTrainedConfig:
    """A tiny configuration of a class; a change named ``text_config.x`` applies to the nested configuration."""
    default = kind()
    names = fields(kind)
    made: dict[str, Any] = {}
    own = {name: value for name, value in changes.items() if "." not in name}
    for name, within in _within(default).items():
        inner = {key[len(name) + 1 :]: value for key, value in changes.items() if key.startswith(f"{name}.")}
        made[name] = tiny(type(within), inner)
    mla = "kv_lora_rank" in names
    for name in names:
        value = _value(default, name)
        if name == "is_decoder" or name == "is_encoder_decoder":
            made[name] = name == "is_decoder"
        if name in OPTIONAL and value is None:
            value = 1
        if name in made or value is None or isinstance(value, bool):
            continue
        rule = next((rule for rule in RULES if re.fullmatch(rule, name)), None)
        if rule is not None and isinstance(value, int | float | list):
            made[name] = RULES[rule]
            if mla and name == "num_key_value_heads":
                made[name] = HEADS
            if mla and name == "head_dim" and "qk_rope_head_dim" in names:
                made[name] = RULES["qk_rope_head_dim"]
        elif _TOKENS.fullmatch(name) and isinstance(value, int) and value >= SPECIAL:
            made[name] = SPECIAL + value % (VOCABULARY - SPECIAL)
    depth_name = next((name for name in names if name in _DEPTHS and _value(default, name)), None)
    depth = _value(default, depth_name or "") or 0
    per_layer = _per_layer(default, names, depth)
    # Some lists name all layers.
    naming = [name for name, value in per_layer.items() if value == list(range(depth))]
    per_layer = {name: value for name, value in per_layer.items() if name not in naming}
    if per_layer:
        kinds = [tuple(_kind(value[layer]) for value in per_layer.values()) for layer in range(depth)]
        layers = chosen_layers(kinds, LAYERS)
        made |= {name: [value[layer] for layer in layers] for name, value in per_layer.items()}
        assert depth_name is not None
        made[depth_name] = len(layers)
        made |= {name: list(range(len(layers))) for name in naming}
    made |= own
    made = {name: value for name, value in made.items() if value is not ...}
    config: PreTrainedConfig = kind(**made)
    return config


_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


def _within(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """Nested configurations, by name."""
    named = {name: getattr(config, name, None) for name in config.sub_configs}
    return {name: value for name, value in named.items() if isinstance(value, PreTrainedConfig)}


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
_PER_LAYER_HEADS = {"global_head_dim": 16}
_QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "hc_lowrank": 4,
    "heads_per_ngram": 2,
}
_DOTS3 = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 12,
    "swa_head_dim": 12,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
_ASSISTANT = {
    "text_config.hidden_size_per_layer_input": 0,
    "text_config.vocab_size_per_layer_input": 0,
    "text_config.num_kv_shared_layers": 4,
    "text_config.global_head_dim": 16,
}

CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 61,
        **{f"{name}_config.hidden_size_global": 32 for name in ("encoder", "decoder")},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.kv_n_heads": 2, "attn_config.clip_qkv": 8},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "dory": {
        "n_input_layers": 1,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note": {
        "vision_config.adapter_in_dim": 32,
        "vision_config.adapter_out_dim": 32,
        "audio_config.adapter_input_size": 32,
        "audio_config.adapter_out_dim": 32,
        **{f"text_config.{name}": value for name, value in _DOTS3.items()},
    },
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4": {"text_config.global_head_dim": 16},
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "gemma4_text": _PER_LAYER_HEADS,
    "gemma4_unified": {"text_config.global_head_dim": 16},
    "gemma4_unified_text": _PER_LAYER_HEADS,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {
        "num_hidden_layers": 4,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8, "chunk_size": 8},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "musicgen": {"decoder.num_codebooks": 1},
    "musicgen_melody": {"decoder.num_codebooks": 1},
    "qwen4_exp": {f"text_config.{name}": value for name, value in _QWEN4.items()},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_embds": False, "feed_forward_size": 48, "attention_head_size": 8},
    "roc_bert": {"shape_vocab_size": 61, "pronunciation_vocab_size": 61},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xlm": {"emb_dim": 32, "causal": True, "n_langs": 1},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
}
"""Exceptions to the rules, by ``model_type``."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3n_text, shared keys": (
        "gemma3n_text",
        {
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "num_hidden_layers": 6,
            "intermediate_size": 48,
            "activation_sparsity_pattern": [0.0] * 6,
        },
    ),
    "gemma4_text, shared keys": (
        "gemma4_text",
        {
            **_PER_LAYER_HEADS,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "num_hidden_layers": 6,
        },
    ),
}
"""Kinds of attention that an architecture has only with another configuration: ``model_type`` and changes."""


class NotBuilt(Exception):  # noqa: N818  # it is an answer
    """The reason why an architecture has no model."""


def names() -> list[str]:
    """Architectures by model type, and variants of some."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted([*known, *(name for name, (model_type, _) in VARIANTS.items() if model_type in known)])


def configuration(name: str) -> PreTrainedConfig:
    """A tiny configuration.

    Raises:
        Exception: any error of the configuration's own validation.
    """
    model_type, changes = VARIANTS.get(name, (name, CHANGES.get(name, {})))
    return tiny(transformers.CONFIG_MAPPING[model_type], changes)


@torch.no_grad()
def _try(model: Any) -> None:
    if not model(tokens(1, 12), use_cache=False).logits.isfinite().all():
        raise ValueError("its logits are no numbers")


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """``[rows, length]`` token ids without special tokens."""
    return torch.randint(3, SPECIAL, (rows, length), generator=torch.Generator().manual_seed(seed))


def _model(config: PreTrainedConfig) -> Any:
    """The causal model that ``AutoModelForCausalLM`` builds from a configuration."""
    kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(config, kind.config_class):
        # The text model of a wrapper.
        config = next((part for part in _within(config).values() if isinstance(part, kind.config_class)), config)
    for part in (config, *_within(config).values()):
        # Other implementations have no kernel for float64.
        if hasattr(part, "_experts_implementation"):
            part._experts_implementation = "eager"
    return kind._from_config(config)


def build(name: str) -> Any:
    """A model in float64, or in float32 if it does not support float64, with weights random and large enough for
    non-uniform attention.

    Raises:
        NotBuilt: if it cannot be built, with the reason.
    """
    try:
        config = configuration(name)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in _model(copy.deepcopy(config)).parameters())
        if size > MOST_PARAMETERS:
            raise NotBuilt(f"it has {size:,} parameters, which is not tiny")
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = _model(config)
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
