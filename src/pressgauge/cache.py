"""``PressedCache``: a transformers ``DynamicCache`` whose layers evict entries by a press's rules.

A pass hands attention everything that is held plus the new entries; only then is anything evicted. A cache does not
learn when attention has run, so a layer settles its eviction when the next layer is updated or somebody looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from pressgauge import interface, support
from pressgauge.budget import Ledger
from pressgauge.history import NEVER, History, count_evictions, writable
from pressgauge.press import FILLER, Press, choose, rank_entries, spare
from pressgauge.votes import Attention, Votes

_SLACK = 50
"""Storage may exceed what is held by one part in this many."""

ASSISTED = "assisted decoding feeds candidate tokens and takes some back, and what they evicted is lost"
_ATTACHED = "use with press(model):"


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


class PressedLayer(CacheLayerMixin):
    """One layer's entries. Until the first eviction it stores exactly what transformers' ``DynamicLayer`` would.

    After that, entries lie in slots in any order, ``positions`` says whose they are, and where scores are fixed an
    evicted entry's slot is taken by another entry instead of moving the whole storage.

    Args:
        press: the press.
        index: index of the layer.
        ledger: the counts that all layers of the cache share.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, press: Press, index: int, ledger: Ledger) -> None:
        # The base class assigns `keys` and `values`, which are computed here.
        self.press = press
        self.index = index
        self.ledger = ledger
        self.is_initialized = False
        self.columns = 0
        self.used = 0
        self.pending = False
        self.handed: Handed | None = None
        """While an attached pass runs, what attention has yet to read."""
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._positions: Tensor | None = None
        self._ranks: Tensor | None = None
        self._ranked = 0
        self._history: History | None = None
        self._votes: Votes | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, in the shape, dtype and device of the first entries."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys, self._values = key_states[:, :, :0], value_states[:, :, :0]
        self._votes = self.press.votes() if self.press.needs_queries else None
        self.is_initialized = True

    @property
    def compressed(self) -> bool:
        """Whether anything has been evicted."""
        return self._positions is not None

    def _offset(self) -> Tensor | int:
        """What to take from a column's number to get the row's own position."""
        padding = self.ledger.padding
        return torch.tensor(padding, device=self.device)[:, None, None] if any(padding) else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add ``[B, K, q, D]`` entries and return all that is held, ``[B, K, N + q, D]``, in the order of storage."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self._keys is not None and self._values is not None
        rows, heads, tokens, _ = key_states.shape
        start, end = self.used, self.used + tokens
        moves = not self.compressed or self._differentiated(key_states)
        if moves:
            self._keys = torch.cat([self._keys[:, :, :start], key_states], dim=2)
            self._values = torch.cat([self._values[:, :, :start], value_states], dim=2)
        if self.compressed:
            self._reserve(end)
            assert self._positions is not None
            self._positions[:, :, start:end] = self._own_positions(self.columns, tokens, rows, heads)
        if not moves:
            self._keys[:, :, start:end] = key_states
            self._values[:, :, start:end] = value_states
        self.columns += tokens
        self.used = end
        self.pending = True
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _differentiated(self, keys: Tensor) -> bool:
        """Whether a backward pass may need what is stored, so that nothing may be written over."""
        assert self._keys is not None
        return torch.is_grad_enabled() and (keys.requires_grad or self._keys.requires_grad)

    def _own_positions(self, start: int, tokens: int, rows: int, heads: int) -> Tensor:
        positions = torch.arange(start, start + tokens, device=self.device)
        if any(self.ledger.padding):
            positions = (positions - self._offset()).clamp(min=-1)
        return positions.expand(rows, heads, tokens)

    def _rank(self, keys: Tensor, positions: Tensor) -> Tensor:
        return rank_entries(self.press, keys, positions.long(), self.index, self._votes, first=not self._ranked)

    def _rank_new(self) -> None:
        """Rank the entries that came since the last eviction."""
        if self._ranks is None or self._ranked == self.used:
            return
        assert self._keys is not None and self._positions is not None
        new = slice(self._ranked, self.used)
        self._ranks[:, :, new] = self._rank(self._keys[:, :, new], self._positions[:, :, new])
        self._ranked = self.used

    def _buffers(self) -> dict[str, Tensor]:
        names = ("_keys", "_values", "_positions", "_ranks")
        return {name: buffer for name in names if (buffer := getattr(self, name)) is not None}

    def _reserve(self, slots: int) -> None:
        """Make room for ``slots`` entries, and a few more if the storage has to move anyway."""
        self._thaw()
        # No more than what was held before allows, or an eviction that follows would have to move everything again.
        room = max(slots, self.used + self.used // _SLACK)
        for name, buffer in self._buffers().items():
            if buffer.shape[2] < slots:
                larger = buffer.new_empty((*buffer.shape[:2], room, *buffer.shape[3:]))
                larger[:, :, : self.used] = buffer[:, :, : self.used]
                setattr(self, name, larger)

    def _thaw(self) -> None:
        """Make storage that was filled in inference mode writable outside it."""
        for name, buffer in self._buffers().items():
            setattr(self, name, writable(buffer))

    def observe(self, queries: Tensor, scale: float) -> None:
        """Let the queries ``[B, H, q, D]`` of the last pass vote, for presses that need them."""
        if self._votes is None:
            return
        if self.ledger.finished:
            self._votes = None
            return
        assert self._keys is not None
        filler = None
        if any(self.ledger.padding):
            own = (
                self._own_positions(0, self.used, *self._keys.shape[:2]) if self._positions is None else self._positions
            )
            filler = own[:, :, : self.used] < 0
        self._votes.observe(Attention(queries, self._keys[:, :, : self.used], filler, scale))

    def settle(self) -> None:
        """Evict what the last pass is to evict, once its attention has run."""
        if not self.pending:
            return
        self.pending = False
        if self.ledger.cut:
            self._evict()
        elif self.compressed:
            self._trim()

    def _evict(self) -> None:
        self._thaw()
        assert self._keys is not None
        rows, heads = self._keys.shape[:2]
        if self._history is None:
            self._history = History(rows, heads, self.device)
            self._positions = self._own_positions(0, self.used, rows, heads).int()
            if self.press.fixed_scores:
                self._ranks = torch.empty_like(self._positions, dtype=torch.long)
                self._ranked = 0
        assert self._positions is not None
        self._rank_new()
        positions = self._positions[:, :, : self.used]
        if self._ranks is not None:
            ranks = self._ranks[:, :, : self.used]
        else:
            ranks = self._rank(self._keys[:, :, : self.used], positions)
        ranks = spare(self.press, ranks, positions, self.ledger)
        keep = self.ledger.held
        count = self.used - keep[0]
        unpadded = not any(self.ledger.padding)
        in_place = unpadded and self._ranks is not None and not self._differentiated(self._keys)
        if in_place and self._keys.shape[2] <= keep[0] + keep[0] // _SLACK:
            gone = self._refill(ranks, positions, count)
        else:
            kept, stays, gone = choose(ranks, positions, keep)
            for name, buffer in self._buffers().items():
                index = kept[..., None].expand(-1, -1, -1, buffer.shape[3]) if buffer.dim() == 4 else kept
                setattr(self, name, buffer.gather(2, index))
            if self._votes is not None:
                self._votes.keep(kept)
            self._positions = stays
            self.used = stays.shape[2]
            if not unpadded:
                assert self._keys is not None and self._values is not None
                filler = (stays < 0)[..., None]
                self._keys.masked_fill_(filler, 0)
                self._values.masked_fill_(filler, 0)
                if self._ranks is not None:
                    self._ranks.masked_fill_(stays < 0, FILLER)
        self._ranked = self.used
        self._history.record(gone, self.ledger.padding, self.ledger.columns)

    def _refill(self, ranks: Tensor, positions: Tensor, count: int) -> Tensor:
        """Evict the ``count`` lowest, move the last entries into their slots, and return their positions."""
        left = self.used - count
        if count == 1:
            slots = ranks.argmin(dim=-1, keepdim=True)
        else:
            slots = ranks.topk(count, largest=False).indices.sort(dim=-1).values
            # The i-th evicted slot before `left` takes the i-th survivor after it; what is left over stays beyond.
            evicted = torch.zeros_like(ranks, dtype=torch.int8).scatter_(2, slots, 1)
            tail = left + evicted[..., left:].argsort(dim=-1, stable=True)
        gone = positions.gather(2, slots)
        for buffer in self._buffers().values():
            wide = buffer.dim() == 4
            slot = slots[..., None].expand(-1, -1, -1, buffer.shape[3]) if wide else slots
            if count == 1:
                last = buffer[:, :, left : self.used].clone()
            else:
                last = buffer.gather(2, tail[..., None].expand(-1, -1, -1, buffer.shape[3]) if wide else tail)
            buffer.scatter_(2, slot, last)
        self.used = left
        return gone

    def _trim(self) -> None:
        """Give back storage beyond the slack."""
        for name, buffer in self._buffers().items():
            if buffer.shape[2] > self.used + self.used // _SLACK:
                setattr(self, name, buffer[:, :, : self.used].clone())

    def mask(self, tokens: int) -> Tensor | None:
        """Which stored entries the last ``tokens`` queries may see: ``[B or 1, 1, tokens, N]`` bool, None for all.

        Only for a compressed layer whose last pass has not been settled.
        """
        padding = self.ledger.padding
        if tokens == 1 and not any(padding):
            return None
        assert self._positions is not None
        held = self.used - tokens
        mask = torch.ones((tokens, self.used), dtype=torch.bool, device=self.device).tril(held)[None, None]
        if any(padding):
            # Filler lies in front of every head's entries alike, so that the first head speaks for all.
            mask = mask & (self._positions[:, :1, None, : self.used] >= 0)
            # A query of padding sees itself: a row without any key would be NaN, which no mask takes away again.
            itself = torch.eye(tokens, dtype=torch.bool, device=self.device)
            mask[..., held:] |= itself
        return mask

    def _ordered(self, buffer: Tensor | None) -> Tensor | None:
        if buffer is None or self._positions is None:
            return buffer
        order = self._positions[:, :, : self.used].argsort(dim=-1, stable=True)
        return buffer.gather(2, order[..., None].expand(-1, -1, -1, buffer.shape[3]))

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        """``[B, K, N, D]``, in order of position; shorter rows have zeros in front. None before the first pass."""
        self.settle()
        return self._ordered(self._keys)

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """``[B, K, N, D]``, in step with ``keys``."""
        self.settle()
        return self._ordered(self._values)

    @property
    def positions(self) -> Tensor | None:
        """``[B, K, N]``: the own positions of what is held, ascending, -1 at filler. None before the first pass."""
        self.settle()
        if self._keys is None:
            return None
        if self._positions is None:
            return self._own_positions(0, self.used, *self._keys.shape[:2])
        return self._positions[:, :, : self.used].long().sort(dim=-1).values

    @property
    def evicted_at(self) -> Tensor | None:
        """``[B, K, columns]`` int32, see ``pressgauge.history``. None before the first pass."""
        self.settle()
        if self._keys is None:
            return None
        history = self._history or History(self._keys.shape[0], self._keys.shape[1], self.device)
        return history.evicted_at(self.columns, self.ledger.padding)

    @property
    def nbytes(self) -> int:
        """Bytes of key and value storage."""
        self.settle()
        return sum(t.untyped_storage().nbytes() for t in (self._keys, self._values) if t is not None)

    @property
    def overhead_nbytes(self) -> int:
        """Bytes of positions and scores, and of what is remembered of queries."""
        self.settle()
        remembered = 0 if self._votes is None else self._votes.nbytes
        return remembered + sum(t.untyped_storage().nbytes() for t in (self._positions, self._ranks) if t is not None)

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

    def crop_to(self, columns: int) -> None:
        """Drop what came after ``columns`` columns. Nothing may have been evicted since, which the cache checks."""
        self.settle()
        if self._keys is None or columns >= self.columns:
            return
        self._rank_new()
        left = self.used - (self.columns - columns)
        # In order of position the last ones are those to go, since none of them was evicted.
        for name in ("_keys", "_values"):
            buffer = self._ordered(getattr(self, name))
            assert buffer is not None
            setattr(self, name, buffer[:, :, :left].clone())
        if self._positions is not None:
            order = self._positions[:, :, : self.used].argsort(dim=-1, stable=True)[..., :left]
            self._positions = self._positions.gather(2, order)
            self._ranks = None if self._ranks is None else self._ranks.gather(2, order)
            self._ranked = left
        self.columns, self.used = columns, left

    def _select(self, rows: Tensor) -> None:
        self.settle()
        for name, buffer in self._buffers().items():
            setattr(self, name, buffer.index_select(0, rows.to(buffer.device)))
        if self._history is not None:
            self._history.select(rows)
        if self._votes is not None:
            self._votes.select(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make row i what row ``beam_idx[i]`` was."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        if self._keys is not None:
            self._select(torch.arange(self._keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at ``indices``."""
        if self._keys is not None:
            self._select(torch.arange(self._keys.shape[0])[indices.cpu()])


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


def _meet(press: Press, config: PretrainedConfig) -> tuple[Press, list[Any]]:
    """The press with its ``skip_layers`` resolved, and the model's own empty cache layers.

    Raises:
        ValueError: if the press does not support the model.
    """
    layers = interface.layer_classes(config)
    return support.of_config(config, layers).resolve(press), layers


class PressedCache(DynamicCache):
    """A cache for one batch of sequences, compressed by a press. Usually made by ``press.cache(config)``.

    Args:
        press: the press.
        config: the model's configuration.
        prompt_length: columns of the prompt; the first pass is the prompt if it is not given.
        unpadded: a promise that no row is padded; a plain cache with more than one row needs it.

    Raises:
        ValueError: if the press cannot do right by the model.
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
        """Turn an empty ``DynamicCache`` into a pressed one, the same object.

        Raises:
            ValueError: if it is not empty, or of another kind.
        """
        if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
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
        self.layer_class_to_replicate = None
        self.press = press
        self.config = config
        self.ledger = Ledger(press, prompt_length)
        self.unpadded = unpadded
        self.attached: list[int] | None = None
        """While an attached pass runs, the padding of each row after it."""
        self.fed: Tensor | None = None
        """``[B, T]``: the first tokens that it has seen, where ``pressgauge.generate`` fed them."""
        self._declared = prompt_length
        self._open: PressedLayer | None = None
        self._first = next((i for i, layer in enumerate(self.layers) if isinstance(layer, DynamicLayer)), 0)
        for index in range(len(self.layers)):
            if index not in press.skipped:
                self.layers[index] = PressedLayer(press, index, self.ledger)

    @property
    def pressed(self) -> list[PressedLayer]:
        """The layers that may be pruned."""
        return [layer for layer in self.layers if isinstance(layer, PressedLayer)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add a pass's entries to a layer and return all that it holds.

        Raises:
            ValueError: before anything is stored, if a plain cache cannot go on rightly.
        """
        if self._open is not None:
            # Attached, what has not attended yet never will, and the end of the pass tells.
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
        if any(layer.columns != self.ledger.columns for layer in self.pressed):
            raise RuntimeError("an earlier pass through this cache was interrupted: start again with a new cache")
        if self.ledger.padding and len(self.ledger.padding) != rows:
            raise ValueError(f"this cache serves {len(self.ledger.padding)} rows, got a pass of {rows}")
        if self.attached is not None:
            padding = self.attached
        else:
            padding = self.ledger.padding or [0] * rows
            if any(padding):
                raise ValueError(
                    f"this cache holds padded rows, which only an attached press knows how to mask: {_ATTACHED}"
                )
            if rows > 1 and not self.unpadded and self.pressed and self.ledger.would_cut(tokens, padding):
                raise ValueError(
                    f"a plain cache never sees the attention mask, so it cannot evict from a batch of {rows} rows that "
                    f"may be padded: {_ATTACHED} or, if no row is padded, press.cache(config, unpadded=True)"
                )
        self.ledger.feed(tokens, padding)

    def get_mask_sizes(self, query: int | Tensor, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that the next pass hands to attention.

        Raises:
            ValueError: if one mask cannot serve all layers of a plain cache.
        """
        tokens = interface.query_length(query)
        if self.attached is not None:
            # The mask of an uncompressed cache: right for layers that have evicted nothing; the others make their own.
            if isinstance(self.layers[layer_idx], PressedLayer):
                return self.ledger.columns + tokens, 0
            return super().get_mask_sizes(query, layer_idx)  # type: ignore[arg-type]  # transformers 5.2 passes positions
        held = {layer.get_mask_sizes(0)[0] for layer in self.pressed}
        if any(type(layer) is DynamicLayer for layer in self.layers):
            held.add(self.ledger.columns)
        if len(held) > 1:
            implementation = getattr(self.config.get_text_config(decoder=True), "_attn_implementation", None)
            if tokens > 1:
                raise ValueError(
                    f"after an eviction, layers hold different numbers of entries ({min(held)} to {max(held)}), and a "
                    f"plain cache has one mask for all: feed single tokens, or {_ATTACHED}"
                )
            if implementation not in (None, "sdpa"):
                raise ValueError(
                    f"attention {implementation!r} makes one mask for all layers, which hold {min(held)} to "
                    f"{max(held)} entries: load the model with attn_implementation='sdpa', or {_ATTACHED}"
                )
        return super().get_mask_sizes(query, layer_idx)  # type: ignore[arg-type]  # transformers 5.2 passes positions

    @property
    def seen(self) -> int:
        """Tokens fed so far: the longest row's."""
        return max(self.ledger.seen, default=0)

    @property
    def held(self) -> list[int]:
        """Entries that each layer holds per KV head: the longest row's."""
        return [int(self.held_rows(layer).max()) if self.ledger.padding else 0 for layer in range(len(self.layers))]

    def held_rows(self, layer: int) -> Tensor:
        """``[B]``: entries that a layer holds per KV head, of each row."""
        own = self.layers[layer]
        if isinstance(own, PressedLayer):
            return torch.tensor(self.ledger.held)
        return torch.tensor([held_tokens(own, seen) for seen in self.ledger.seen])

    @property
    def evicted_at(self) -> list[Tensor]:
        """One int32 ``[B, K, columns]`` per layer, see ``pressgauge.history``; empty before the first pass.

        No press evicts from a layer that it skips. One without keys has the table of a single head.
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
            # A first pass that is under way, or failed, has not come to every layer.
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
        """Bytes of positions and scores of what is held, and of what is remembered of queries; the record in
        ``evicted_at`` is not counted."""
        return sum(layer.overhead_nbytes for layer in self.pressed)

    def _settle(self) -> None:
        for layer in self.pressed:
            layer.settle()

    def reset(self) -> None:
        """Forget everything and be as new."""
        layers = interface.layer_classes(self.config)
        self._begin(self.press, layers, self.config, prompt_length=self._declared, unpadded=self.unpadded)

    def crop(self, length: int) -> None:
        """Go back to ``length`` columns, or by ``-length`` if it is negative, as transformers' caches do.

        Raises:
            ValueError: if an entry was evicted after that point, so that what it was cannot be had back, the press
                has counted the votes of what is to go, or this is assisted decoding.
        """
        if self.press.keep_ratio < 1 and interface.in_assisted_decoding():
            raise ValueError(f"{ASSISTED}: generate without assistant_model and prompt_lookup_num_tokens")
        before = self.ledger.columns
        columns = length if length > 0 else before + length
        if not 0 <= columns < before:
            return
        if self.press.needs_queries:
            raise ValueError(
                f"cannot crop to {columns} tokens: {type(self.press).__name__} has counted the votes of the tokens "
                "after them; start again with a new cache"
            )
        self._settle()
        for index, table in enumerate(self.evicted_at):
            last = table.masked_fill(table == NEVER, 0).max()
            if last > columns:
                raise ValueError(
                    f"cannot crop to {columns} tokens: layer {index} evicted entries after token {int(last)}, and "
                    "they are gone; crop before anything is evicted, or start again with a new cache"
                )
        # transformers' own layers first: some of them refuse.
        for layer in self.layers:
            if not isinstance(layer, PressedLayer):
                layer.crop(columns - before)
                if getattr(layer, "keys", None) is not None:
                    # transformers keeps a view, and with it the whole storage.
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
        """Make row i what row ``beam_idx[i]`` was, as beam search asks for."""
        self._settle()
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select_rows(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        self._settle()
        super().batch_repeat_interleave(repeats)
        self._select_rows([row for row in range(len(self.ledger.padding)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at ``indices``."""
        self._settle()
        super().batch_select_indices(indices)
        self._select_rows(torch.arange(len(self.ledger.padding))[indices.cpu()].tolist())
