"""Correlation of key norm and attention received.

KnormPress assumes that keys of low norm receive much attention (arXiv 2406.11430).
"""

from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import PreTrainedModel

from pressgauge.models import interface
from pressgauge.presses.ranking import wide

LATER = 32
"""Minimum number of later queries for a key to be counted.

Attention is dominated by few large weights, so a mean over fewer queries says more about the queries than the key.
"""
_BLOCK = 64
"""Number of queries whose attention is materialised at a time."""


def _spearman(norms: Tensor, received: Tensor) -> float:
    """Spearman's rank correlation of two ``[n]``.

    NaN if one is constant, or for fewer than three keys.
    """
    # Norms are rounded to 10 significant bits, as in the ranking of scores.
    mantissa, exponent = torch.frexp(norms.double())
    norms = torch.ldexp((mantissa * 2**10).round(), exponent)
    if norms.numel() < 3 or norms.min() == norms.max() or received.min() == received.max():
        return float("nan")
    return float(spearmanr(norms.numpy(), received.numpy()).statistic)


def _received(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """Mean attention from later queries: ``[K, T]`` float64 on the CPU.

    Args:
        module: the attention module.
        query: ``[1, H, T, D]``.
        key: ``[1, K, T, D]``.
        mask: the model's mask; None for no mask.
        kwargs: further arguments of the attention call.
    """
    heads, tokens = key.shape[1:3]
    columns = torch.arange(tokens, device=key.device)
    total = torch.zeros(query.shape[1], tokens, dtype=torch.float64)
    for start in range(0, tokens, _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = wide(query[:, :, rows])
        seen = (columns <= columns[rows, None])[None, None]
        bias = part.new_zeros(1)
        if mask is not None and mask.dtype == torch.bool:
            seen = seen & mask[:, :, rows, :tokens]
        elif mask is not None:
            bias = mask[:, :, rows, :tokens].to(part.dtype)
        bias = bias.where(seen, torch.finfo(part.dtype).min)
        # A single column of ones makes the product with values cheap, and is what the weights and sinks make of it.
        ones = torch.ones_like(wide(key[..., :1]))
        output, weights = interface.eager_attention(module)(module, part, wide(key), ones, bias, **kwargs)
        assert weights is not None
        if kwargs.get("s_aux") is not None:
            # Some models leave the sinks out of the weights, and take their share from the output.
            weights = weights * (output[0, :, :, 0].T / weights[0].sum(dim=-1))[None, :, :, None]
        total += weights[0].tril(start - 1).sum(dim=-2).cpu().double()
    mean = total / (tokens - 1 - torch.arange(tokens)).clamp(min=1)
    return mean.view(heads, -1, tokens).mean(dim=1)


@torch.no_grad()
def norm_attention(model: PreTrainedModel, input_ids: Tensor, *, later: int = LATER) -> Tensor:
    """Spearman's rank correlation of key norms with the attention received from later queries.

    The norm is L2, the attention a mean over queries, without the key's own. With grouped-query attention, it is
    averaged over the query heads that share the KV head. Of latents, keys are the expanded ones. Nothing is evicted.
    Attention is the model's own eager function, on queries and keys in float32 or wider, a block of queries at a time.

    Args:
        model: any causal model that uses transformers' attention interface.
        input_ids: ``[1, T]``, one text without padding.
        later: minimum number of later queries for a key to be counted.

    Returns:
        ``[layers, K]`` float64 on the CPU, from -1 (the lower the norm, the more attention) to 1. NaN where undefined:
        norms or attention are constant, fewer than three keys are counted, or the layer has no such attention.

    Raises:
        ValueError: if there is not exactly one text, or ``later`` is less than 1.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids must be one text, [1, tokens], got {list(input_ids.shape)}")
    if later < 1:
        raise ValueError(f"later must be at least 1, got {later}")
    decoder = interface.decoder_of(model)
    layers = interface.layer_indices(decoder)
    found: dict[int, list[float]] = {}

    def attend(
        own: interface.Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        index = layers.get(id(module))
        if index is not None:
            counted = slice(max(key.shape[2] - later, 0))
            received = _received(module, query, key, attention_mask, **{**kwargs, "dropout": 0.0})
            norms = wide(key[0]).norm(dim=-1).cpu()
            found[index] = [_spearman(*pair) for pair in zip(norms[:, counted], received[:, counted], strict=True)]
        return own(module, query, key, value, attention_mask, **kwargs)

    with interface.routed(decoder, attend):
        interface.feed(model, input_ids, {})
    layer_count = model.config.get_text_config(decoder=True).num_hidden_layers
    table = torch.full((layer_count, max(map(len, found.values()), default=1)), float("nan"), dtype=torch.float64)
    for index, numbers in found.items():
        table[index, : len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    return table
