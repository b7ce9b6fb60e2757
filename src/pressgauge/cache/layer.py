"""A layer of a pressed cache, with the interface of transformers' cache layers."""

from collections.abc import Iterable, Sequence
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
from pressgauge.storage import taken


@dataclass(frozen=True)
class Handed:
    """Tokens passed to a layer's cache in a pass, and the keys and values that it returned."""

    tokens: int
    keys: Tensor
    values: Tensor

    @classmethod
    def add(cls, before: "Handed | None", tokens: int, keys: Tensor, values: Tensor) -> "Handed":
        """``before``, from the same pass, extended by ``tokens``."""
        return cls(tokens + (0 if before is None else before.tokens), keys, values)


class PressedLayer(Entries, CacheLayerMixin):
    """One layer of a pressed cache.

    Args:
        press: the press.
        index: index of the layer.
        ledger: counts shared by all layers of the cache.
        latent: as in ``Entries``.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, press: Press, index: int, ledger: Ledger, latent: bool) -> None:
        # The base class of transformers assigns `keys` and `values`, which are computed here.
        super().__init__(press, index, ledger, latent)
        self.handed: Handed | None = None
        """Keys and values that attention has yet to read in the running pass of an attached press."""

    def mask(self, tokens: int) -> Tensor | None:
        """Attention mask of the last ``tokens`` queries: ``[B or 1, 1, tokens, N]`` bool.

        None if they attend to all entries. Valid only for a compressed layer with a pending eviction.
        """
        padding = self.ledger.padding
        if tokens == 1 and not any(padding):
            return None
        held = self.used - tokens
        mask = torch.ones((tokens, self.used), dtype=torch.bool, device=self.device).tril(held)[None, None]
        if any(padding):
            # Padding slots precede the entries alike in all heads, so the mask of the first head fits all.
            mask = mask & (self.storage.held("positions")[:, :1, None] >= 0)
            self._let_padding_attend(mask, tokens)
        return mask

    def _let_padding_attend(self, mask: Tensor, tokens: int) -> None:
        """Let each of the last ``tokens`` queries attend to itself in a mask, in place.

        A padding query without any key would give NaN, which later masks cannot remove.
        """
        mask[..., self.used - tokens :] |= torch.eye(tokens, dtype=torch.bool, device=self.device)

    def _ordered(self, name: str) -> Tensor | None:
        """A stored tensor in order of position; None before the first pass."""
        if not self.is_initialized:
            return None
        if not self.compressed:
            return self.storage[name]
        order = self.storage.held("positions").argsort(dim=-1, stable=True)
        return taken(self.storage[name], order)

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]  # computed here
        """``[B, K, N, D]`` in order of position, zero-padded on the left.

        None before the first pass.
        """
        self.settle()
        return self._ordered("keys")

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]  # computed here
        """``[B, K, N, D']``, in the order of ``keys``; None before the first pass."""
        self.settle()
        return self._ordered("values")

    @property
    def positions(self) -> Tensor | None:
        """``[B, K, N]``: positions of the entries in their row, ascending, -1 at padding slots.

        None before the first pass.
        """
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
        """Bytes of positions, scores and attention state.

        The record ``evicted_at`` takes 4 bytes more for each token seen and KV head.
        """
        self.settle()
        remembered = 0 if self._votes is None else self._votes.nbytes
        return remembered + self.storage.nbytes("positions", "ranks")

    def held_rows(self) -> Tensor:
        """Retained entries per KV head of each row: ``[B]``."""
        return torch.tensor(self.ledger.held)

    def check_crop(self, columns: int) -> None:
        """Raise ``ValueError`` if entries that a crop would need are gone, other than by eviction."""

    def get_seq_length(self) -> int:
        """Columns fed, evicted or not: the position of the next query."""
        return self.columns

    def get_mask_sizes(self, query: int | Tensor) -> tuple[int, int]:
        """Length and offset of the keys that attention reads in the next pass.

        As if the retained entries were the last columns.
        """
        self.settle()
        tokens = interface.query_length(query)
        return self.used + tokens, self.columns - self.used

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Reset to an empty layer; the cache resets the ledger."""
        self.__init__(self.press, self.index, self.ledger, self.latent)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch: row i becomes the former row ``beam_idx[i]``."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        if self.is_initialized:
            self._select(torch.arange(self.storage["keys"].shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select the rows at ``indices``."""
        if self.is_initialized:
            self._select(torch.arange(self.storage["keys"].shape[0])[indices.cpu()])


def in_each_layer(layers: Iterable[Any], name: str, argument: Any, rows: Sequence[int]) -> None:
    """Call a batch operation of each layer.

    Args:
        layers: the layers; those of linear attention have ``reorder_cache`` only, which takes any rows.
        name: the operation.
        argument: its argument.
        rows: former rows of the batch in their new order, as the operation selects them.
    """
    for layer in layers:
        if hasattr(layer, name):
            getattr(layer, name)(argument)
        else:
            layer.reorder_cache(torch.tensor(rows))


def storage_nbytes(layer: Any) -> int:
    """Bytes of key and value storage of one layer of any transformers cache; 0 if it has none."""
    if isinstance(layer, PressedLayer):
        return layer.nbytes
    stored = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(tensor.untyped_storage().nbytes() for tensor in stored if tensor is not None)


def held_tokens(layer: Any, seen: int) -> int:
    """Number of a row's ``seen`` tokens whose keys a layer without eviction stores.

    All of them, a window, or none.
    """
    keys = getattr(layer, "keys", None)
    return 0 if keys is None else min(seen, keys.shape[2])
