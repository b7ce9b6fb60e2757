"""A Llama that produces given keys and values, to test compressors of any convention."""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pressgauge.conformance import devices
from pressgauge.conformance.strategies import HEADS, LAYERS

TOKENS = (256, 1024, 4096)
"""Vocabulary sizes. With powers of 4, RMSNorm scales ones to powers of 2, without rounding."""


class Nothing(nn.Module):
    """A free MLP that adds nothing to the residual stream."""

    def forward(self, given: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(given)


@cache
def _model(dtype: torch.dtype, tokens: int, device: torch.device, group: int, dimension: int) -> Any:
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=HEADS * tokens,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS * group,
        num_key_value_heads=HEADS,
        head_dim=dimension,
        intermediate_size=8,
        rms_norm_eps=0.0,
        max_position_embeddings=tokens,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        model: Any = LlamaForCausalLM(config)
    model.missing = torch.zeros(0)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(tokens).repeat(1, HEADS))
        for layer in model.model.layers:
            # Nothing is added to the residual stream, so that every layer can identify the token.
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.o_proj.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
            layer.mlp = Nothing()
            layer.post_attention_layernorm = nn.Identity()
            layer.self_attn.k_proj.register_forward_hook(partial(_with_missing, model))
        # Frequencies of zero disable the rotary embedding.
        model.model.rotary_emb.inv_freq.zero_()
        model.lm_head = nn.Linear(HEADS * tokens, 2, bias=False)
    model.to(device, dtype)
    model.eval()
    return model


def _with_missing(model: Any, module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
    """Hook that puts NaN into single keys; a NaN weight would spread to all tokens."""
    if not len(model.missing):
        return output
    return output.masked_fill(model.missing[given[0][..., : model.config.vocab_size].argmax(dim=-1)], torch.nan)


def queries_of(keys: Tensor) -> Tensor:
    """Queries ``[B, 2 * HEADS, T, DIMENSION]`` derived from keys ``[B, HEADS, T, DIMENSION]``.

    Each is a function of the key of its token and KV head, so that transformations of keys carry over to queries. They
    are clamped, so that products do not overflow.
    """
    small = keys.nan_to_num().clamp(-8, 8)
    return torch.stack([small.flip(-1), -small.roll(1, dims=-1)], dim=2).flatten(1, 2)


def scripted(keys: Tensor, queries: Tensor | None = None, values: Tensor | None = None) -> tuple[Any, Tensor]:
    """A model and tokens ``[B, T]`` with which every layer passes the given keys, or its own, to its cache.

    By default values identify their keys: each encodes row, head and position. If values are given, every second layer
    gets the negative of all numbers, so that no layer's entries are those of the one before.

    Args:
        keys: ``[B, HEADS, T, D]``, or ``[LAYERS, B, HEADS, T, D]``, finite or NaN, with B times T at most the last of
            TOKENS. NaN are the same in every layer.
        queries: ``[B, H, T, D]``, or of each layer, finite; zeros with H = HEADS by default.
        values: ``[B, HEADS, T, D]``, finite.

    Raises:
        ValueError: if there are more tokens.
    """
    rows, heads, tokens, dimension = keys.shape[-4:]
    known = next((known for known in TOKENS if rows * tokens <= known), None)
    if known is None:
        raise ValueError(f"at most {TOKENS[-1]} tokens can be scripted, got {rows} rows of {tokens}")
    group = 1 if queries is None else queries.shape[-3] // heads
    model = _model(keys.dtype, known, devices.chosen(), group, dimension)
    ids = torch.arange(rows * tokens).view(rows, tokens)
    keys_of = keys.expand(LAYERS, *keys.shape[-4:])
    queries_of_layer = None if queries is None else queries.expand(LAYERS, *queries.shape[-4:])
    keys = keys_of[0]
    alternate = 1 if values is None else -1
    if values is None:
        values = torch.zeros_like(keys)
        values[..., 0] = 1 + torch.arange(tokens, dtype=keys.dtype)
        values[..., 1] = torch.arange(heads, dtype=keys.dtype)[:, None]
        values[..., 2] = torch.arange(rows, dtype=keys.dtype)[:, None, None]
    # [B * T, K * D]
    missing = keys.isnan().permute(0, 2, 1, 3).reshape(rows * tokens, heads * dimension)
    model.missing = missing.to(model.device) if missing.any() else torch.zeros(0)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            sign = alternate**index
            own = keys_of[index].nan_to_num() * sign
            of_layer = [(layer.self_attn.k_proj, own), (layer.self_attn.v_proj, values * sign)]
            layer.self_attn.q_proj.weight.zero_()
            if queries_of_layer is not None:
                of_layer.append((layer.self_attn.q_proj, queries_of_layer[index]))
            for projection, wanted in of_layer:
                # [B, K, T, D] to [K * D, B * T]; RMSNorm scales the ones of an embedding to known ** 0.5.
                columns = wanted.permute(1, 3, 0, 2).reshape(-1, rows * tokens)
                projection.weight.zero_()
                projection.weight[:, : rows * tokens] = columns / known**0.5
    return model, ids
