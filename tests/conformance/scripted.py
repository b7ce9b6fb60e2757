"""A Llama whose keys and values are chosen: so that any compressor, whatever its convention, meets given entries."""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from . import place
from .strategies import DIMENSION, HEADS, LAYERS

WIDTH = 256
"""Tokens that there are. A power of 4, so that the norm of a one-hot vector is a power of 2 and nothing is rounded."""


@cache
def _model(dtype: torch.dtype) -> Any:
    config = LlamaConfig(
        vocab_size=WIDTH,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=DIMENSION,
        intermediate_size=8,
        rms_norm_eps=0.0,
        max_position_embeddings=WIDTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        model: Any = LlamaForCausalLM(config)
    model.missing = torch.zeros(0)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(WIDTH))
        for layer in model.model.layers:
            # Nothing is added to the one-hot vector, so that every layer sees which token it is.
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.o_proj.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.k_proj.register_forward_hook(partial(_with_missing, model))
        # Keys are not rotated.
        model.model.rotary_emb.inv_freq.zero_()
        model.lm_head = nn.Linear(WIDTH, 2, bias=False)
    model.to(place.chosen(), dtype)
    model.eval()
    return model


def _with_missing(model: Any, module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
    """A NaN among the weights would be everybody's, so that it is put where it belongs."""
    if not len(model.missing):
        return output
    return output.masked_fill(model.missing[given[0].argmax(dim=-1)], torch.nan)


def scripted(keys: Tensor) -> tuple[Any, Tensor]:
    """A model and the tokens ``[B, T]`` that make every layer hand its cache these keys.

    Values tell which key they belong to: each names its row, head and position.

    Args:
        keys: ``[B, HEADS, T, DIMENSION]``, finite or NaN, with B times T at most WIDTH.
    """
    rows, heads, tokens, _ = keys.shape
    model = _model(keys.dtype)
    ids = torch.arange(rows * tokens).view(rows, tokens)
    values = torch.zeros_like(keys)
    values[..., 0] = 1 + torch.arange(tokens, dtype=keys.dtype)
    values[..., 1] = torch.arange(heads, dtype=keys.dtype)[:, None]
    values[..., 2] = torch.arange(rows, dtype=keys.dtype)[:, None, None]
    # [B * T, K * D]
    missing = keys.isnan().permute(0, 2, 1, 3).reshape(rows * tokens, heads * DIMENSION)
    model.missing = missing.to(model.device) if missing.any() else torch.zeros(0)
    finite = keys.nan_to_num()
    with torch.no_grad():
        for layer in model.model.layers:
            for projection, wanted in ((layer.self_attn.k_proj, finite), (layer.self_attn.v_proj, values)):
                # [B, K, T, D] to [K * D, B * T]; a one-hot vector has the size WIDTH ** .5 after its norm.
                columns = wanted.permute(1, 3, 0, 2).reshape(heads * DIMENSION, rows * tokens)
                projection.weight.zero_()
                projection.weight[:, : rows * tokens] = columns / WIDTH**0.5
    return model, ids
