"""A layer of a pressed cache, as transformers and attention see it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from pressgauge.cache.entries import Entries
from pressgauge.history import History
from pressgauge.models import interface
from pressgauge.presses.base import Press
from pressgauge.rules import Ledger


@dataclass(frozen=True)
class Handed:
    """What a layer's cache was handed in a pass, in tokens, and what it returned for attention to read."""

    tokens: int
    keys: Tensor
    values: Tensor

    @classmethod
    def add(cls, before: "Handed | None", tokens: int, keys: Tensor, values: Tensor) -> "Handed":
        """What was handed before in the same pass, and ``tokens`` more."""
        return cls(tokens + (0 if before is None else before.tokens), keys, values)


class PressedLayer(Entries, CacheLayerMixin):
    """One layer of a pressed cache.

    Args:
        press: the press.
        index: index of the layer.
        ledger: the counts that all layers of the cache share.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, press: Press, index: int, ledger: Ledger) -> None:
        # The base class of transformers assigns `keys` and `values`, which are computed here.
        super().__init__(press, index, ledger)
        self.handed: Handed | None = None
        """While an attached pass runs, what attention has yet to read."""

    def mask(self, tokens: int) -> Tensor | None:
        """Which stored entries the last ``tokens`` queries may see: ``[B or 1, 1, tokens, N]`` bool, None for all.

        Only for a compressed layer whose last pass has not been settled.
        """
        padding = self.ledger.padding
        if tokens == 1 and not any(padding):
            return None
        held = self.used - tokens
        mask = torch.ones((tokens, self.used), dtype=torch.bool, device=self.device).tril(held)[None, None]
        if any(padding):
            # Filler lies in front of every head's entries alike, so that the first head speaks for all.
            mask = mask & (self.storage.held("positions")[:, :1, None] >= 0)
            # A query of padding sees itself: a row without any key would be NaN, which no mask takes away again.
            itself = torch.eye(tokens, dtype=torch.bool, device=self.device)
            mask[..., held:] |= itself
        return mask

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        """``[B, K, N, D]``, in order of position; shorter rows have zeros in front. None before the first pass."""
        self.settle()
        return self._ordered("keys")

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """``[B, K, N, D]``, in step with ``keys``."""
        self.settle()
        return self._ordered("values")

    @property
    def positions(self) -> Tensor | None:
        """``[B, K, N]``: the own positions of what is held, ascending, -1 at filler. None before the first pass."""
        self.settle()
        return self._stored_positions().long().sort(dim=-1).values if self.is_initialized else None

    @property
    def evicted_at(self) -> Tensor | None:
        """``[B, K, columns]`` int32, see ``pressgauge.history``. None before the first pass."""
        self.settle()
        if not self.is_initialized:
            return None
        rows, heads = self.storage["keys"].shape[:2]
        history = self._history or History(rows, heads, self.device)
        return history.evicted_at(self.columns, self.ledger.padding)

    @property
    def nbytes(self) -> int:
        """Bytes of key and value storage."""
        self.settle()
        return self.storage.nbytes("keys", "values")

    @property
    def overhead_nbytes(self) -> int:
        """Bytes of positions and scores, and of what is remembered of queries."""
        self.settle()
        remembered = 0 if self._votes is None else self._votes.nbytes
        return remembered + self.storage.nbytes("positions", "ranks")

    def get_seq_length(self) -> int:
        """Columns fed, whatever is held of them: the position of the next query."""
        return self.columns

    def get_mask_sizes(self, query: int | Tensor) -> tuple[int, int]:
        """Length and offset of what the next pass hands to attention, as if the last columns were what is held."""
        self.settle()
        tokens = interface.query_length(query)
        return self.used + tokens, self.columns - self.used

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Forget everything; the cache resets the ledger."""
        self.__init__(self.press, self.index, self.ledger)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make row i what row ``beam_idx[i]`` was."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        if self.is_initialized:
            self._select(torch.arange(self.storage["keys"].shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at ``indices``."""
        if self.is_initialized:
            self._select(torch.arange(self.storage["keys"].shape[0])[indices.cpu()])


def storage_nbytes(layer: Any) -> int:
    """Bytes of key and value storage of one layer of any transformers cache; 0 for one without keys and values."""
    if isinstance(layer, PressedLayer):
        return layer.nbytes
    stored = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(tensor.untyped_storage().nbytes() for tensor in stored if tensor is not None)


def held_tokens(layer: Any, seen: int) -> int:
    """How many of a row's ``seen`` tokens a layer that no press prunes has the keys of: all, a window, or none."""
    keys = getattr(layer, "keys", None)
    return 0 if keys is None else min(seen, keys.shape[2])
