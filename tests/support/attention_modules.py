"""Llamas with one layer of non-standard attention."""

from typing import Any

from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from pressgauge.conformance import architectures
from pressgauge.conformance.versions import CACHE


def broken(kind: type[LlamaAttention], layer: int = 1) -> Any:
    """A Llama with one layer of non-standard attention."""
    model = architectures.build("llama")
    model.model.layers[layer].self_attn.__class__ = kind
    return model


class Beside(LlamaAttention):
    """Attention with a second call, to its own tokens only, through a module that is not a layer."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(hidden_states, *args, **kwargs)
        attend: Any = self.aside
        aside, _ = attend(hidden_states, *args, **{**kwargs, CACHE: None, "attention_mask": None})
        return output + aside, weights
