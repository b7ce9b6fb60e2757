"""Llamas one layer of which attends in a way of its own."""

from typing import Any

from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from pressgauge.conformance import architectures
from pressgauge.conformance.versions import CACHE


def broken(kind: type[LlamaAttention], layer: int = 1) -> Any:
    """A Llama, one layer of which attends in a way of its own."""
    model = architectures.build("llama")
    model.model.layers[layer].self_attn.__class__ = kind
    return model


class Beside(LlamaAttention):
    """Attention that attends a second time through a module that is no layer, to its own tokens only."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(hidden_states, *args, **kwargs)
        attend: Any = self.aside
        aside, _ = attend(hidden_states, *args, **{**kwargs, CACHE: None, "attention_mask": None})
        return output + aside, weights
