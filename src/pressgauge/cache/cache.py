"""``PressedCache``: a transformers ``DynamicCache`` whose layers evict under a press.

In a pass, attention reads all retained entries plus the new ones; eviction follows. A cache is not told when attention
has run, so a layer's eviction stays pending until the next layer is updated or the cache is read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from pressgauge.cache.layer import Handed, PressedLayer, held_tokens, in_each_layer, storage_nbytes
from pressgauge.cache.plain import check_pass, uneven
from pressgauge.cache.windowed import WindowedLayer, pressed_layer
from pressgauge.history import NEVER, History, count_evictions
from pressgauge.models import interface, latents, support
from pressgauge.models.windows import owners, windows
from pressgauge.presses.base import Press
from pressgauge.rules import Ledger

ASSISTED = "assisted decoding feeds candidate tokens and takes some back, and what they evicted is lost"


def _meet(press: Press, config: PretrainedConfig) -> tuple[Press, list[Any]]:
    """The press with ``skip_layers`` resolved, and the empty layers of the model's own cache.

    Raises:
        ValueError: if the press does not support the model.
    """
    layers = interface.layer_classes(config)
    return support.of_config(config, layers).resolve(press), layers


class _Readings:
    """Read access to a pressed cache; it completes a pending eviction and changes nothing else."""

    ledger: Ledger
    layers: list[Any]

    @property
    def pressed(self) -> list[PressedLayer]:
        """Layers that evict."""
        return [layer for layer in self.layers if isinstance(layer, PressedLayer)]

    @property
    def seen(self) -> int:
        """Tokens fed so far, of the longest row."""
        return max(self.ledger.seen, default=0)

    @property
    def held(self) -> list[int]:
        """Retained entries per KV head of each layer, of the longest row."""
        return [int(self.held_rows(layer).max()) if self.ledger.padding else 0 for layer in range(len(self.layers))]

    def held_rows(self, layer: int) -> Tensor:
        """Retained entries per KV head of a layer, of each row: ``[B]``."""
        own = self.layers[layer]
        if isinstance(own, PressedLayer):
            return own.held_rows()
        return torch.tensor([held_tokens(own, seen) for seen in self.ledger.seen])

    @property
    def evicted_at(self) -> list[Tensor]:
        """Eviction history: ``[B, K, columns]`` int32 per layer, see ``pressgauge.history``.

        Empty before the first pass. Skipped layers evict nothing. A layer without keys has a table with one head.
        """
        if not self.ledger.columns:
            return []
        tables = []
        for layer in self.layers:
            if isinstance(layer, PressedLayer):
                table = layer.evicted_at
            else:
                keys = getattr(layer, "keys", None)
                heads, device = (1, torch.device("cpu")) if keys is None else (keys.shape[1], keys.device)
                history = History(len(self.ledger.padding), heads, device)
                table = history.evicted_at(self.ledger.columns, self.ledger.padding)
            # A first pass in progress, or one that failed, has not reached every layer.
            if table is None:
                return []
            tables.append(table)
        return tables

    @property
    def evictions(self) -> int:
        """Entries evicted so far, over layers, KV heads and rows."""
        return count_evictions(self.evicted_at)

    @property
    def nbytes(self) -> int:
        """Bytes of key and value storage of all layers."""
        return sum(storage_nbytes(layer) for layer in self.layers)

    @property
    def overhead_nbytes(self) -> int:
        """Bytes of positions, scores and attention state, without the record behind ``evicted_at``."""
        return sum(layer.overhead_nbytes for layer in self.pressed)


class PressedCache(_Readings, DynamicCache):
    """A compressed cache for one batch of sequences, usually made by ``press.cache(config)``.

    Args:
        press: the press.
        config: the model's configuration.
        prompt_length: columns of the prompt; by default the first pass is the prompt.
        unpadded: asserts that no row is padded; required for a plain cache with more than one row.

    Raises:
        ValueError: if the press does not support the model.
    """

    def __init__(
        self, press: Press, config: PretrainedConfig, *, prompt_length: int | None = None, unpadded: bool = False
    ) -> None:
        super().__init__()
        self._begin(*_meet(press, config), config, prompt_length=prompt_length, unpadded=unpadded)

    @classmethod
    def adopt(
        cls, cache: DynamicCache, press: Press, config: PretrainedConfig, *, prompt_length: int | None = None
    ) -> "PressedCache":
        """Convert an empty ``DynamicCache`` into a pressed one, in place.

        Raises:
            ValueError: if it is not empty, is a subclass or offloads, or the press does not support the model.
        """
        if type(cache) is not DynamicCache or cache.offloading:
            raise ValueError(
                f"a press cannot compress a {type(cache).__name__} of this kind (a subclass, or with offloading): "
                "pass a plain DynamicCache, or none at all"
            )
        if cache.get_seq_length():
            raise ValueError(
                f"the cache holds {cache.get_seq_length()} tokens that no press has seen: start from an empty one"
            )
        met = _meet(press, config)
        cache.__class__ = cls
        assert isinstance(cache, PressedCache)
        cache._begin(*met, config, prompt_length=prompt_length, unpadded=False)
        return cache

    def _begin(
        self,
        press: Press,
        layers: list[Any],
        config: PretrainedConfig,
        *,
        prompt_length: int | None,
        unpadded: bool,
    ) -> None:
        self.layers: list[Any] = layers
        self.press = press
        self.config = config
        self.ledger = Ledger(press, prompt_length)
        self.unpadded = unpadded
        self.attached: list[int] | None = None
        """Columns of padding per row after the running pass of an attached press, else None."""
        self.fed: Tensor | None = None
        """Tokens fed by ``pressgauge.generate``: ``[B, T]``, None if fed otherwise."""
        self._alone = support.apart(config) is not None
        self._declared = prompt_length
        self._open: PressedLayer | None = None
        self._first = next((i for i, layer in enumerate(self.layers) if isinstance(layer, DynamicLayer)), 0)
        latent, windowed, reading = latents.caches_latents(config), windows(config, layers), owners(config)
        for index in range(len(self.layers)):
            if index not in press.skipped and index not in reading:
                own, window = self.layers[index], windowed.get(index)
                self.layers[index] = pressed_layer(press, index, self.ledger, latent, window, own)
                self.layers[index].lent = index in reading.values()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add a pass's entries to a layer and return its keys and values for attention.

        Raises:
            RuntimeError: if an earlier pass was interrupted.
            ValueError: before storing anything, if the number of rows changed, or rows of a plain cache may be padded.
        """
        if self._open is not None:
            # Attached, a layer whose attention has not run by now never runs it; the end of the pass reports it.
            if self.attached is None:
                self._open.settle()
            self._open = None
        if layer_idx == self._first:
            rows, _, tokens, _ = key_states.shape
            self._start_pass(rows, tokens)
        layer = self.layers[layer_idx]
        if isinstance(layer, PressedLayer):
            self._open = layer
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.attached is not None and isinstance(layer, PressedLayer):
            layer.handed = Handed.add(layer.handed, key_states.shape[2], keys, values)
        return keys, values

    def _start_pass(self, rows: int, tokens: int) -> None:
        seen = self.ledger.columns
        skipped = [layer for layer in self.layers if type(layer) is DynamicLayer and layer.is_initialized]
        missed = any(layer.columns != seen for layer in self.pressed)
        if missed or any(layer.get_seq_length() != seen for layer in skipped):
            raise RuntimeError("an earlier pass through this cache was interrupted: start again with a new cache")
        if self.ledger.padding and len(self.ledger.padding) != rows:
            raise ValueError(f"this cache serves {len(self.ledger.padding)} rows, got a pass of {rows}")
        if self.attached is not None:
            padding = self.attached
        else:
            padding = self.ledger.padding or [0] * rows
            check_pass(self.layers, self.ledger, tokens, padding, unpadded=self.unpadded, alone=self._alone)
        self.ledger.feed(tokens, padding)

    def get_mask_sizes(self, query: int | Tensor, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that attention reads in the next pass.

        Raises:
            ValueError: if one mask does not fit all layers of a plain cache.
        """
        tokens = interface.query_length(query)
        if self.attached is not None:
            # The mask of an uncompressed cache. It fits layers that have evicted nothing; the others make their own.
            layer, columns = self.layers[layer_idx], self.ledger.columns
            if isinstance(layer, PressedLayer):
                stored = layer.window.stores(columns) if isinstance(layer, WindowedLayer) else columns
                return stored + tokens, columns - stored
            return super().get_mask_sizes(query, layer_idx)  # type: ignore[arg-type]  # transformers 5.2 passes positions
        implementation = self.config.get_text_config(decoder=True)._attn_implementation
        sliding = bool(self.is_sliding[layer_idx])
        given = {"sliding": sliding, "alone": self._alone}
        if uneven(self.layers, self.ledger.columns, tokens, implementation, **given) and sliding:
            # A single token attends to all that a layer holds, for which transformers makes no mask of this size.
            return tokens, self.ledger.columns
        return super().get_mask_sizes(query, layer_idx)  # type: ignore[arg-type]  # transformers 5.2 passes positions

    def _settle(self) -> None:
        for layer in self.pressed:
            layer.settle()

    def reset(self) -> None:
        """Reset to an empty cache."""
        layers = interface.layer_classes(self.config)
        self._begin(self.press, layers, self.config, prompt_length=self._declared, unpadded=self.unpadded)

    def crop(self, length: int) -> None:
        """Crop to ``length`` columns, or by ``-length`` if negative, as transformers' caches do.

        Raises:
            ValueError: if entries were evicted after that point, the press has used queries, or in assisted decoding.
        """
        if self.press.keep_ratio < 1 and interface.in_assisted_decoding():
            raise ValueError(f"{ASSISTED}: generate without assistant_model and prompt_lookup_num_tokens")
        before, length = self.ledger.columns, int(length)  # some releases of transformers give a tensor
        columns = length if length > 0 else max(0, before + length)
        if columns >= before:
            return
        if self.press.needs_queries:
            raise ValueError(
                f"cannot crop to {columns} tokens: {type(self.press).__name__} has counted the attention of the tokens "
                "after them; start again with a new cache"
            )
        self._settle()
        for layer in self.pressed:
            layer.check_crop(columns)
        for index, table in enumerate(self.evicted_at):
            last = table.masked_fill(table == NEVER, 0).max()
            if last > columns:
                raise ValueError(
                    f"cannot crop to {columns} tokens: layer {index} evicted entries after token {int(last)}, "
                    "which cannot be restored; crop before anything is evicted, or start again with a new cache"
                )
        # transformers' own layers first, since some of them raise.
        for layer in self.layers:
            # After an interrupted first pass one may hold nothing yet.
            if isinstance(layer, PressedLayer) or (interface.caches_keys(layer) and not layer.is_initialized):
                continue
            layer.crop(columns - before)
            if getattr(layer, "keys", None) is not None:
                # transformers keeps a view, which keeps the whole storage alive.
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        for layer in self.pressed:
            layer.crop_to(columns)
        self.ledger.crop(columns)
        self.fed = None if self.fed is None else self.fed[:, :columns]

    def _select_rows(self, rows: Sequence[int]) -> None:
        self.ledger.select(rows)
        self.fed = None if self.fed is None else self.fed[list(rows)]
        if self.attached is not None:
            self.attached = [self.attached[row] for row in rows]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch for beam search: row i becomes the former row ``beam_idx[i]``."""
        self._settle()
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select_rows(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        self._settle()
        rows = [row for row in range(len(self.ledger.padding)) for _ in range(repeats)]
        in_each_layer(self.layers, "batch_repeat_interleave", repeats, rows)
        self._select_rows(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select the rows at ``indices``."""
        self._settle()
        rows = torch.arange(len(self.ledger.padding))[indices.cpu()].tolist()
        in_each_layer(self.layers, "batch_select_indices", indices, rows)
        self._select_rows(rows)
