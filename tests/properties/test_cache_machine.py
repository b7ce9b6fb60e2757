"""State machine of a plain cache: feed, crop, reorder, copy and reset in any order, against lists of positions."""

import copy
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from conformance.ours import SUBJECTS
from pressgauge import PressedCache
from pressgauge.conformance import oracle
from pressgauge.conformance.strategies import DIMENSION, HEADS, LAYERS, options
from support.drive import CONFIG, values_of

LONGEST = 120


class CacheMachine(RuleBasedStateMachine):
    """Compares a cache with the oracle, from the keys fed to each row and the lengths of its passes.

    Override ``subjects`` to test other presses.
    """

    subjects = SUBJECTS
    cache: PressedCache

    @initialize(data=st.data(), rows=st.integers(1, 3), seed=st.integers(0, 99))
    def start(self, data: st.DataObject, rows: int, seed: int) -> None:
        """Draw a press, an empty cache, and the keys to be fed."""
        self.subject: Any = data.draw(st.sampled_from(self.subjects))
        self.options = data.draw(options(self.subject.schedule))
        self.press = self.subject(**self.options)
        self.prompt_length = data.draw(st.one_of(st.none(), st.integers(1, 20)))
        self.cache = self.press.cache(CONFIG, prompt_length=self.prompt_length, unpadded=True)
        generator = torch.Generator().manual_seed(seed)
        self.keys = torch.randn((rows, HEADS, LONGEST, DIMENSION), generator=generator, dtype=torch.float64)
        self.values = values_of(self.keys)
        self.passes: list[int] = []

    @property
    def seen(self) -> int:
        """Tokens fed so far."""
        return sum(self.passes)

    def tables(self, layer: int) -> Tensor:
        """Evictions by the oracle."""
        if not self.passes:
            return torch.full((*self.keys.shape[:2], self.seen), oracle.NEVER)
        keys = self.keys[:, :, : self.seen]
        return torch.tensor(self.subject.history(self.options, keys, self.passes, layer, self.prompt_length)[0])

    @rule(length=st.one_of(st.just(1), st.integers(1, 12)))
    def feed(self, length: int) -> None:
        """Feed one pass through all layers."""
        start = self.seen
        if start + length > LONGEST:
            return
        for layer in range(LAYERS):
            chunk = slice(start, start + length)
            self.cache.update(self.keys[:, :, chunk], self.values[:, :, chunk], layer)
        self.passes.append(length)

    @precondition(lambda self: self.passes)
    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        """Replace every row by a copy of some row, as beam search does."""
        rows = self.keys.shape[0]
        order = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)))
        self.cache.reorder_cache(order)
        self.keys, self.values = self.keys[order], self.values[order]

    @precondition(lambda self: self.passes)
    @rule(data=st.data())
    def crop(self, data: st.DataObject) -> None:
        """Cropping is refused after an eviction, and otherwise undoes the cropped tokens."""
        left = data.draw(st.integers(1, self.seen))
        tables = [self.tables(layer) for layer in range(LAYERS)]
        possible = all(((table == oracle.NEVER) | (table <= left)).all() for table in tables)
        # The first pass is the prompt, so it is not cropped.
        if self.prompt_length is None and left < self.passes[0]:
            return
        try:
            self.cache.crop(left - self.seen)
        except ValueError:
            assert not possible
            return
        assert possible or left == self.seen
        while self.seen > left:
            self.passes[-1] -= 1
            if not self.passes[-1]:
                self.passes.pop()

    @precondition(lambda self: self.passes)
    @rule(length=st.integers(1, 12))
    def clone(self, length: int) -> None:
        """Continue with a copy, without effects on the original."""
        copied = copy.deepcopy(self.cache)
        for layer in range(LAYERS):
            copied.update(self.keys[:, :, :length], self.values[:, :, :length], layer)
        assert copied.seen == self.seen + length

    @rule()
    def reset(self) -> None:
        """Start a new sequence."""
        self.cache.reset()
        self.passes = []

    @invariant()
    def it_holds_what_the_oracle_says(self) -> None:
        """Counts, history, keys and values in order, and memory equal the oracle's after every step."""
        if not self.passes:
            return
        assert self.cache.seen == self.seen
        for layer, table in enumerate(self.cache.evicted_at):
            expected = self.tables(layer)
            assert torch.equal(table.long(), expected)
            kept = expected == oracle.NEVER
            assert self.cache.held[layer] == int(kept[0, 0].sum())
            shape = (*kept.shape[:2], -1, DIMENSION)
            stored = self.cache.layers[layer]
            assert torch.equal(stored.keys, self.keys[:, :, : self.seen][kept].view(shape))
            assert torch.equal(stored.values, self.values[:, :, : self.seen][kept].view(*shape[:3], 2))
        entries = self.keys.shape[0] * HEADS * sum(self.cache.held)
        assert entries * 8 * (DIMENSION + 2) <= self.cache.nbytes <= 1.02 * entries * 8 * (DIMENSION + 2)


CacheMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestCacheMachine = CacheMachine.TestCase
