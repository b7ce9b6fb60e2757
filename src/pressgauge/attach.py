"""Attachment of a press to a model: ``with press(model):``.

A hook on the decoder prepares the cache of each pass. Attention of every layer is routed through
``_Attachment.attend``, which supplies the layer's own mask and triggers its eviction once attention has run. Every pass
ends with a check that this happened: each layer that evicts received the tokens of the pass, once, and attended to its
own entries.
"""

import copy
import functools
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pressgauge.cache import ASSISTED, PressedCache, PressedLayer, pressed
from pressgauge.models import interface, latents, support
from pressgauge.models.support import Support
from pressgauge.presses.base import Press
from pressgauge.proof import OUTSIDE, UNFED, Problems, misfit, padding_of, strange_mask, warn_vacuous
from pressgauge.rules import Window
from pressgauge.softmax import softmax_of

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
"""Arguments for assisted decoding, which feeds candidate tokens and crops rejected ones."""

_IMPLEMENTATIONS = ("sdpa", "eager")


class _Pass(threading.local):
    """State of a thread's running pass. Threads may share one attached model."""

    prompt_length: int | None = None
    mask: Tensor | None = None
    """2-D attention mask passed to the whole model; a wrapper passes another to its decoder."""
    cache: PressedCache | None = None
    tokens: int
    layers: int
    problems: Problems
    attended: set[int]
    """Layers whose attention has run."""
    checked: tuple[object, Window | None]
    """The mask checked last and the window of its layer; layers share one for each window."""


