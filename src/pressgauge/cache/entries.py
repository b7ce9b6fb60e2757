"""Storage and eviction of the entries of one layer."""

from typing import Any

import torch
from torch import Tensor

from pressgauge.history import History
from pressgauge.models import latents
from pressgauge.presses.attention_scores import Attention, Votes
from pressgauge.presses.base import Press, rank_entries, takes_any_order
from pressgauge.presses.ranking import FILLER, choose, lowest, spare
from pressgauge.rules import Ledger
from pressgauge.softmax import PLAIN, Softmax
from pressgauge.storage import Storage

SLACK = 50
"""Storage may exceed the retained entries by one part in this many."""


class Entries:
    """Entries of one layer.

    Until the first eviction they are stored exactly as in transformers' ``DynamicLayer``; then in slots with their
    ``positions``. If scores are the same in any order, another entry moves into the slot of an evicted one.

    Args:
        press: the press.
        index: index of the layer.
        ledger: counts shared by all layers of the cache.
        latent: whether ``keys`` are latents and ``values`` rotary keys, see ``pressgauge.models.latents``.
    """

    def __init__(self, press: Press, index: int, ledger: Ledger, latent: bool) -> None:
        self.latent = latent
        self.press = press
        self.index = index
        self.ledger = ledger
        self.is_initialized = False
        self.columns = 0
        self.pending = False
        self.lent = False
        """Whether other layers of the model read the entries of a pass later in the pass."""
        self.storage = Storage()
        """``keys`` and ``values``; from the first eviction on also ``positions``, and ``ranks`` if scores are fixed."""
        self._ranked = 0
        self._zeroed = 0
        """Columns whose padding slots have zero keys."""
        self._history: History | None = None
        self._votes: Votes | None = None
        self._any_order, self._in_order = takes_any_order(press), True
        """Whether the press takes entries in any order, and whether they are in order of position, padding first."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Initialise empty storage with the shape, dtype and device of the first entries."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.storage.update(keys=key_states[:, :, :0], values=value_states[:, :, :0])
        self._votes = self.press.votes() if self.press.needs_queries else None
        self.is_initialized = True

    @property
    def compressed(self) -> bool:
        """Whether anything has been evicted."""
        return "positions" in self.storage

    @property
    def used(self) -> int:
        """Entries in storage, those of the last pass included."""
        return self.storage.used

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add entries and return all keys and values, in the order of storage.

        Args:
            key_states: ``[B, K, q, D]``.
            value_states: ``[B, K, q, D']``.

        Returns:
            ``[B, K, N + q, D]`` and ``[B, K, N + q, D']``.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        storage = self.storage
        rows, heads, tokens, _ = key_states.shape
        start, end = storage.used, storage.used + tokens
        given = {"keys": key_states, "values": value_states}
        # A backward pass may need what is stored, also for queries, so that nothing is written in place.
        moves = not self.compressed or torch.is_grad_enabled()
        if moves:
            for name, states in given.items():
                storage[name] = torch.cat([storage.held(name), states], dim=2)
        if self.compressed:
            # No more slack than the entries before the pass allow, or a following eviction would move everything again.
            storage.reserve(end, start + start // SLACK)
            storage.put("positions", start, self._own_positions(self.columns, tokens, rows, heads))
        if not moves:
            for name, states in given.items():
                storage.put(name, start, states)
        self.columns += tokens
        storage.used = end
        self.pending = True
        return storage.held("keys"), storage.held("values")

    def _own_positions(self, start: int, tokens: int, rows: int, heads: int) -> Tensor:
        positions = torch.arange(start, start + tokens, device=self.device)
        padding = self.ledger.padding
        if any(padding):
            positions = (positions - torch.tensor(padding, device=self.device)[:, None, None]).clamp(min=-1)
        return positions.expand(rows, heads, tokens)

    def _rank(self, keys: Tensor, positions: Tensor) -> Tensor:
        return rank_entries(self.press, keys, positions.long(), self.index, self._votes, first=not self._ranked)

    def _scored(self, start: int = 0) -> Tensor:
        """The keys that the press scores, from slot ``start`` on, zero at padding slots."""
        slots = slice(start, self.storage.used)
        keys = self.storage["keys"][:, :, slots]
        if self.latent:
            keys = latents.entry_keys(keys, self.storage["values"][:, :, slots])
        if max(self.ledger.padding, default=0) > self._zeroed:
            keys = keys.masked_fill((self._stored_positions()[:, :, slots] < 0)[..., None], 0)
        return keys

    def _rank_new(self) -> None:
        """Rank the entries added since the last eviction; the caller updates ``_ranked``."""
        storage = self.storage
        if "ranks" not in storage or self._ranked == storage.used:
            return
        ranks = self._rank(self._scored(self._ranked), storage["positions"][:, :, self._ranked : storage.used])
        storage.put("ranks", self._ranked, ranks)

    def observe(self, queries: Tensor, scale: float, softmax: Softmax = PLAIN) -> None:
        """Update the attention state with the queries of the last pass, for presses that need it.

        Args:
            queries: ``[B, H, q, D]``, those of the keys that the press scores.
            scale: scaling factor of the query-key products.
            softmax: softmax of the layer.
        """
        if self._votes is None or self.ledger.finished:
            self._votes = None
            return
        keys = self._scored()
        filler = self._stored_positions() < 0 if any(self.ledger.padding) else None
        self._votes.observe(Attention(queries, keys, filler, scale, softmax))

    def settle(self) -> None:
        """Complete the pending eviction of the last pass, once its attention has run."""
        if not self.pending:
            return
        self.pending = False
        if self.ledger.cut:
            self._evict()
        elif self.compressed:
            self.storage.trim(self.used + self.used // SLACK)

    def _stored_positions(self) -> Tensor:
        """Positions in the row of the stored entries, in the order of storage: ``[B, K, N]``."""
        if self.compressed:
            return self.storage.held("positions")
        return self._own_positions(0, self.used, *self.storage["keys"].shape[:2])

    def _recorded(self) -> History:
        """The record of evictions; storage has positions from the first call on."""
        if self._history is None:
            storage = self.storage
            self._history = History(storage["keys"].shape[0], storage["keys"].shape[1], self.device)
            storage["positions"] = self._stored_positions().int()
            if self.press.fixed_scores:
                storage["ranks"] = torch.empty_like(storage["positions"], dtype=torch.long)
        return self._history

    def _in_place(self) -> bool:
        """Whether another entry may take the slot of an evicted one, if no row is padded."""
        return self._any_order and not self.lent and not torch.is_grad_enabled()

    def _evict(self) -> None:
        storage = self.storage
        storage.thaw()
        history = self._recorded()
        self._rank_new()
        positions = storage.held("positions")
        fixed = "ranks" in storage
        ranks = storage.held("ranks") if fixed else self._rank(self._scored(), positions)
        ranks = spare(self.press, ranks, positions, self.ledger.balance)
        keep = self.ledger.held
        unpadded = not any(self.ledger.padding)
        if unpadded and self._in_place() and storage["keys"].shape[2] <= keep[0] + keep[0] // SLACK:
            slots = lowest(ranks, storage.used - keep[0])
            gone = positions.gather(2, slots)
            kept = None if self._votes is None else storage.refilled(slots)
            storage.refill(slots)
            self._in_order = False
        else:
            kept, stays, gone = choose(ranks, positions, keep, ordered=unpadded and self._in_order)
            storage.take(kept)
            self._in_order = True
            storage["positions"] = stays
            if not unpadded:
                storage.zero(stays < 0)
                self._zeroed = self.columns
                if fixed:
                    storage.held("ranks").masked_fill_(stays < 0, FILLER)
        if self._votes is not None and kept is not None:
            self._votes.keep(kept)
        self._ranked = storage.used
        history.record(gone, self.ledger.padding, self.ledger.columns)

    def crop_to(self, columns: int) -> None:
        """Remove the entries after ``columns`` columns.

        Nothing may have been evicted since, which the cache checks.
        """
        self.settle()
        if not self.is_initialized or columns >= self.columns:
            return
        self._rank_new()
        left = self.used - (self.columns - columns)
        if self.compressed:
            # The entries to remove are the last by position, since none of them was evicted.
            self.storage.take(self.storage.held("positions").argsort(dim=-1, stable=True)[..., :left])
            self._ranked = left
        else:
            self.storage.used = left
            self.storage.trim(left)
        self.columns, self._zeroed = columns, min(self._zeroed, columns)

    def _select(self, rows: Tensor) -> None:
        self.settle()
        self.storage.select(rows)
        if self._history is not None:
            self._history.select(rows)
        if self._votes is not None:
            self._votes.select(rows)
        padding = self.ledger.padding
        if self.compressed and any(padding) and not any(padding[row] for row in rows.tolist()):
            before, kept = self.used, self.storage.drop_padding()
            self._ranked = max(0, self._ranked - (before - self.used))
            if self._votes is not None:
                self._votes.keep(kept)
