"""Mutants of layers with a sliding window, and of layers that read the keys of another."""

from typing import Any

import pytest
from torch import Tensor

from harness.mutants.mutant import Breaks, Mutant
from pressgauge import onepass
from pressgauge.cache import WindowedLayer
from pressgauge.history import History, effective, windowed
from pressgauge.models import interface
from pressgauge.rules import Window
from pressgauge.softmax import PLAIN
from properties import test_windows
from support.zoo.specimens import WINDOW

LAW = test_windows.test_evictions_and_logits_are_those_of_a_plain_loop_and_the_stock_model


def one_token_late(patch: pytest.MonkeyPatch) -> None:
    """Entries leave the window one token late while decoding."""
    make = windowed.Counts.__init__

    def wider(self: Any, press: Any, window: Window, positions: Tensor, ledger: Any) -> None:
        make(self, press, Window(window.size + 1), positions, ledger)

    patch.setattr(windowed.Counts, "__init__", wider)


def one_token_early(patch: pytest.MonkeyPatch) -> None:
    """The queries of one pass see a window of one token fewer."""

    def narrower(table: Tensor, window: Window | None) -> Tensor:
        return effective(table, None if window is None else Window(window.size - 1, window.chunked))

    patch.setattr(onepass, "effective", narrower)


def chunks_slide(patch: pytest.MonkeyPatch) -> None:
    """Chunks are taken for a sliding window in one pass."""
    patch.setattr(onepass, "effective", lambda table, window: effective(table, window and Window(window.size)))


def target_of_the_text(patch: pytest.MonkeyPatch) -> None:
    """The budget of a layer with a window is a share of all tokens seen."""
    patch.setattr(Window, "holds", lambda self, seen: seen)


def counted_as_evicted(patch: pytest.MonkeyPatch) -> None:
    """What leaves the window is recorded as evicted by the press."""
    record = History.record

    def every(self: Any, positions: Tensor, padding: Any, seen: int, *, partly: bool = False) -> None:
        record(self, positions, padding, seen, partly=partly)
        table = self._evicted_at
        if partly and seen > WINDOW:
            table[..., : seen - WINDOW][table[..., : seen - WINDOW] > seen] = seen

    patch.setattr(History, "record", every)


def mask_of_the_first_head(patch: pytest.MonkeyPatch) -> None:
    """All KV heads are masked as the first one, although they hold different numbers of entries."""
    mask = WindowedLayer.mask

    def first(self: WindowedLayer, tokens: int) -> Tensor | None:
        found = mask(self, tokens)
        return None if found is None else found[:, :1].expand_as(found)

    patch.setattr(WindowedLayer, "mask", first)


def votes_beyond_the_window(patch: pytest.MonkeyPatch) -> None:
    """Attention scores count what a query would give to entries outside its window."""
    for place in ("pressgauge.cache.windowed.until", "pressgauge.history.windowed.until"):
        patch.setattr(place, lambda window, positions, seen, tokens: positions.new_full(positions.shape, 1 << 30))


def own_table(patch: pytest.MonkeyPatch) -> None:
    """In one pass, a layer that reads the keys of another evicts by its own queries."""
    attend = onepass.OnePass._attend

    def broken(self: Any, own: Any, module: Any, query: Tensor, key: Tensor, *more: Any, **kwargs: Any) -> Any:
        index = self._layers.get(id(module))
        owner = self.support.owner(index)
        if self.press is None or owner == index or owner in self.skipped:
            return attend(self, own, module, query, key, *more, **kwargs)
        table = self.evicted_at[owner]
        self.evicted_at[owner] = self._replay(self.press, query, key, owner, interface.scaling(key, kwargs), PLAIN)
        try:
            return attend(self, own, module, query, key, *more, **kwargs)
        finally:
            self.evicted_at[owner] = table

    patch.setattr(onepass.OnePass, "_attend", broken)


def windows_mutant(name: str, what: str, breaks: Breaks, model: str, press: str, *says: str) -> Mutant:
    """Mutant of the engine, for a model and a press."""
    case = test_windows.Case(model, press)
    return Mutant(name, what, "plausible", case, LAW, twin=case, breaks=breaks, says=says)


SHARED = "gemma3n_text, shared keys"

WINDOWS = [
    windows_mutant("window-late", "entries leave a window one token late", one_token_late, "mistral", "knorm"),
    windows_mutant("window-early", "a window has one token fewer in one pass", one_token_early, "mistral", "knorm"),
    windows_mutant("chunks-slide", "chunks are taken for a sliding window", chunks_slide, "llama4_text", "h2o"),
    windows_mutant("window-target", "the budget of a window is that of the text", target_of_the_text, "mistral",
                   "knorm"),
    windows_mutant("window-counted", "what leaves a window is counted as evicted", counted_as_evicted, "mistral",
                   "keydiff", "evicts others"),
    windows_mutant("window-one-mask", "KV heads of different length have one mask", mask_of_the_first_head, "mistral",
                   "knorm-interval"),
    windows_mutant("window-votes", "attention scores count entries outside the window", votes_beyond_the_window,
                   "llama4_text", "h2o", "evicts others"),
    windows_mutant("borrowed-table", "a layer that reads the keys of another has a table of its own", own_table, SHARED,
                   "h2o"),
]  # fmt: skip
