"""Record of what measuring code makes a bag compute: tokens fed, positions, caches, and what queries read."""

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRotaryEmbedding

from pressgauge.conformance.versions import CACHE_NAMES, returned_cache
from pressgauge.measuring.known import V, frequencies

READ = 1e-3
"""Difference in frequencies from which on a query did not read all tokens before it."""
_TAG = "_pressgauge_sequences"


@dataclass(frozen=True)
class Query:
    """One token that was fed.

    Attributes:
        token: its id.
        real: whether it is no padding slot.
        index: number of real tokens of its sequence before it.
        reads: weighted frequencies ``[V]`` of the tokens that it attended to.
        position: its position in the rotary embedding; None if unknown.
        pass_number: number of its pass, in the order of the record.
        complete: whether it attended to all real tokens of its sequence up to itself, once each.
    """

    token: int
    real: bool
    index: int
    reads: tuple[float, ...]
    position: int | None
    pass_number: int
    complete: bool


@dataclass
class Sequence:
    """Tokens that were fed one after the other to one row of a cache, or to a pass without a cache."""

    cache: Any
    call: int
    """Number of the record that its cache was first seen in."""
    queries: list[Query] = field(default_factory=list)
    earlier: bool = False
    """Whether its cache comes from an earlier call."""

    @property
    def tokens(self) -> list[int]:
        """Ids of its real tokens."""
        return [query.token for query in self.queries if query.real]

    @cached_property
    def held(self) -> tuple[int, ...] | None:
        """Entries that each layer of its cache holds at the end; None if unknown."""
        return _held(self.cache)


def _held(cache: Any) -> tuple[int, ...] | None:
    """Entries that each layer of a cache holds; None if unknown."""
    keys = [getattr(layer, "keys", None) for layer in getattr(cache, "layers", None) or ()]
    if not keys or not all(isinstance(own, Tensor) and own.dim() == 4 for own in keys):
        return None
    return tuple(int(own.shape[2]) for own in keys)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Pass:
    """One forward pass of the decoder: columns fed, whether it had a cache, and the entries that its last layer read,
    None if unknown."""

    columns: int
    rows: int
    cached: bool
    entries: int | None = None


class Record:
    """All passes of bags while ``recording`` is open."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self.passes: list[Pass] = []
        self.sequences: list[Sequence] = []
        self._positions: Tensor | None = None

    def _note_positions(self, given: dict[str, Any]) -> None:
        positions = given.get("position_ids")
        self._positions = positions.detach().cpu() if isinstance(positions, Tensor) else None

    def _note_pass(self, given: dict[str, Any], output: Any) -> None:
        hidden = output[0].detach().float().cpu()
        rows, columns, _ = hidden.shape
        brought = next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)
        returned = returned_cache(output)
        cache = brought if returned is None else returned
        held = _held(cache)
        self.passes.append(Pass(columns, rows, cache is not None, held[-1] if held else None))
        mask = given.get("attention_mask")
        real = torch.ones(rows, columns, dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= columns:
            real = mask[:, -columns:].bool().cpu().expand(rows, columns)
        sequences = self._sequences(cache, rows)
        for row, sequence in enumerate(sequences):
            self._add(sequence, hidden[row], real[row], self._row_positions(row, columns))

    def _row_positions(self, row: int, columns: int) -> list[int | None]:
        positions = self._positions
        if positions is None or positions.shape[-1] != columns:
            return [None] * columns
        return [int(one) for one in positions[min(row, positions.shape[0] - 1)].tolist()]

    def _sequences(self, cache: Any, rows: int) -> list[Sequence]:
        """Sequences that a pass continues, one per row; new ones for a new cache or none."""
        known: list[Sequence] | None = getattr(cache, _TAG, None)
        if known is not None and len(known) == rows:
            for number, sequence in enumerate(known):
                if not any(sequence is own for own in self.sequences):
                    # The cache of an earlier call, or a copy of a cache.
                    earlier = sequence.call != self.number
                    copied = Sequence(cache, self.number, list(sequence.queries), earlier)
                    self.sequences.append(copied)
                    known[number] = copied
            return known
        found = [Sequence(cache, self.number) for _ in range(rows)]
        self.sequences += found
        if cache is not None:
            cache.__dict__[_TAG] = found
        return found

    def _add(self, sequence: Sequence, hidden: Tensor, real: Tensor, positions: list[int | None]) -> None:
        tokens = sequence.tokens
        # The embedding is one-hot in the first half; the second half has the frequencies in the same units.
        ids = hidden[:, :V].argmax(dim=-1)
        reads = hidden[:, V:] / hidden[:, :V].gather(1, ids[:, None])
        for column, (token, own, position) in enumerate(zip(ids.tolist(), real.tolist(), positions, strict=True)):
            index = len(tokens)
            seen = tuple(reads[column].tolist())
            complete = False
            if own:
                tokens.append(token)
                complete = max(abs(a - b) for a, b in zip(seen, frequencies(tokens), strict=True)) < READ
            sequence.queries.append(Query(token, own, index, seen, position, len(self.passes) - 1, complete))

    # What is said of it

    @property
    def fed(self) -> list[Query]:
        """All real tokens that were fed."""
        return [query for sequence in self.sequences for query in sequence.queries if query.real]

    @property
    def misses(self) -> int:
        """Number of queries that did not read all tokens before them."""
        return sum(not query.complete for query in self.fed)

    def evidence(self) -> str:
        """The passes, their caches, and the queries that met an eviction, in words."""
        if not self.passes:
            return "no pass was run"
        cached = sum(one.cached for one in self.passes)
        sizes = sorted({one.columns for one in self.passes})
        length = _many(sizes[0], "token") if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} tokens"
        passes = _many(len(self.passes), "pass", "passes")
        caches = "none had a cache" if not cached else f"{cached} with a cache" if cached < len(self.passes) else ""
        parts = ", ".join(part for part in (f"{passes} of {length}", caches) if part)
        return f"{parts}; {self.misses} of {len(self.fed)} queries met an eviction{self._unmet()}"

    def _unmet(self) -> str:
        """Evictions that no query met, in words."""
        for sequence in self.sequences:
            held, seen = sequence.held, len(sequence.tokens)
            if self.misses or not held or min(held) >= seen:
                continue
            layers = ", ".join(f"layer {index} holds {own}" for index, own in enumerate(held))
            if held[-1] < seen:
                return f"; entries were evicted after the last query: {layers} of {seen} tokens at the end"
            return f"; the last layer evicted nothing: {layers} of {seen} tokens at the end"
        return ""


def _many(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


@contextmanager
def recording() -> Iterator[Record]:
    """Record the passes of every bag, copies included, while the context is open."""
    record = Record()
    names = list(inspect.signature(LlamaModel.forward).parameters)[1:]

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(module, LlamaRotaryEmbedding):
            record._note_positions({**dict(zip(("x", "position_ids"), args, strict=False)), **kwargs})
        elif isinstance(module, LlamaModel) and module.config.hidden_size == 2 * V:
            record._note_pass({**dict(zip(names, args, strict=False)), **kwargs}, output)

    handle = register_module_forward_hook(note, with_kwargs=True)
    try:
        yield record
    finally:
        handle.remove()
