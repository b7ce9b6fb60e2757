"""An independent KnormPress under ``step``, written from the rules as a function over the whole cache.

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
    """A compressor; factories return its method ``compress``."""

    def __init__(self, keep_ratio: float, prune_after: int = 512, skip_layers: tuple[int, ...] = ()) -> None:
        self.keep_ratio = keep_ratio
        self.prune_after = prune_after
        self.skip_layers = skip_layers

    def compress(self, layers: Layers) -> Layers:
        """Compress all layers after a pass."""
        return [self.layer(index, keys, values) for index, (keys, values) in enumerate(layers)]

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Compress one layer, ``[B, K, N, D]``."""
        held = keys.shape[2]
        if index in self.skip_layers or not self.evicts(held):
            return keys, values
        kept = self.choose(self.scores(keys), self.count(held))
        return self.take(keys, kept), self.take(values, kept)

    def evicts(self, held: int) -> bool:
        """Whether a layer with ``held`` entries evicts."""
        return held > self.prune_after and self.keep_ratio < 1

    def count(self, held: int) -> int:
        """Number of retained entries."""
        ratio = Fraction(str(self.keep_ratio))
        return max(1, -(-ratio.numerator * held // ratio.denominator))

    def scores(self, keys: Tensor) -> Tensor:
        """``[B, K, N]``: the highest are retained; NaN ranks lowest."""
        norm: Tensor = keys.double().norm(dim=-1)
        return -norm.nan_to_num(torch.inf, torch.inf)

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """``[B, K, count]``: indices of retained entries, ascending; of equal scores, the earlier."""
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        """Retained entries of keys or values."""
        return tensor.gather(2, kept[..., None].expand(-1, -1, -1, tensor.shape[3]))


def plain(kind: type[Plain], **declares: Any) -> Subject:
    """Subject of compressors of this class."""

    def factory(**options: Any) -> Callable[[Layers], Layers]:
        return kind(**options).compress

    return subject_of(kind.__name__, factory, {"score": "knorm", **declares})


class Hooked:
    """A press that acts once, after the first pass, by hooks on the attention modules, as kvpress does."""

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        self.plain = Plain(keep_ratio, prune_after)

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        """Whether the latest pass of a layer is the prompt's."""
        return bool(cache.layers[layer].keys.shape[2] == length)

    def after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Hook that compresses the layer's cache."""
        cache, index = kwargs[CACHE], module.layer_idx
        layer = cache.layers[index]
        length = kwargs["hidden_states"].shape[1]
        if self.is_prompt(cache, index, length):
            layer.keys, layer.values = self.plain.layer(index, layer.keys, layer.values)

    def __call__(self, model: Any) -> Any:
        """Context manager that hooks the press to a model."""
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
    """Subject of compressors of this class.

    The caller supplies positions, since the cache's length is the number held. Layers must hold equally many entries,
    since transformers uses one mask for all of them.
    """
    own = {"score": "knorm", "positions": "caller", "skip_layers": None, "padding": None}
    return subject_of(kind.__name__, kind, {**own, **declares})


SOUND = plain(Plain)
HOOKED = hooked(Hooked)
