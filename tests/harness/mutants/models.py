"""Models that do not use their cache as a press expects."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from harness.mutants.mutant import Mutant
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import CACHE
from properties import test_proof


def another_name(model: Any) -> None:
    """The decoder takes its cache as ``memory``, and creates its own by default."""

    class Renamed(LlamaModel):
        def forward(self, input_ids: Any = None, memory: Any = None, **kwargs: Any) -> Any:
            kwargs.pop(CACHE, None)
            return super().forward(input_ids, **{CACHE: memory}, **kwargs)

    model.model.__class__ = Renamed


def _decoder(model: Any, replaced: Callable[[Any], Any]) -> None:
    """Replace the cache within the decoder."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return LlamaModel.forward(self, *args, **{**kwargs, CACHE: replaced(kwargs[CACHE])})

    model.model.__class__ = type("Broken", (LlamaModel,), {"forward": functools.wraps(LlamaModel.forward)(forward)})


def copied_cache(model: Any) -> None:
    """The decoder uses a copy of its cache."""

    _decoder(model, lambda cache: copy.deepcopy(cache))


def ignored_cache(model: Any) -> None:
    """The decoder accepts a cache and uses its own."""

    _decoder(model, lambda cache: None)


def added_layers(model: Any) -> None:
    """The decoder adds a layer to its cache, as Dory does."""

    def adding(cache: Any) -> Any:
        cache.layers.append(DynamicLayer())
        return cache

    _decoder(model, adding)


def _attention(model: Any, kind: type[LlamaAttention], layer: int = 1) -> None:
    attention = model.model.layers[layer].self_attn
    attention.__class__ = kind
    attention.passes = 0


def every_second_pass(model: Any) -> None:
    """Layer 1 passes its tokens to the cache in every second pass only."""

    class Skipping(LlamaAttention):
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            if self.passes % 2 == 0:
                kwargs[CACHE] = None
                # Such a layer attends to its own tokens only.
                kwargs["attention_mask"] = None
            return LlamaAttention.forward(self, *args, **kwargs)

    _attention(model, Skipping)


def own_attention(model: Any) -> None:
    """Layer 1 has its own attention, and passes its tokens to the cache."""

    class Bypassing(LlamaAttention):
        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            shape = (*hidden_states.shape[:2], -1, self.head_dim)
            states = [project(hidden_states).view(shape).transpose(1, 2) for project in (self.k_proj, self.v_proj)]
            kwargs[CACHE].update(*states, self.layer_idx)
            return hidden_states, None

    _attention(model, Bypassing)


class _Expanding:
    """A cache that stores the first KV head only, and returns it for all heads."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        kept = self.cache.update(keys[:, :1], values[:, :1], *args, **kwargs)
        return tuple(states.repeat(1, keys.shape[1], 1, 1) for states in kept)


def expanded_keys(model: Any) -> None:
    """Layer 1 expands keys after the cache has returned them, as MLA does."""

    class Latent(LlamaAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, CACHE: _Expanding(kwargs[CACHE])})

    _attention(model, Latent)


def two_calls(model: Any) -> None:
    """Layer 1 calls attention twice, as the Differential Transformer does."""

    class Twice(LlamaAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            one, weights = super().forward(*args, **kwargs)
            other, _ = super().forward(*args, **{**kwargs, CACHE: None, "attention_mask": None})
            return one - other, weights

    _attention(model, Twice)


def _masked(model: Any, mask: Callable[[int, int], torch.Tensor]) -> None:
    """Give layer 1 its own mask, a function of tokens seen before and in a pass."""

    class Masked(LlamaAttention):
        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            seen = kwargs[CACHE].get_seq_length(self.layer_idx)
            kwargs["attention_mask"] = mask(seen, hidden_states.shape[1])
            return super().forward(hidden_states, *args, **kwargs)

    _attention(model, Masked)


def _causal(seen: int, tokens: int) -> torch.Tensor:
    return torch.ones(1, 1, tokens, seen + tokens, dtype=torch.bool).tril(seen)


def own_mask(model: Any) -> None:
    """Layer 1 adds its own attention bias, as Doge does."""

    def biased(seen: int, tokens: int) -> torch.Tensor:
        bias = torch.linspace(-1, 0, seen + tokens, dtype=torch.float64).expand(1, 1, tokens, -1)
        return bias.masked_fill(~_causal(seen, tokens), torch.finfo(bias.dtype).min)

    _masked(model, biased)


def mask_per_head(model: Any) -> None:
    """Layer 1 has a mask for each head."""
    heads = model.config.num_attention_heads
    _masked(model, lambda seen, tokens: _causal(seen, tokens).expand(1, heads, -1, -1))


def own_window(model: Any) -> None:
    """Layer 1 has a window of four tokens, unknown to its configuration."""
    _masked(model, lambda seen, tokens: _causal(seen, tokens).triu(seen - 3))


LAW = test_proof.test_every_layer_passes_its_tokens_to_the_cache_and_attends_to_its_result


def broken_llama(mutant: Mutant) -> Any:
    """A new float64 Llama with the bug of a mutant."""
    model = architectures.build("llama")
    mutant.subject(model)
    return model


def broken(breaks: Callable[[Any], None], seen_in: str, sentence: str) -> Mutant:
    """Mutant of a Llama that misuses its cache, and a pattern of the refusal."""
    name, what = breaks.__name__.replace("_", "-"), inspect.cleandoc(breaks.__doc__ or "").removesuffix(".")
    return Mutant(f"model-{name}", what, seen_in, breaks, LAW, twin=test_proof.untouched, says=(sentence,))


_UNFED = r"layers 0-2 \(tokens of the pass that never reached the cache that it was given\)"
MODELS = [
    broken(another_name, "plausible", r"takes no key-value cache under a name that pressgauge knows"),
    broken(copied_cache, "plausible", _UNFED),
    broken(ignored_cache, "plausible", _UNFED),
    broken(added_layers, "transformers' Dory", r"was given a cache of 3 layers and made it one of 4"),
    broken(every_second_pass, "plausible", _UNFED.replace("layers 0-2", "layer 1")),
    broken(
        own_attention, "plausible", r"layer 1 \(no module of its own that attends through transformers' interface\)"
    ),
    broken(
        expanded_keys,
        "multi-head latent attention",
        r"layer 1 \(keys cached as \[1, 12, 8\] and attended to as \[2, 12, 8\]\)",
    ),
    broken(two_calls, "the Differential Transformer", r"layer 1 \(a second attention call in a pass\)"),
    broken(own_mask, "transformers' Doge", r"layer 1 \(a mask with values other than seen and unseen\)"),
    broken(
        mask_per_head,
        "plausible",
        r"layer 1 \(a mask of its own, \[1, 6, 12, 12\] where \[rows, 1, 12, 12\] is causal\)",
    ),
    broken(own_window, "plausible", r"layer 1 \(a mask that is not causal\)"),
]
