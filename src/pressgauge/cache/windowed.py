"""A layer of a pressed cache that has a sliding window or chunks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pressgauge.cache.entries import SLACK
from pressgauge.cache.hybrid import HybridLayer
from pressgauge.cache.layer import PressedLayer
from pressgauge.history.windowed import Counts, reach, until
from pressgauge.models import interface
from pressgauge.presses.attention_scores import Attention
from pressgauge.presses.base import ATTACHED, Press
from pressgauge.presses.ranking import FILLER, choose, lowest
from pressgauge.rules import Ledger, Window
from pressgauge.softmax import PLAIN, Softmax


class WindowedLayer(PressedLayer):
    """One layer of a pressed cache whose queries see a window only.

    Until the first eviction, the last ``window.size - 1`` entries are stored exactly as in transformers' cache. After
    that, entries that leave the window are removed after each pass. Which these are differs between KV heads, so heads
    may hold different numbers of entries, and shorter ones have padding slots.

    Args:
        press: the press.
        index: index of the layer.
        ledger: counts shared by all layers of the cache.
        latent: as in ``Entries``.
        window: the layer's window.
    """

    is_sliding = True

    def __init__(self, press: Press, index: int, ledger: Ledger, latent: bool, window: Window) -> None:
        super().__init__(press, index, ledger, latent)
        self.window = window
        self.uneven = False
        """Whether KV heads or rows hold different numbers of entries."""

    def reset(self) -> None:
        """Reset to an empty layer; the cache resets the ledger."""
        self.__init__(self.press, self.index, self.ledger, self.latent, self.window)  # type: ignore[misc]

    def _due(self, acts: bool, seen: Sequence[int]) -> bool:
        """Whether a layer that has evicted nothing evicts."""
        held = set(map(self.window.holds, seen))
        return acts and any(self.press.checked_target(count, count) < count for count in held)

    def would_evict(self, tokens: int, padding: Sequence[int]) -> bool:
        """Whether a layer that has evicted nothing would evict after a next pass of ``tokens`` columns."""
        return self._due(self.ledger.would_act(tokens), [self.columns + tokens - pad for pad in padding])

    def observe(self, queries: Tensor, scale: float, softmax: Softmax = PLAIN) -> None:
        """Update the attention state with the queries of the last pass, for presses that need it."""
        if self._votes is None or self.ledger.finished:
            self._votes = None
            return
        tokens, seen = queries.shape[2], self.ledger.seen
        positions = self._stored_positions()
        filler = positions < 0 if self.uneven or any(self.ledger.padding) else None
        expiry = until(self.window, positions, seen, tokens)
        far = reach(self.window, seen, tokens)
        self._votes.observe(Attention(queries, self._scored(), filler, scale, softmax, expiry, far))

    def settle(self) -> None:
        """Complete the pending pass, once its attention has run: evict, and remove what has left the window."""
        if not self.pending:
            return
        self.pending = False
        if self.compressed or self._due(self.ledger.acts, self.ledger.seen):
            self._evict()
        else:
            self._slide()

    def _slide(self) -> None:
        """Remove what transformers' cache removes."""
        held = self.window.stores(self.used)
        if held == self.used:
            return
        for name, tensor in self.storage.items():
            kept = tensor[:, :, self.used - held : self.used]
            self.storage[name] = kept if tensor.shape[2] <= held + held // SLACK else kept.clone()
        if self._votes is not None:
            rows, heads = self.storage["keys"].shape[:2]
            self._votes.keep(torch.arange(self.used - held, self.used, device=self.device).expand(rows, heads, held))
        self.storage.used = held

    def _stored_positions(self) -> Tensor:
        if self.compressed:
            return self.storage.held("positions")
        return self._own_positions(self.columns - self.used, self.used, *self.storage["keys"].shape[:2])

    def _evict(self) -> None:
        storage, ledger = self.storage, self.ledger
        storage.thaw()
        history = self._recorded()
        positions = storage.held("positions")
        counts = Counts(self.press, self.window, positions, ledger)
        if not counts.changes:
            storage.trim(self.used + self.used // SLACK)
            return
        live = positions.masked_fill(counts.expired, -1)
        ranks = counts.protect(self._window_ranks(live, counts.evicts), live)
        most, least = counts.most, counts.least
        even = not self.uneven and most == least and not any(ledger.padding)
        in_place = even and self._in_place() and storage["keys"].shape[2] <= most + most // SLACK
        if in_place:
            slots = lowest(ranks, storage.used - most)
            gone = live.gather(2, slots)
            if self._votes is not None:
                self._votes.keep(storage.refilled(slots))
            storage.refill(slots)
        else:
            kept, stays, gone = choose(ranks, live, counts.keep)
            storage.take(kept)
            storage["positions"] = stays
            if self._votes is not None:
                self._votes.keep(kept)
            self.uneven, self._zeroed = most != least, self.columns
            if self.uneven:
                storage.zero(stays < 0)
                if self.press.fixed_scores:
                    storage.held("ranks").masked_fill_(stays < 0, FILLER)
        self._ranked = storage.used
        history.record(gone, ledger.padding, ledger.columns, partly=True)

    def _window_ranks(self, live: Tensor, evicts: bool) -> Tensor:
        """Ranks of the entries in the window, ``FILLER`` for others; of any order if none is evicted."""
        self._rank_new()
        if self.press.fixed_scores:
            return self.storage.held("ranks").masked_fill(live < 0, FILLER)
        if not evicts:
            return live.long().masked_fill(live < 0, FILLER)
        keys = self._scored()
        # Attention scores are those of the whole pass, also to entries that left the window with it.
        return self._rank(keys if self.press.needs_queries else keys.masked_fill((live < 0)[..., None], 0), live)

    def mask(self, tokens: int) -> Tensor | None:
        """Attention mask of the last ``tokens`` queries: ``[B, K, tokens, N]`` bool; None if they attend to all."""
        padded = any(self.ledger.padding)
        if tokens == 1 and not padded and not self.uneven:
            return None
        positions = self.storage.held("positions")[:, :, None]
        seen = torch.tensor(self.ledger.seen, device=self.device)[:, None, None, None]
        queries = seen - tokens + torch.arange(tokens, device=self.device)[:, None]
        mask: Tensor = (positions >= 0) & (positions <= queries) & (queries < self.window.end(positions))
        if padded:
            self._let_padding_attend(mask, tokens)
        return mask

    def held_rows(self) -> Tensor:
        """Retained entries of each row, of the KV head that holds most: ``[B]``."""
        self.settle()
        if not self.compressed:
            return torch.tensor([self.window.stores(seen) for seen in self.ledger.seen])
        return (self.storage.held("positions") >= 0).sum(dim=-1).amax(dim=-1).cpu()

    @property
    def held_after_pass(self) -> int:
        """Retained entries of the KV head that holds most, as they are once a pending pass is complete."""
        if not self.pending:
            return self.used
        if self.compressed or self._due(self.ledger.acts, self.ledger.seen):
            return Counts(self.press, self.window, self._stored_positions(), self.ledger).most
        return self.window.stores(self.used)

    def check_plain(self, tokens: int) -> None:
        """Raise ``ValueError`` if a plain cache cannot mask a next pass of ``tokens`` columns."""
        within = tokens == 1 or self.window.first(self.columns + tokens - 1) == 0
        if not self.compressed or (within and not self.uneven):
            return
        if self.uneven:
            why = "KV heads hold different numbers of entries"
        else:
            why = f"entries leave the window within a pass of {tokens} tokens"
        raise ValueError(
            f"layer {self.index} has {self.window} and has evicted entries, so that {why}, and a plain cache has one "
            f"mask for all: {'' if self.uneven else 'feed single tokens, or '}{ATTACHED}"
        )

    def crop_to(self, columns: int) -> None:
        """Remove the entries after ``columns`` columns. Nothing may have left the window, which the cache checks."""
        super().crop_to(columns)
        self.uneven = self.compressed and bool((self.storage.held("positions") < 0).any())

    def check_crop(self, columns: int) -> None:
        """Raise ``ValueError`` if entries that a crop would need have left the window."""
        self.settle()
        if self.columns >= self.window.size:
            raise ValueError(
                f"cannot crop to {columns} tokens: layer {self.index} has {self.window}, and what has left it cannot "
                "be restored; start again with a new cache"
            )


def pressed_layer(
    press: Press, index: int, ledger: Ledger, latent: bool, window: Window | None, own: Any
) -> PressedLayer:
    """A layer that evicts, in place of the model's own."""
    if interface.keeps_states(own):
        return HybridLayer(press, index, ledger, latent, own.number_of_states)
    if window is None:
        return PressedLayer(press, index, ledger, latent)
    return WindowedLayer(press, index, ledger, latent, window)
