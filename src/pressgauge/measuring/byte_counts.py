"""Right figures of memory, and what known mistakes would report: arithmetic over the record of a reading."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pressgauge.measuring.footprints import DIMENSION, HEADS, LAYERS, PROMPT, UNITS, Footprint, Reading
from pressgauge.measuring.meter import Read, Run
from pressgauge.measuring.storages import State

Cause = tuple[str, float]
"""What a figure is, in words, and its value."""

COARSEST = 0.01
"""Largest share of a figure by which rounding may change it."""


@dataclass(frozen=True)
class Count:
    """One figure of a reading, with the values that mistakes would give it.

    Args:
        subject: the function.
        reading: its reading, which has a run.
        name: ``peak``, ``kv_cache``, ``saved`` or ``ratio``.
    """

    subject: Footprint
    reading: Reading
    name: str

    @property
    def run(self) -> Run:
        """The run whose figure is reported."""
        run = self.reading.run
        assert run is not None
        return run

    def total(self, state: State) -> float:
        """Bytes of a cache, with or without metadata as declared."""
        counted = self.subject.declares.metadata == "counted"
        return float(sum(layer.storage + counted * layer.other for layer in state))

    def convert(self, held: float, whole: float) -> float:
        """Saved bytes, or the declared ratio, of a cache and an uncompressed one."""
        if self.name == "saved":
            return whole - held
        return self.ratio(held / whole if whole else math.nan, self.subject.declares.ratio)

    @staticmethod
    def ratio(share: float, convention: str) -> float:
        """A share of held bytes in a convention of ratios."""
        return {"held": share, "saved": 1 - share, "factor": 1 / share if share else math.inf}[convention]

    @property
    def right(self) -> float:
        """The right value."""
        if self.name == "peak":
            reading = self.reading
            above = reading.weights + reading.buffers if self.subject.declares.above == "weights" else 0
            return float(self.run.peak - above)
        held = self.total(self.run.state)
        return held if self.name == "kv_cache" else self.convert(held, self.reading.whole(self.run.seen))

    @property
    def tolerance(self) -> float:
        """How far a figure may be from the right one: half of its last digit, within 1 %."""
        rounding = min(0.51 * self.reading.printed[self.name], COARSEST * abs(self.right))
        # Whether buffers are weights is a matter of taste.
        taste = self.reading.buffers if self.name == "peak" and self.subject.declares.above == "weights" else 0
        return max(rounding, 1e-9 * abs(self.right)) + taste

    def finding(self) -> str:
        """What is wrong with the figure; empty if it is right."""
        reported = self.reading.figures[self.name]
        assert reported is not None
        if abs(reported - self.right) <= self.tolerance:
            return ""
        because = self._explained(reported)
        what = f"reported {self.written(reported)}"
        return f"{what} is {because}; {self._truth()}" if because else f"{what}, and no known mistake; {self._truth()}"

    def written(self, value: float) -> str:
        """A value in words."""
        if self.name == "ratio":
            return f"{value:.4g}"
        return f"{value:,.0f} bytes" if abs(value) >= 1 or not value else f"{value:.4g} bytes"

    def _truth(self) -> str:
        run = self.run
        if self.name == "peak":
            above = " above the weights" if self.subject.declares.above == "weights" else ""
            return f"the peak of this run was {self.written(self.right)}{above}"
        held = self.total(run.state)
        entries = self.reading.scenario.rows * self.reading.whole(1) / LAYERS / self.reading.scenario.rows
        layers = ", ".join(f"{(layer.storage + layer.other) / entries:.4g}" for layer in run.state)
        truth = f"the cache holds {held:,.0f} bytes, {layers} of {run.seen} tokens' in its layers"
        if self.name == "kv_cache":
            return truth
        whole = self.reading.whole(run.seen)
        return f"{truth}, the uncompressed one {whole:,.0f}: {self.written(self.right)}"

    def _explained(self, reported: float) -> str:
        """The mistakes that give exactly this figure, the simplest first; empty if none does."""
        factors = list(self.factors())
        bases, reads = list(self.bases()), [] if self.name in ("saved", "ratio") else list(self._read())
        level = [*bases, *reads]
        for causes in (bases, reads):
            if found := self._first(reported, causes):
                return found
        for _ in range(2):
            level = [(f"{words}, {how}", value * factor) for words, value in level for how, factor in factors]
            if found := self._first(reported, level):
                return found
        return ""

    def _first(self, reported: float, causes: list[Cause]) -> str:
        """The first two that give this figure."""
        found = [words for words, value in causes if self._matches(reported, value)]
        return " or ".join(list(dict.fromkeys(found))[:2])

    def _matches(self, reported: float, value: float) -> bool:
        if not math.isfinite(value) or abs(value - self.right) <= self.tolerance:
            return False
        rounding = min(0.51 * self.reading.printed[self.name], COARSEST * abs(value))
        return abs(reported - value) <= max(rounding, 1e-9 * abs(value))

    # What mistakes give

    def factors(self) -> Iterator[Cause]:
        """Factors by which a mistake changes bytes."""
        scenario, declares = self.reading.scenario, self.subject.declares
        if self.name == "ratio":
            yield "in per cent", 100.0
            return
        if self.name != "peak":
            own = scenario.dtype.itemsize
            if scenario.kv_heads != HEADS:
                yield f"with {HEADS} query heads for {scenario.kv_heads} KV heads", HEADS / scenario.kv_heads
            for size in (2, 4, 8, 1):
                if size != own:
                    yield f"with {size} bytes a number, which has {own}", size / own
            if scenario.rows > 1:
                yield f"of one row of {scenario.rows}", 1 / scenario.rows
            yield "of keys without values", 0.5
        unit = UNITS[declares.unit]
        for name, size in UNITS.items():
            if size != unit:
                yield f"in {name} where {declares.unit} is declared", unit / size
        yield "in bits", 8.0

    def bases(self) -> Iterator[Cause]:
        """What a mistake takes for the figure."""
        if self.name == "peak":
            yield from self._peaks()
        elif self.name == "kv_cache":
            yield from self._caches()
        else:
            yield from self._compared()

    def _caches(self) -> Iterator[Cause]:
        """What a mistake takes for the bytes of the cache."""
        reading, run = self.reading, self.run
        scenario, state = reading.scenario, run.state
        yield "nothing: the cache was no longer there when it was read", 0.0
        yield "what the cache holds", self.total(state)
        kept = sum(layer.storage for layer in state)
        numbers = sum(layer.numbers for layer in state)
        others = sum(layer.other for layer in state)
        if numbers != kept:
            words = f"what views of keys and values show, which keep storages of {kept:,} bytes alive"
            yield words, float(numbers)
            yield f"{words}, and metadata", float(numbers + others)
        if others:
            words = f"{others:,} bytes of metadata, such as positions, scores and scales"
            yield f"keys and values without {words}", float(kept)
            yield f"keys, values and {words}", float(kept + others)
        yield from self._nominal()
        for layer in range(len(state)):
            own = self.total(state[layer : layer + 1])
            yield f"{LAYERS} times layer {layer}, though layers differ", LAYERS * own
            yield f"layer {layer} alone", own
        if scenario.skip_layers:
            pressed = tuple(layer for index, layer in enumerate(state) if index not in scenario.skip_layers)
            yield f"without the skipped layers {list(scenario.skip_layers)}", self.total(pressed)
        for passes, earlier in run.states[:-1]:
            yield f"what the cache held after pass {passes} of {len(run.lengths)}", self.total(earlier)
        for other in reading.runs:
            if other is not run and other.cached:
                yield f"the cache of another run, of {other.seen} tokens", self.total(other.state)

    def _lengths(self) -> Iterator[tuple[str, int]]:
        seen = self.run.seen
        new = self.reading.scenario.new_tokens
        yield f"the {seen} tokens seen", seen
        yield f"the prompt's {PROMPT} tokens", PROMPT
        yield f"the {new} new tokens", new
        for tokens in (seen + 1, seen - 1, PROMPT + new):
            if tokens != seen:
                yield f"{tokens} tokens, though {seen} were fed", tokens

    def _nominal(self) -> Iterator[Cause]:
        scenario = self.reading.scenario
        ratio, skipped = scenario.keep_ratio, len(scenario.skip_layers)  # the ratio is below a half
        for words, tokens in self._lengths():
            yield f"the uncompressed cache of {words}", self.reading.whole(tokens)
        if ratio == 1:
            return
        given: set[float] = set()
        for words, tokens in self._lengths():
            for count in (ratio * tokens, math.ceil(ratio * tokens), int(ratio * tokens), (1 - ratio) * tokens):
                nominal = self.reading.whole(count)
                share = f"the nominal ratio {ratio}" if count < tokens / 2 else f"the evicted share {1 - ratio:.4g}"
                rest = self.reading.whole(tokens - count) * skipped / LAYERS
                if nominal not in given:
                    yield f"{share} of {words} in all {LAYERS} layers", nominal
                    yield f"{share} of {words} in all layers that are not skipped", nominal + rest
                given.add(nominal)

    def _peaks(self) -> Iterator[Cause]:
        reading, run = self.reading, self.run
        base = reading.weights + reading.buffers
        above = base if self.subject.declares.above == "weights" else 0
        if run.shared_peak != run.peak:
            yield (
                f"the peak with {run.shared_peak - run.peak:,} bytes of another run's cache, which was still alive",
                float(run.shared_peak - above),
            )
        before = f"the peak of what ran before: the counter was not reset, and this run's peak was {run.peak:,}"
        yield before, float(reading.peak_before - above)
        for other in reading.runs:
            if other is not run:
                what = "uncompressed run" if not reading.evicts(other) else "run"
                yield f"the peak of another {what}: the counter was not reset between them", float(other.peak - above)
        what = "the peak and the weights, which are declared to be left out" if above else "the peak above the weights"
        yield what, float(run.peak if above else run.peak - base)
        caches = list(self._caches())
        yield from ((f"a snapshot, weights and {words}", value + base - above) for words, value in caches)
        yield from ((f"no peak, but {words}", value) for words, value in caches)

    def _read(self) -> Iterator[Cause]:
        """Readings of counters, and their differences."""
        reads: Sequence[Read] = self.reading.reads
        for read in reads:
            yield self._says(read), float(read.value)
        for base in ("weights", "buffers"):
            size = self.reading.weights + (self.reading.buffers if base == "buffers" else 0)
            yield from ((f"{self._says(read)}, less the weights", float(read.value - size)) for read in reads)
        for index, first in enumerate(reads):
            for read in reads[index + 1 :]:
                if read.value != first.value:
                    words = f"{self._says(read)}, less {first.name} after pass {first.passes}"
                    yield words, float(read.value - first.value)

    def _says(self, read: Read) -> str:
        moment = f"after pass {read.passes} of {self.reading.passes}"
        if read.name == "memory_allocated":
            return f"memory_allocated {moment}, a snapshot"
        if read.name in ("memory_reserved", "max_memory_reserved"):
            return f"{read.name} {moment}, what the allocator reserved, not what tensors have"
        if read.name in ("rss", "ru_maxrss"):
            return f"{read.name} of the process {moment}, which is not that of tensors"
        return f"{read.name} {moment}, {'since its last reset' if read.reset else 'never reset'}"

    def _compared(self) -> Iterator[Cause]:
        """What a mistake takes for a saving: two caches, one of them wrong, or both."""
        run, declares = self.run, self.subject.declares
        held, whole = self.total(run.state), self.reading.whole(run.seen)
        caches: list[Cause] = [("the cache", held), *self._caches()]
        wholes: list[Cause] = [("the uncompressed one", whole)]
        wholes += [(f"the uncompressed cache of {words}", self.reading.whole(count)) for words, count in self._lengths()]
        for other in self.reading.runs:
            if other is not run and other.cached:
                wholes += [
                    (f"another run's after pass {passes} of {len(other.lengths)}", self.total(state))
                    for passes, state in other.states
                ]
                peaks = float(run.peak), float(other.peak)
                yield "that of the two runs' peaks, not of their caches", self.convert(*peaks)
        if self.name == "ratio":
            for convention, words in (
                ("held", "compressed to uncompressed"),
                ("saved", "the share that was saved"),
                ("factor", "uncompressed to compressed"),
            ):
                if convention != declares.ratio:
                    yield f"the ratio of {words}, where {declares.ratio!r} is declared", self.ratio(held / whole, convention)
            yield f"the nominal ratio {self.reading.scenario.keep_ratio}", self.reading.scenario.keep_ratio
        pairs = [(first, second) for first in caches for second in wholes[:1]]
        pairs += [(first, second) for first in caches[:1] for second in wholes[1:]]
        pairs += [(first, second) for first in caches[1:] for second in wholes[1:]]
        for (what, own), (against, other_bytes) in pairs:
            yield f"that of {what} against {against}", self.convert(own, other_bytes)
