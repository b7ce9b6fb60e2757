"""What is at work while a press is attached to a model: ``with press(model):``.

A hook on the decoder prepares the cache of each pass, and an attention function, registered with transformers for as
long as the press is attached, gives every layer its own mask and lets it evict once its attention has run.
"""

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressgauge.cache import PressedCache, PressedLayer, bypassed, check
from pressgauge.press import Press

_PREFIX = "pressgauge-"
_SERIAL = itertools.count()
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments of an attention call that change scores in ways that depend on which keys are there."""


class _Attachment:
    """A press at work on a model. Holds the cache of the pass that is running."""

    def __init__(self, press: Press, model: PreTrainedModel) -> None:
        self.press = press
        self.config = model.config
        self.decoder: Any = model.get_decoder()
        self.implementation: str = self.decoder.config._attn_implementation
        self.signature = inspect.signature(self.decoder.forward)
        self.prompt_length: int | None = None
        self.cache: PressedCache | None = None
        self.layers = layer_indices(self.decoder)

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Find or make the pass's cache, and learn from the mask which columns are padding."""
        kwargs = {**dict(zip(self.signature.parameters, args, strict=False)), **kwargs}
        use_cache = kwargs.get("use_cache")
        if not (module.config.use_cache if use_cache is None else use_cache):
            raise ValueError(
                "use_cache=False leaves a press nothing to compress, so the result would be the uncompressed one: "
                "leave it out, or leave the press"
            )
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = PressedCache(self.press, self.config, prompt_length=self.prompt_length)
            kwargs["past_key_values"] = cache
        elif isinstance(cache, PressedCache):
            if cache.press != self.press:
                raise ValueError(f"the cache belongs to {cache.press}, but the model carries {self.press}")
        elif isinstance(cache, DynamicCache):
            cache = PressedCache.adopt(cache, self.press, self.config, prompt_length=self.prompt_length)
        else:
            raise ValueError(f"a press cannot compress a {type(cache).__name__}: pass a DynamicCache, or none at all")
        inputs = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        cache.attached = _padding(kwargs.get("attention_mask"), cache, inputs.shape[0], inputs.shape[1])
        self.cache = cache
        return (), kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Let go of the pass's cache, also when the pass failed."""
        cache, self.cache = self.cache, None
        if cache is None:
            return
        cache.attached = None
        left_out = [layer.index for layer in cache._pressed if layer.pending]
        # After a failed pass there is no output, and its own error is the one to show.
        if left_out and output is not None:
            raise bypassed(left_out[0])

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over what the layer holds, by the model's own implementation; then the layer evicts."""
        own = implementation(self.implementation, module)
        index = self.layers.get(id(module))
        layer = self.cache.layers[index] if self.cache is not None and index is not None else None
        if not isinstance(layer, PressedLayer):
            return own(module, query, key, value, attention_mask, **kwargs)
        refuse_arguments(kwargs, layer.index)
        if layer.compressed:
            attention_mask = layer.mask(query.shape[2])
            if attention_mask is not None and self.implementation == "eager":
                least = torch.finfo(query.dtype).min
                attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, least)
        output = own(module, query, key, value, attention_mask, **kwargs)
        layer.observe(query, scaling(key, kwargs))
        layer.settle()
        return output


def _padding(mask: Tensor | Mapping[str, Tensor] | None, cache: PressedCache, rows: int, tokens: int) -> list[int]:
    """Per row, how many of the first columns are padding, after a pass of ``tokens`` columns."""
    before = cache.ledger.columns
    known = cache.ledger.padding or [0] * rows
    if mask is None:
        if any(known):
            raise ValueError("this cache holds padded rows: pass the attention_mask of all columns seen and new")
        return [0] * rows
    if isinstance(mask, Mapping) or mask.dim() != 2:
        raise ValueError("a press makes the masks of its layers itself: pass a 2-D attention_mask, or none")
    if mask.shape != (rows, before + tokens):
        raise ValueError(
            f"attention_mask must cover the {before} columns seen and the {tokens} new ones of {rows} rows, "
            f"got {list(mask.shape)}"
        )
    real = mask != 0
    if bool(real.all()):
        padding, counts = [0] * rows, [before + tokens] * rows
    else:
        padding, counts = (~real).cumprod(dim=-1).sum(dim=-1).tolist(), real.sum(dim=-1).tolist()
    for row in range(rows):
        if padding[row] + counts[row] != before + tokens:
            raise ValueError(f"row {row} has padding between or after its tokens: pad on the left")
        if min(padding[row], before) != known[row]:
            raise ValueError(
                f"row {row} of attention_mask has {padding[row]} columns of padding, in earlier passes {known[row]}"
            )
    return padding