class _Attachment:
    """A press attached to a model."""

    def __init__(self, press: Press, model: PreTrainedModel, supported: Support) -> None:
        self.press = press
        self.config = model.config
        self.support = supported
        self.decoder: Any = interface.decoder_of(model)
        self.implementation: str = self.decoder.config._attn_implementation
        self.cache_name = interface.cache_argument(model)
        self.layers = interface.layer_indices(self.decoder)
        self.attending = supported.evicting(press.skipped)
        self.running = _Pass()
        self.attached = True
        self.passes = 0
        self.met_eviction = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Attachment":
        """Detached copy: the hooks of a copied model do nothing."""
        copied = copy.copy(self)
        copied.attached = False
        return copied

    def enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-forward hook of the whole model: record its 2-D mask."""
        # A wrapper derives other masks from it before its decoder runs, at their length without compression.
        if not self.attached:
            return
        given = interface.named(module, args, kwargs)
        mask = given.get("attention_mask")
        self.running.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        for cache in interface.pop_caches(given):
            if isinstance(cache, PressedCache):
                cache.attached = cache.ledger.padding

    def leave(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the whole model: release its cache, also after a failed pass."""
        self.running.mask = None
        for cache in interface.pop_caches(interface.named(module, args, kwargs)):
            if isinstance(cache, PressedCache):
                cache.attached = None

    def before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Pre-forward hook of the decoder: find or create the cache, read padding off the mask."""
        if not self.attached:
            return None
        kwargs = interface.named(module, args, kwargs)
        use_cache = kwargs.get("use_cache")
        if not (getattr(module.config, "use_cache", True) if use_cache is None else use_cache):
            raise ValueError(
                "use_cache=False leaves a press nothing to compress, so the result would be the uncompressed one: "
                "leave it out, or leave the press"
            )
        given = interface.pop_caches(kwargs)
        if len(given) > 1:
            raise ValueError(f"a pass was given {len(given)} caches: pass one")
        cache = pressed(given[0] if given else None, self.press, self.config, self.running.prompt_length)
        kwargs[self.cache_name] = cache
        inputs = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Mapping):
            # A wrapper built one mask per layer type from its own 2-D mask.
            mask = self.running.mask
        cache.attached = padding_of(mask, cache, inputs.shape[0], inputs.shape[1])
        running = self.running
        running.cache, running.tokens, running.attended, running.checked = (
            cache,
            inputs.shape[1],
            set(),
            (running, None),
        )
        running.layers = len(cache.layers)
        self.met_eviction |= any(layer.compressed for layer in cache.pressed)
        running.problems = Problems(self.support, self.decoder, self.press.skipped)
        return (), kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the decoder, also after a failure: release the cache, check all layers."""
        cache, self.running.cache = self.running.cache, None
        if cache is None:
            return
        cache.attached = None
        pressed, problems = cache.pressed, self.running.problems
        self.support.check_added(self.running.layers, len(cache.layers))
        if len(self.running.attended) == len(self.attending) and not problems.reasons:
            self.passes += output is not None
            return
        for index in self.attending:
            if index not in self.running.attended:
                unfed = interface.cached_layer(cache, self.support.owner(index)).handed is None
                problems.reasons.setdefault(index, UNFED if unfed else OUTSIDE)
        for layer in pressed:
            layer.handed = None
        # A failed pass has no output, and raises its own error.
        if output is not None:
            raise problems.error()

    def attend(
        self,
        own: interface.Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Run ``own``, the model's attention function, over the layer's entries, then evict."""
        running = self.running
        cache, index = running.cache, self.layers.get(id(module))
        layer = None
        if cache is not None and index is not None:
            self.support.check_index(index)
            layer = interface.cached_layer(cache, self.support.owner(index))
        if not isinstance(layer, PressedLayer):
            return own(module, query, key, value, attention_mask, **kwargs)
        assert cache is not None and index is not None
        reason = misfit(module, kwargs, index in running.attended, layer.handed, running.tokens, query, key, value)
        # Layers share a mask, but whether no mask means causal attention is up to each.
        window = self.support.windows.get(layer.index)
        if reason is None and (
            attention_mask is None or attention_mask is not running.checked[0] or window != running.checked[1]
        ):
            reason = self._strange(module, attention_mask, query.shape[2], cache, window)
            running.checked = attention_mask, window
        if reason is not None:
            plainly = functools.partial(own, module, query, key, value, attention_mask, **kwargs)
            return running.problems.go_on(index, reason, plainly)
        if layer.compressed:
            mask = layer.mask(query.shape[2])
            if mask is not None and mask.shape[1] > 1:
                mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
            if self.implementation == "eager" and attention_mask is not None:
                # Some models add the mask without checking for None.
                mask = torch.ones_like(key[:1, :1, None, :, 0], dtype=torch.bool) if mask is None else mask
                least = torch.finfo(query.dtype).min
                attention_mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, least)
            else:
                attention_mask = mask
        output = own(module, query, key, value, attention_mask, **kwargs)
        if index == layer.index:
            if self.press.needs_queries and not cache.ledger.finished:
                assert layer.handed is not None
                query = latents.scored_queries(module, query, layer.handed.keys, layer.handed.values)
            layer.observe(query, interface.scaling(key, kwargs), softmax_of(own, kwargs))
        if index == self.support.readers(layer.index)[-1]:
            layer.settle()
            layer.handed = None
        running.attended.add(index)
        return output

    def _strange(
        self, module: nn.Module, mask: Tensor | None, tokens: int, cache: PressedCache, window: Window | None = None
    ) -> str | None:
        """Why the mask of a pass is not supported, or None if it is."""
        # Reading its values synchronises an accelerator, so there only the mask of the first pass is checked.
        first = cache.ledger.columns == tokens
        if mask is not None and mask.device.type != "cpu" and not first:
            return None
        return strange_mask(module, mask, tokens, cache.ledger.columns, cache.ledger.padding, window)

    def generate(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``model.generate`` with its input as the prompt."""
        settings = kwargs.get("generation_config")
        for name in _ASSISTED:
            if kwargs.get(name) is not None or getattr(settings, name, None) is not None:
                raise ValueError(f"{ASSISTED}: leave {name} out")
        inputs = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids", kwargs.get("inputs_embeds")))
        self.running.prompt_length = inputs.shape[1] if isinstance(inputs, Tensor) and inputs.dim() > 1 else None
        try:
            return own(*args, **kwargs)
        finally:
            self.running.prompt_length = None


class _Generate:
    """Replacement of ``model.generate`` while a press is attached."""

    def __init__(self, attachment: _Attachment, model: PreTrainedModel) -> None:
        self.attachment, self.model = attachment, model
        self.own: Any = cast(Any, model).generate
        functools.update_wrapper(self, self.own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.attachment.generate(self.own, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The original ``generate``, bound to the copied model."""
        kind: Any = type(self.model)
        return types.MethodType(kind.generate, copy.deepcopy(self.model, memo))


def refuse_implementation(decoder: Any) -> None:
    """Raise ``ValueError`` if a decoder's attention cannot be routed through a press."""
    if interface.carries_a_press(decoder):
        raise ValueError("the model already carries a press: leave that one first")
    implementation = decoder.config._attn_implementation
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"a press works with the attention implementations 'sdpa' and 'eager', got {implementation!r}: "
            "load the model with attn_implementation='sdpa'"
        )


def meet(press: Press, model: PreTrainedModel) -> tuple[Press, Support]:
    """The press with ``skip_layers`` resolved, and the model's support for attached presses.

    Raises:
        ValueError: if the press does not support the model; the message lists all reasons.
    """
    supported = support.of_model(model)
    press = supported.resolve(press)
    refuse_implementation(interface.decoder_of(model))
    return press, supported


@contextmanager
def attach(press: Press, model: PreTrainedModel) -> Iterator[None]:
    """Compress every cache of ``model`` while the context is open. See ``Press.__call__``."""
    press, supported = meet(press, model)
    attachment = _Attachment(press, model, supported)
    decoder = attachment.decoder
    owner: Any = model  # mypy types every attribute of a module as a tensor or a module
    handles: list[Any] = []
    own_generate = model.__dict__.get("generate")
    with interface.routed(decoder, attachment.attend):
        try:
            if decoder is not model:
                handles.append(owner.register_forward_pre_hook(attachment.enter, with_kwargs=True))
                handles.append(owner.register_forward_hook(attachment.leave, with_kwargs=True, always_call=True))
            handles.append(decoder.register_forward_pre_hook(attachment.before, with_kwargs=True))
            handles.append(decoder.register_forward_hook(attachment.after, always_call=True))
            if hasattr(model, "generate"):
                owner.generate = _Generate(attachment, model)
            yield
        finally:
            for handle in handles:
                handle.remove()
            if own_generate is None:
                owner.__dict__.pop("generate", None)
            else:
                owner.generate = own_generate
    if not attachment.met_eviction:
        warn_vacuous(press, attachment.passes)
