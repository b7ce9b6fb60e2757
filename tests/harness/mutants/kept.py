"""A transformers cache that evicts under ``step``, with all operations, written without the package.

Mutants override one method of its layer or of the cache.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from harness.mutants.plain import Plain
from pressgauge.conformance.subjects import Subject, subject_of

TENSORS = ("keys", "values", "positions", "scores")


class KeptLayer(CacheLayerMixin):
    """A layer that retains the entries of highest score, with their positions."""

    is_sliding = False
    is_croppable = True
    keys: Any
    values: Any
    positions: Tensor
    scores: Tensor

    def __init__(self, press: Plain, index: int) -> None:
        super().__init__()
        self.press, self.index = press, index
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.positions = torch.zeros((*key_states.shape[:2], 0), dtype=torch.long, device=self.device)
        self.scores = torch.zeros((*key_states.shape[:2], 0), dtype=torch.float64, device=self.device)
        self.is_initialized = True

    def score(self, keys: Tensor, positions: Tensor) -> Tensor:
        """``[B, K, q]``: scores of new entries."""
        return self.press.scores(keys)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        positions = torch.arange(self.seen, self.seen + key_states.shape[2], device=self.device)
        positions = positions.expand(key_states.shape[:3])
        new = (key_states, value_states, positions, self.score(key_states, positions))
        self.each(lambda old, name: torch.cat([old, new[TENSORS.index(name)]], dim=2))
        self.seen += key_states.shape[2]
        attended = self.attended(key_states.shape[2])
        self.evict()
        return attended

    def attended(self, new: int) -> tuple[Tensor, Tensor]:
        """Keys and values that a pass of ``new`` tokens attends to."""
        return self.keys, self.values

    def evict(self) -> None:
        """Evict after a pass."""
        held = self.keys.shape[2]
        if self.press.evicts(held):
            self.take(self.press.choose(self.scores, self.press.count(held)))

    def each(self, change: Any) -> None:
        """Replace each tensor by ``change(tensor, name)``."""
        for name in TENSORS:
            setattr(self, name, change(getattr(self, name), name))

    def take(self, kept: Tensor) -> None:
        """Retain the entries at these indices, ``[B, K, n]``."""

        def taken(tensor: Tensor, name: str) -> Tensor:
            index = kept if tensor.dim() == 3 else kept[..., None].expand(-1, -1, -1, tensor.shape[3])
            return tensor.gather(2, index)

        self.each(taken)

    def survivors(self, count: int) -> Tensor:
        """Which entries a crop by ``count`` tokens leaves, ``[B, K, N]``."""
        return self.positions < self.seen - count

    def crop(self, tokens_to_remove: int) -> None:
        if not self.is_initialized:
            return
        left = self.survivors(abs(tokens_to_remove))
        self.take(left.int().argsort(dim=-1, descending=True, stable=True)[..., : int(left[0, 0].sum())])
        self.seen = max(0, self.seen - abs(tokens_to_remove))

    def reset(self) -> None:
        self.__init__(self.press, self.index)  # type: ignore[misc]

    def rows(self, rows: Tensor) -> None:
        """Row i becomes the former row ``rows[i]``."""
        if self.is_initialized:
            self.each(lambda tensor, name: tensor[rows.to(tensor.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.rows(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        tokens = query if isinstance(query, int) else query.shape[0]
        held = self.keys.shape[2] if self.is_initialized else 0
        return held + tokens, self.seen - held

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class NewestLayer(KeptLayer):
    """A layer that retains the newest entries, which can be cropped at any token."""

    def score(self, keys: Tensor, positions: Tensor) -> Tensor:
        return positions.double()


class KeptCache(DynamicCache):
    """A cache of such layers."""

    def __init__(self, press: Plain, kind: type[KeptLayer], layers: int) -> None:
        super().__init__()
        self.layer_class_to_replicate = None
        self.layers: Any = [kind(press, index) for index in range(layers)]

    def crop(self, tokens_to_remove: int) -> None:
        """Refused if the heads of a layer would be left with different numbers of entries."""
        for layer in self.layers:
            if layer.is_initialized and len(layer.survivors(abs(tokens_to_remove)).sum(-1).unique()) > 1:
                raise ValueError(f"a crop by {-tokens_to_remove} leaves other numbers of entries in each head")
        for layer in self.layers:
            layer.crop(tokens_to_remove)


class Kept:
    """A compressor with such a cache."""

    layer: type[KeptLayer] = KeptLayer
    kind: type[KeptCache] = KeptCache
    press: type[Plain] = Plain

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        self.plain = self.press(keep_ratio, prune_after)

    def cache(self, config: Any) -> DynamicCache:
        """An empty cache for a model."""
        return self.kind(self.plain, self.layer, config.get_text_config(decoder=True).num_hidden_layers)


def kept(kind: type, **declares: Any) -> Subject:
    """Subject of ``Kept`` with a class of layers, of caches or of compressors instead of its own."""
    name = "layer" if issubclass(kind, KeptLayer) else "kind" if issubclass(kind, KeptCache) else ""
    own: type[Kept] = type(kind.__name__, (Kept,), {name: kind}) if name else kind
    newest = issubclass(own.layer, NewestLayer)
    given = {"schedule": "step", "skip_layers": None, "padding": None, "score": "position" if newest else "knorm"}
    return subject_of(kind.__name__, own, {**given, **declares})


KEPT = kept(KeptLayer)
NEWEST = kept(NewestLayer)