def scaling(key: Tensor, kwargs: Mapping[str, Any]) -> float:
    """What an attention call multiplies products of queries and keys by."""
    scale = kwargs.get("scaling")
    return float(key.shape[-1] ** -0.5 if scale is None else scale)


def layer_indices(decoder: nn.Module) -> dict[int, int]:
    """The index of each layer, by the ``id`` of its modules that know it."""
    indices = {id(module): getattr(module, "layer_idx", None) for module in decoder.modules()}
    return {module: index for module, index in indices.items() if isinstance(index, int)}


def refuse_arguments(kwargs: Mapping[str, Any], index: int) -> None:
    """Raise a ``ValueError`` if attention is called with something that depends on which keys are there."""
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"layer {index} calls attention with {name}, which a press cannot pass on: add it to skip_layers"
            )


def implementation(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that ``module`` uses when the model's implementation has this name."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-any-return]


def refuse_architecture(decoder: Any) -> None:
    """Raise a ``ValueError`` if the layers of a model attend in a way of their own."""
    if not type(decoder)._can_set_attn_implementation():
        raise ValueError(
            f"{type(decoder).__name__} does not go through transformers' attention interface, so no press can work "
            "with it: without one, it can be measured with method='stepwise' or 'plain'"
        )


def refuse(press: Press, model: PreTrainedModel) -> None:
    """Raise a ``ValueError`` for what the press cannot do right by this model."""
    check(press, model.config)
    decoder = model.get_decoder()
    implementation = decoder.config._attn_implementation
    if str(implementation).startswith(_PREFIX):
        raise ValueError("the model already carries a press: leave that one first")
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"a press works with the attention implementations 'sdpa' and 'eager', got {implementation!r}: "
            "load the model with attn_implementation='sdpa'"
        )
    refuse_architecture(decoder)
    text = model.config.get_text_config(decoder=True)
    softcap = getattr(text, "attn_logit_softcapping", None)
    for module in decoder.modules():
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or index in press.skip_layers:
            continue
        reason = f"softcap {softcap}" if softcap else "attention sinks" if hasattr(module, "sinks") else None
        if reason:
            raise ValueError(
                f"layer {index} calls attention with {reason}, which a press cannot pass on: add {index} to skip_layers"
            )


@contextmanager
def registered(decoder: Any, attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """Let all layers of a decoder call ``attend`` for their attention while the context is open."""
    name = f"{_PREFIX}{next(_SERIAL)}"
    configs: dict[int, Any] = {id(part.config): part.config for part in decoder.modules() if hasattr(part, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    masks = ALL_MASK_ATTENTION_FUNCTIONS[decoder.config._attn_implementation]
    try:
        ALL_ATTENTION_FUNCTIONS.register(name, attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, masks)
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        # There is no public way to unregister.
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)


@contextmanager
def attach(press: Press, model: PreTrainedModel) -> Iterator[None]:
    """Compress every cache of ``model`` while the context is open. See ``Press.__call__``."""
    refuse(press, model)
    attachment = _Attachment(press, model)
    decoder = attachment.decoder
    owner: Any = model  # mypy takes every attribute of a module for a tensor or a module
    handles: list[Any] = []
    own_generate = model.__dict__.get("generate")
    generate: Callable[..., Any] | None = getattr(model, "generate", None)

    def declared(*args: Any, **kwargs: Any) -> Any:
        inputs = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids", kwargs.get("inputs_embeds")))
        attachment.prompt_length = inputs.shape[1] if isinstance(inputs, Tensor) and inputs.dim() > 1 else None
        try:
            return generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            attachment.prompt_length = None

    with registered(decoder, attachment.attend):
        try:
            handles.append(decoder.register_forward_pre_hook(attachment.before, with_kwargs=True))
            handles.append(decoder.register_forward_hook(attachment.after, always_call=True))
            if generate is not None:
                owner.generate = functools.wraps(generate)(declared)
            yield
        finally:
            for handle in handles:
                handle.remove()
            if generate is not None:
                if own_generate is None:
                    owner.__dict__.pop("generate", None)
                else:
                    owner.generate = own_generate
