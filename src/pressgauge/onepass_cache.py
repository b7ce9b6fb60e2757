"""The cache of a pass over a whole text, in which evictions are replayed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer

from pressgauge.cache import Handed
from pressgauge.history import first_evictions, retained
from pressgauge.models import interface
from pressgauge.rules import Window


class Noting(DynamicLayer):
    """A cache layer that records what it is passed in a single pass."""

    handed: Handed | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        tokens, before = key_states.shape[2], self.handed
        if before is not None:
            # A layer that passes its tokens in parts reads all of them.
            key_states = torch.cat([before.keys, key_states], dim=2)
            value_states = torch.cat([before.values, value_states], dim=2)
        self.handed = Handed.add(before, tokens, key_states, value_states)
        return key_states, value_states


_Both: Any = getattr(cache_utils, "LinearAttentionAndFullAttentionLayer", object)


class HybridNoting(Noting, _Both):  # type: ignore[misc]  # it differs between releases
    """A cache layer that records what it is passed, and keeps the states of linear attention."""


def noted(own: Any) -> bool:
    """Whether a layer of the model's own cache keeps the keys of all tokens, so that it can record them instead."""
    return type(own) is DynamicLayer or interface.keeps_both(own)


def noting(own: Any) -> Noting:
    """A layer that records what it is passed, in place of the model's own."""
    return HybridNoting(number_of_states=own.number_of_states) if interface.keeps_states(own) else Noting()


class OnePassCache(DynamicCache):
    """The cache of a pass that replays evictions instead of carrying them out.

    Attributes:
        evicted_at: ``[B, K, padding + T]`` of each layer with keys.
        padding: leading columns of these that are padding, which the pass is not fed.
        windows: windows of the layers that evict.
    """

    evicted_at: Mapping[int, Tensor]
    padding: int
    windows: Mapping[int, Window]

    def affected_from(self, tokens: int) -> list[int] | None:
        """Index of the first of the ``tokens`` queries of each row that misses an entry, ``tokens`` if none does.

        None without a press.
        """
        if not self.evicted_at:
            return None
        first: list[int] = (first_evictions(self.evicted_at.values()) - self.padding).clamp(max=tokens).tolist()
        return first

    def held(self, windows: Sequence[int | None]) -> list[int | None]:
        """Entries per KV head that each layer retains, at most those of the model's sliding window."""
        entries: list[int | None] = []
        for index, layer in enumerate(self.layers):
            noted = layer.handed if isinstance(layer, Noting) else layer
            keys = getattr(noted, "keys", None)
            held = None if keys is None else int(keys.shape[2])
            if index in self.evicted_at:
                table = self.evicted_at[index]
                held = retained(table, self.windows.get(index), [self.padding] * table.shape[0])
            window = windows[index] if index < len(windows) else None
            entries.append(held if held is None or window is None else min(held, window - 1))
        return entries
