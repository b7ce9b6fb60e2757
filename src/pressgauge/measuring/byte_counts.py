"""Right figures of memory, and what known mistakes would report: arithmetic over the record of a reading."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from pressgauge.measuring.footprints import DIMENSION, HEADS, LAYERS, PROMPT, UNITS, Footprint, Reading
from pressgauge.measuring.meter import Read, Run
from pressgauge.measuring.storages import State

COARSEST = 0.02
"""Largest share of a figure by which rounding may change it."""


class Cause(NamedTuple):
    """What a mistake takes for a figure, or by which factor it changes one.

    Attributes:
        key: name of the mistake, the same in all readings; up to a colon, of its family.
        words: the mistake, in words and numbers.
        value: the figure that it gives, or the factor.
    """

    key: str
    words: str
    value: float


@dataclass(frozen=True)
class Count:
    """One figure of a reading, with the values that mistakes would give it.

    Args:
        subject: the function.
        reading: its reading, which has a run.
        name: ``peak``, ``kv_cache``, ``saved`` or ``ratio``.
        others: the same figure of other readings, which a mistake has to explain as well.
    """

    subject: Footprint
    reading: Reading
    name: str
    others: Sequence["Count"] = field(default=(), repr=False)

    @property
    def run(self) -> Run:
        """The run whose figure is reported."""
        run = self.reading.run
        assert run is not None
        return run

    @property
    def reported(self) -> float:
        """The figure, in bytes or as a ratio."""
        value = self.reading.figures[self.name]
        assert value is not None
        return value

    def total(self, state: State) -> float:
        """Bytes of a cache, with or without metadata as declared."""
        counted = self.subject.declares.metadata == "counted"
        return float(sum(layer.storage + counted * layer.other for layer in state))

    def compared(self, held: float, whole: float, ratio: str | None = None) -> float:
        """Saved bytes, or the ratio in a convention, by default the declared one."""
        if self.name == "saved":
            return whole - held
        share = held / whole if whole else math.nan
        convention = self.subject.declares.ratio if ratio is None else ratio
        return {"held": share, "saved": 1 - share, "factor": 1 / share if share else math.inf}[convention]

    @property
    def base(self) -> int:
        """Bytes of the model."""
        return self.reading.weights + self.reading.buffers

    @property
    def above(self) -> int:
        """Bytes that a peak is declared not to contain."""
        return self.base if self.subject.declares.above == "weights" else 0

    @property
    def right(self) -> float:
        """The right value."""
        if self.name == "peak":
            return float(self.run.peak - self.above)
        held = self.total(self.run.state)
        return held if self.name == "kv_cache" else self.compared(held, self.reading.whole(self.run.seen))

    def tolerance(self, value: float) -> float:
        """How far the figure may be from a value: half of its last digit, within 2 %."""
        rounding = min(0.51 * self.reading.printed[self.name], COARSEST * abs(value))
        return max(rounding, 1e-9 * abs(value))

    @property
    def holds(self) -> bool:
        """Whether the figure is right. Whether buffers are weights is up to the function."""
        taste = self.reading.buffers if self.name == "peak" and self.above else 0
        return abs(self.reported - self.right) <= self.tolerance(self.right) + taste

    def finding(self) -> str:
        """What is wrong with the figure; empty if it is right."""
        if self.holds:
            return ""
        what = f"reported {self.written(self.reported)}"
        rounding = self.reading.printed[self.name]
        if abs(self.reported - self.right) <= 0.51 * rounding:
            return f"{what}, rounded to {self.written(rounding)}, which is too coarse to be told; {self._truth()}"
        because = self._explained()
        return f"{what} is {because}; {self._truth()}" if because else f"{what}, and no known mistake; {self._truth()}"

    def written(self, value: float) -> str:
        """A value in words."""
        if self.name == "ratio":
            return f"{value:.4g}"
        return f"{value:,.0f} bytes" if abs(value) >= 1 or not value else f"{value:.4g} bytes"

    def _truth(self) -> str:
        run = self.run
        if self.name == "peak":
            above = " above the weights" if self.above else ""
            return f"the peak of this run was {self.written(self.right)}{above}"
        token = self.reading.whole(1) / LAYERS
        layers = ", ".join(f"{(layer.storage + layer.other) / token:.4g}" for layer in run.state)
        truth = f"the cache holds {self.total(run.state):,.0f} bytes, by layer those of {layers} of {run.seen} tokens"
        if self.name == "kv_cache":
            return truth
        whole = self.reading.whole(run.seen)
        return f"{truth}, the uncompressed one {whole:,.0f}: {self.written(self.right)}"

    # The search for mistakes that give exactly the reported figure

    def _explained(self) -> str:
        """The simplest mistakes that explain the figure, and those of other readings; empty if there is none."""
        bases, factors, reads = list(self.bases(every=False)), list(self.factors()), list(self.reads())
        once = [(base, factor) for base in [*bases, *reads] for factor in factors]
        twice = [(*both, factor) for both in once for factor in factors if factor.key > both[1].key]
        for level in ([(base,) for base in bases], [(base,) for base in reads], once, twice):
            found = [causes for causes in level if self._matches(math.prod(cause.value for cause in causes))]
            shared = [causes for causes in found if all(other.follows(causes) for other in self.others)]
            families = {causes[0].key.partition(":")[0]: causes for causes in reversed(shared or found)}
            if families:
                words = [", ".join(cause.words for cause in causes) for causes in reversed(families.values())]
                return " or ".join(words[:2])
        return ""

    def _matches(self, value: float) -> bool:
        """Whether a value is the reported one, and not the right one."""
        if not math.isfinite(value) or abs(value - self.right) <= self.tolerance(self.right):
            return False
        return abs(self.reported - value) <= self.tolerance(value)

    def follows(self, causes: Sequence[Cause]) -> bool:
        """Whether the same mistakes give this figure as well."""
        bases = {cause.key: cause.value for cause in [*self.bases(), *self.reads()]}
        factors = {cause.key: cause.value for cause in self.factors()}
        first, *rest = causes
        value = math.prod([bases.get(first.key, math.nan), *(factors.get(cause.key, 1.0) for cause in rest)])
        return abs(self.reported - value) <= self.tolerance(value)

    def factors(self) -> Iterator[Cause]:
        """Factors by which mistakes change a figure."""
        scenario, declares = self.reading.scenario, self.subject.declares
        if self.name == "ratio":
            yield Cause("per cent", "in per cent", 100.0)
            return
        if self.name != "peak":
            own = scenario.dtype.itemsize
            if scenario.kv_heads != HEADS:
                words = f"with {HEADS} query heads for {scenario.kv_heads} KV heads"
                yield Cause("query heads", words, HEADS / scenario.kv_heads)
            if scenario.rows > 1:
                yield Cause("row", f"of one row of {scenario.rows}", 1 / scenario.rows)
            yield Cause("keys", "of keys without values", 0.5)
            for size in (2, 4, 8, 1):
                if size != own:
                    yield Cause(f"{size} bytes", f"with {size} bytes a number, which has {own}", size / own)
        unit = UNITS[declares.unit]
        for name, size in UNITS.items():
            if size != unit:
                yield Cause(name, f"in {name} where {declares.unit} is declared", unit / size)
        yield Cause("bits", "in bits", 8.0)

    def bases(self, *, every: bool = True) -> Iterator[Cause]:
        """What mistakes take for the figure: ``every`` one, or without those that make no difference here."""
        held = self.total(self.run.state)
        caches = [cause for cause in self._caches() if every or cause.value != held]
        if self.name == "kv_cache":
            yield Cause("dropped", "nothing: the cache was no longer there when it was read", 0.0)
            yield from [Cause("cache", "what the cache holds", held), *caches]
        else:
            yield from self._peaks(caches) if self.name == "peak" else self._savings(caches)

    def _caches(self) -> Iterator[Cause]:
        """What mistakes take for the bytes of the cache."""
        reading, run = self.reading, self.run
        state, skipped = run.state, reading.scenario.skip_layers
        kept, numbers, others = (
            sum(getattr(layer, name) for layer in state) for name in ("storage", "numbers", "other")
        )
        words = f"{others:,} bytes of metadata, such as positions, scores and scales"
        yield Cause("metadata: without", f"keys and values without {words}", float(kept))
        yield Cause("metadata: with", f"keys, values and {words}", float(kept + others))
        words = f"what views of keys and values show, which keep storages of {kept:,} bytes alive"
        yield Cause("views: alone", words, float(numbers))
        yield Cause("views: with metadata", f"{words}, and metadata", float(numbers + others))
        yield from self._nominal()
        for layer in range(len(state)):
            own = self.total(state[layer : layer + 1])
            yield Cause(f"layer: times {layer}", f"{LAYERS} times layer {layer}, though layers differ", LAYERS * own)
            yield Cause(f"layer: alone {layer}", f"layer {layer} alone", own)
        if skipped:
            pressed = tuple(layer for index, layer in enumerate(state) if index not in skipped)
            yield Cause("layer: pressed", f"without the skipped layers {list(skipped)}", self.total(pressed))
        ends = {passes: self.total(moment) for passes, moment in run.states}
        for size, passes in groupby(ends, ends.__getitem__):
            first, *rest = passes
            words = f"what the cache held after pass {f'{first} to {rest[-1]}' if rest else first} of {len(run.lengths)}"
            for number in (first, *rest):
                yield Cause(f"moment: {number}", words, size)
        for passes, moment in run.states:
            words = f"what the cache held after pass {passes} of {len(run.lengths)}, before its eviction"
            if self.total(moment) != ends[passes]:
                yield Cause(f"moment: before {passes}", words, self.total(moment))
        for index, other in enumerate(reading.runs):
            if other is not run and other.cached:
                yield Cause(f"run: {index}", f"the cache of another run of {other.seen} tokens", self.total(other.state))

    def _lengths(self) -> Iterator[tuple[str, str, int]]:
        """Numbers of tokens that are taken for those seen: key, words, number."""
        seen, new = self.run.seen, self.reading.scenario.new_tokens
        yield "seen", f"the {seen} tokens seen", seen
        yield "prompt", f"the prompt's {PROMPT} tokens", PROMPT
        yield "both", f"{PROMPT + new} tokens, though {seen} were fed", PROMPT + new
        yield "more", f"{seen + 1} tokens, though {seen} were fed", seen + 1
        yield "less", f"{seen - 1} tokens, though {seen} were fed", seen - 1
        yield "new", f"the {new} new tokens", new

    def _nominal(self) -> Iterator[Cause]:
        """Uncompressed caches, and what a ratio leaves of them."""
        whole, ratio = self.reading.whole, self.reading.scenario.keep_ratio
        skipped = len(self.reading.scenario.skip_layers) / LAYERS
        for key, words, tokens in self._lengths():
            yield Cause(f"whole: {key}", f"the uncompressed cache of {words}", whole(tokens))
        for key, words, tokens in self._lengths():
            for way, count in {
                "exact": ratio * tokens,
                "up": math.ceil(ratio * tokens),
                "down": int(ratio * tokens),
                "evicted": (1 - ratio) * tokens,
            }.items():
                share = f"the evicted share {1 - ratio:.4g}" if way == "evicted" else f"the nominal ratio {ratio:g}"
                what = f"{share} of {words} in all"
                yield Cause(f"nominal: {key} {way}", f"{what} {LAYERS} layers", whole(count))
                if skipped:
                    most = whole(count) * (1 - skipped) + whole(tokens) * skipped
                    yield Cause(f"nominal: {key} {way} but", f"{what} layers that are not skipped", most)

    def _peaks(self, caches: Sequence[Cause]) -> Iterator[Cause]:
        """What mistakes take for the peak."""
        caches = [Cause("cache", "what the cache holds", self.total(self.run.state)), *caches]
        yield Cause("peak", "the peak", self.right)
        reading, run, above = self.reading, self.run, self.above
        more = run.shared_peak - run.peak
        if more:
            words = f"the peak with {more:,} bytes of another run's cache, which was still alive"
            yield Cause("alive", words, float(run.shared_peak - above))
        for index, other in enumerate(reading.runs):
            if other is not run:
                arm = "run" if reading.evicts(other) else "uncompressed run"
                words = f"the peak of another {arm}: the counter was not reset between them"
                yield Cause(f"arm: {index}", words, float(other.peak - above))
        words = "the peak of what ran before: the counter was not reset"
        yield Cause("before", words, float(reading.peak_before - above))
        words = "the peak and the weights, which are declared to be left out" if above else "the peak above the weights"
        yield Cause("weights", words, float(run.peak if above else run.peak - self.base))
        for key, what, value in caches:
            yield Cause(f"snapshot {key}", f"a snapshot, weights and {what}", value + self.base - above)
        for key, what, value in caches:
            yield Cause(f"no peak {key}", f"no peak, but {what}", value)

    def _savings(self, caches: Sequence[Cause]) -> Iterator[Cause]:
        """What mistakes take for a saving: of two caches one is wrong, or both."""
        run, declares = self.run, self.subject.declares
        held, whole = self.total(run.state), self.reading.whole(run.seen)
        if self.name == "ratio":
            for way, words in (
                ("held", "compressed to uncompressed"),
                ("saved", "saved to uncompressed"),
                ("factor", "uncompressed to compressed"),
            ):
                if way != declares.ratio:
                    words = f"the ratio of {words}, where {declares.ratio!r} is declared"
                    yield Cause(f"convention: {way}", words, self.compared(held, whole, way))
        caches = [Cause("cache", "the cache", held), *caches]
        wholes = [Cause("seen", "the uncompressed one", whole)]
        for index, other in enumerate(self.reading.runs):
            if other is run or not other.cached:
                continue
            peaks = self.compared(float(run.peak), float(other.peak))
            yield Cause(f"peaks: {index}", "that of the two runs' peaks, not of their caches", peaks)
            for passes, state in other.states:
                last = passes == len(other.lengths)
                moment = "" if last else f" after pass {passes}, so that the arms were sampled at different moments"
                wholes.append(Cause(f"run {index} {passes}", f"another run of {other.seen} tokens{moment}", self.total(state)))
        wholes += [
            Cause(key, f"the uncompressed cache of {words}", self.reading.whole(count))
            for key, words, count in self._lengths()
        ]
        pairs = [(first, wholes[0]) for first in caches] + [(caches[0], second) for second in wholes[1:]]
        pairs += [(first, second) for first in caches[1:] for second in wholes[1:]]
        for own, other in pairs:
            words = f"that of {own.words} against {other.words}"
            yield Cause(f"{own.key}, {other.key}", words, self.compared(own.value, other.value))

    def reads(self) -> Iterator[Cause]:
        """Readings of counters, and their differences, in bytes."""
        if self.name in ("saved", "ratio"):
            return
        reads = list(enumerate(self.reading.reads))
        for index, read in reads:
            yield Cause(f"read: {index}", self._says(read), float(read.value))
        for index, read in reads:
            words = f"{self._says(read)}, less the weights"
            yield Cause(f"read: {index} weights", words, float(read.value - self.base))
        for one, first in reads:
            for two, last in reads[one + 1 :]:
                words = f"{self._says(last)}, less {first.name} after pass {first.passes}"
                yield Cause(f"read: {one} {two}", words, float(last.value - first.value))

    def _says(self, read: Read) -> str:
        moment = f"after pass {read.passes} of {self.reading.passes}"
        if read.name == "memory_allocated":
            return f"memory_allocated {moment}, a snapshot"
        if read.name in ("memory_reserved", "max_memory_reserved"):
            return f"{read.name} {moment}, what the allocator reserved, not what tensors have"
        if read.name in ("rss", "ru_maxrss"):
            return f"{read.name} of the process {moment}, which is not that of tensors"
        return f"{read.name} {moment}, {'since its last reset' if read.reset else 'never reset'}"
