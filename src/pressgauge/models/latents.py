"""Multi-head latent attention (MLA), whose layers cache a latent and a rotary key, and expand both after the cache.

The key of a cached entry is its latent followed by its rotary key: the key of multi-query attention that MLA equals
once the expansion is absorbed into the queries (DeepSeek-V2, arXiv 2405.04434, section 2.1). Releases of transformers
before 5.17 cache expanded keys and values, which are ordinary entries.

Shapes: B batch, H query heads, N entries, L dimension of the latent, R dimension of the rotary key, D of expanded keys.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from pressgauge.models import interface

Expand = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From latents ``[B, 1, N, L]`` and rotary keys ``[B, 1, N, R]`` to keys ``[B, H, N, D]`` and values."""

_EXPAND = "expand_kv"


def expansion(module: nn.Module) -> Expand | None:
    """The expansion of an attention module that caches latents; None if it caches what it attends to."""
    found: Expand | None = getattr(module, _EXPAND, None)
    return found


def caches_latents(config: PretrainedConfig) -> bool:
    """Whether attention layers of the model of a configuration cache latents."""
    kind = interface.model_class(config)
    names: dict[str, Any] = {} if kind is None else vars(sys.modules[kind.__module__])
    return any(isinstance(part, type) and hasattr(part, _EXPAND) for part in names.values())


def entry_keys(latents: Tensor, rotary: Tensor) -> Tensor:
    """Keys of cached entries: ``[B, 1, N, L + R]``.

    Args:
        latents: ``[B, 1, N, L]``, which the cache stores as keys.
        rotary: ``[B, 1, N, R]``, which the cache stores as values.
    """
    return torch.cat([latents, rotary], dim=-1)


def scored_keys(module: nn.Module, keys: Tensor, values: Tensor) -> Tensor:
    """The keys that a press scores, of any attention module: ``entry_keys`` of latents, else the cached keys."""
    return keys if expansion(module) is None else entry_keys(keys, values)


def scored_queries(module: nn.Module, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The queries of ``scored_keys``.

    Those of latents are ``[B, H, q, L + R]``, in float32 or wider; their products with ``entry_keys`` are those of
    ``query`` with expanded keys.

    Args:
        module: the attention module.
        query: ``[B, H, q, D]``.
        keys, values: cached entries; of latents, only the dimensions matter.
    """
    expand = expansion(module)
    if expand is None:
        return query
    # The expansion is linear, and this is its matrix, whatever the format of the weights.
    unit = torch.eye(keys.shape[-1] + values.shape[-1], dtype=keys.dtype, device=keys.device)[None, None]
    matrix, _ = expand(unit[..., : keys.shape[-1]], unit[..., keys.shape[-1] :])
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.to(wide) @ matrix.to(wide).mT
