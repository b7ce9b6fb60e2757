"""KnormPress under ``step``, written again from the rules as a function over the whole cache.

It shares no code with the package. Mutants override one method of it.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.conformance.versions import CACHE

Layers = list[tuple[Tensor, Tensor]]


class Plain:
    """One compressor; what a factory returns is its method ``compress``."""

    def __init__(self, keep_ratio: float, prune_after: int = 512, skip_layers: tuple[int, ...] = ()) -> None:
        self.keep_ratio = keep_ratio
        self.prune_after = prune_after
        self.skip_layers = skip_layers

    def compress(self, layers: Layers) -> Layers:
        """All layers after a pass."""
        return [self.layer(index, keys, values) for index, (keys, values) in enumerate(layers)]

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One layer, ``[B, K, N, D]``."""
        held = keys.shape[2]
        if index in self.skip_layers or not self.prunes(held):
            return keys, values
        kept = self.choose(self.scores(keys), self.count(held))
        return self.take(keys, kept), self.take(values, kept)

    def prunes(self, held: int) -> bool:
        """Whether a layer that holds so many is pruned."""
        return held > self.prune_after and self.keep_ratio < 1

    def count(self, held: int) -> int:
        """How many stay."""
        ratio = Fraction(str(self.keep_ratio))
        return max(1, -(-ratio.numerator * held // ratio.denominator))

    def scores(self, keys: Tensor) -> Tensor:
        """``[B, K, N]``: higher means keep; what has no norm goes first."""
        norm: Tensor = keys.double().norm(dim=-1)
        return -norm.nan_to_num(torch.inf, torch.inf)

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """``[B, K, count]``: which stay, in order; of equal ones the earlier."""
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        """The entries that stay, of keys or values."""
        return tensor.gather(2, kept[..., None].expand(-1, -1, -1, tensor.shape[3]))


def plain(kind: type[Plain], **declares: Any) -> Subject:
    """The subject whose compressors are of this kind."""

    def factory(**options: Any) -> Callable[[Layers], Layers]:
        return kind(**options).compress

    return subject_of(kind.__name__, factory, {"score": "knorm", **declares})


class Hooked:
    """A press that acts once, after the first pass, by hooks on the attention modules: kvpress's way, written again."""

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        self.plain = Plain(keep_ratio, prune_after)

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        """Whether the pass that has just gone through a layer is the prompt's."""
        return bool(cache.layers[layer].keys.shape[2] == length)

    def after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """The hook: cut the layer's cache."""
        cache, index = kwargs[CACHE], module.layer_idx
        layer = cache.layers[index]
        length = kwargs["hidden_states"].shape[1]
        if self.is_prompt(cache, index, length):
            layer.keys, layer.values = self.plain.layer(index, layer.keys, layer.values)

    def __call__(self, model: Any) -> Any:
        """Hooked to a model, as long as the context is open."""
        return _Hooks(self, model)


class _Hooks:
    def __init__(self, press: Hooked, model: Any) -> None:
        self.press, self.model = press, model
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for layer in self.model.model.layers:
            self.handles.append(layer.self_attn.register_forward_hook(self.press.after, with_kwargs=True))

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()


def hooked(kind: type[Hooked], **declares: Any) -> Subject:
    """The subject whose compressors are of this kind.

    Positions are the caller's, since the cache's length is what it holds; and layers must hold equally many, since
    transformers makes one mask for all of them.
    """
    own = {"score": "knorm", "positions": "caller", "skip_layers": None, "padding": None}
    return subject_of(kind.__name__, kind, {**own, **declares})


SOUND = plain(Plain)
HOOKED = hooked(Hooked)
