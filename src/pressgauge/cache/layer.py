"""One layer of a pressed cache: its entries in storage, and their eviction."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from pressgauge.history import History, writable
from pressgauge.models import interface
from pressgauge.presses.attention_scores import Attention, Votes
from pressgauge.presses.base import Press, rank_entries
from pressgauge.presses.ranking import FILLER, choose, spare
from pressgauge.rules import Ledger

_SLACK = 50
"""Storage may exceed what is held by one part in this many."""


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
