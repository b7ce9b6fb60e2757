"""Latents: keys and queries from which presses score them."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import DeepseekV3Config, LlamaConfig

from pressgauge.cache import Handed
from pressgauge.models import interface, latents
from pressgauge.proof import UNFED, misfit

LATENT, ROTARY, NOPE, VALUE, HEADS = 6, 2, 3, 5, 4


class Expanding(nn.Module):
    """Attention that expands latents, as in DeepSeek V3."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(LATENT, HEADS * (NOPE + VALUE), dtype=torch.float64)

    def expand_kv(self, kept: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of each head."""
        both = (kept[:, 0] @ self.matrix).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        keys = torch.cat([both[..., :NOPE], rotary.expand(-1, HEADS, -1, -1)], dim=-1)
        return keys, both[..., NOPE:]


MODULE = Expanding()
KEPT, TURNED = torch.randn(2, 1, 7, LATENT, dtype=torch.float64), torch.randn(2, 1, 7, ROTARY, dtype=torch.float64)
QUERY = torch.randn(2, HEADS, 7, NOPE + ROTARY, dtype=torch.float64)


def test_products_of_scored_queries_and_keys_are_those_with_expanded_keys() -> None:
    """In each head, and of one head of keys."""
    keys = latents.scored_keys(MODULE, KEPT, TURNED)
    queries = latents.scored_queries(MODULE, QUERY, KEPT, TURNED)
    assert (keys.shape, queries.shape) == ((2, 1, 7, LATENT + ROTARY), (2, HEADS, 7, LATENT + ROTARY))
    expanded, _ = MODULE.expand_kv(KEPT, TURNED)
    torch.testing.assert_close(queries @ keys.mT, QUERY @ expanded.mT, rtol=0, atol=1e-12)


def test_scored_queries_are_in_float32_or_wider() -> None:
    """A sum over the latent's dimensions would lose digits in less."""
    module = Expanding()
    module.matrix = module.matrix.bfloat16()
    found = latents.scored_queries(module, QUERY.bfloat16(), KEPT.bfloat16(), TURNED.bfloat16())
    assert found.dtype == torch.float32


def test_other_attention_is_scored_by_what_it_caches() -> None:
    """Without a copy."""
    module = nn.Linear(1, 1)
    assert latents.expansion(module) is None
    assert latents.scored_keys(module, KEPT, TURNED) is KEPT
    assert latents.scored_queries(module, QUERY, KEPT, TURNED) is QUERY


def test_models_that_cache_latents_are_known_by_their_code() -> None:
    """Since transformers 5.17, DeepSeek V3 is one; Llama is none."""
    modelling = transformers.models.deepseek_v3.modeling_deepseek_v3
    expands = hasattr(modelling.DeepseekV3Attention, "expand_kv")
    assert latents.caches_latents(DeepseekV3Config()) == expands
    assert not latents.caches_latents(LlamaConfig())


def test_without_a_class_nothing_is_known_to_cache_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a configuration with code of its own."""
    monkeypatch.setattr(interface, "model_class", lambda config: None)
    assert not latents.caches_latents(DeepseekV3Config())


EXPANDED = MODULE.expand_kv(KEPT, TURNED)
FIRST = Handed(7, KEPT, TURNED)
ELSE = "that are not the expansion of what its cache returned"


def counted(cached: list[int], read: list[int]) -> str:
    """The reason for other shapes."""
    return f"latents cached as {cached} and attended to as {read}"


@pytest.mark.parametrize(
    ("handed", "key", "value", "reason"),
    [
        (FIRST, *EXPANDED, None),
        (None, *EXPANDED, UNFED),
        (Handed(6, KEPT, TURNED), *EXPANDED, "6 of 7 tokens passed to the cache, attention from 7"),
        (FIRST, EXPANDED[0] + 1, EXPANDED[1], f"attention to keys {ELSE}"),
        (FIRST, EXPANDED[0], -EXPANDED[1], f"attention to values {ELSE}"),
        (FIRST, EXPANDED[0][:, :, 1:], EXPANDED[1][:, :, 1:], counted([1, 7, 6], [4, 6, 5])),
        (Handed(7, *EXPANDED), *EXPANDED, counted([4, 7, 5], [4, 7, 5])),
        # Later passes are counted.
        (Handed(7, torch.cat([KEPT, KEPT], 2), TURNED), *EXPANDED, counted([1, 14, 6], [4, 7, 5])),
    ],
)
def test_attention_has_to_read_the_expansion_of_what_the_cache_returned(
    handed: Handed | None, key: Tensor, value: Tensor, reason: str | None
) -> None:
    """In a pass from an empty cache by its numbers."""
    module: Any = MODULE
    assert misfit(module, {}, False, handed, 7, QUERY, key, value) == reason
