"""Known mistakes of memory figures, and which of them give exactly the figure that was reported."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from pressgauge.measuring.byte_counts import Count
from pressgauge.measuring.counters import Read
from pressgauge.measuring.footprints import HEADS, LAYERS, PROMPT, UNITS


class Cause(NamedTuple):
    """What a mistake takes for a figure, or by which factor it changes one.

    Attributes:
        key: name of the mistake, the same in all readings; up to a colon, of its family.
        words: the mistake, in words and numbers.
        value: the figure that it gives, or the factor.
        depth: number of mistakes in one.
    """

    key: str
    words: str
    value: float
    depth: int = 1


def finding(count: Count, others: Sequence[Count] = ()) -> str:
    """What is wrong with a figure; empty if it is right.

    Args:
        count: the figure.
        others: the same figure of other readings, which a mistake has to explain as well.
    """
    if count.holds:
        return ""
    what = f"reported {count.written(count.reported)}"
    if abs(count.reported - count.right) <= count.rounding:
        step = count.written(count.reading.printed[count.name])
        return f"{what}, in steps of {step}, which are too coarse to tell; {count.truth}"
    because = explained(count, others)
    return f"{what}{f' is {because}' if because else ', which no known mistake gives'}; {count.truth}"


def explained(count: Count, others: Sequence[Count] = ()) -> str:
    """The simplest mistakes that give a figure, and those of other readings; empty if there is none."""
    bases, reads, by = list(_bases(count)), list(_reads(count)), list(_factors(count))
    single = [cause for cause in bases if cause.depth == 1]
    itself = Cause("right", _itself(count), count.right)
    levels: list[list[tuple[Cause, ...]]] = [
        [(base,) for base in single],
        [(base,) for base in reads],
        [(itself, factor) for factor in by],
        [(base, factor) for base in [*single, *reads] for factor in by],
        [(base,) for base in bases if base.depth == 2],
        [(itself, one, two) for one in by for two in by if one.key < two.key],
        [(base, one, two) for base in single for one in by for two in by if one.key < two.key],
    ]
    for level in levels:
        found = [causes for causes in level if _gives(count, math.prod(cause.value for cause in causes))]
        shared = [causes for causes in found if all(_follows(other, causes) for other in others)]
        families: dict[str, tuple[Cause, ...]] = {}
        for causes in shared or found:
            families.setdefault(causes[0].key.partition(":")[0], causes)
        if families:
            words = [", ".join(cause.words for cause in causes) for causes in families.values()]
            return " or ".join(words[:2])
    return ""


def _gives(count: Count, value: float) -> bool:
    """Whether a value is the reported one, and not the right one."""
    return count.equals(value) and abs(value - count.right) > count.tolerance(count.right)


def _follows(count: Count, causes: Sequence[Cause]) -> bool:
    """Whether the same mistakes give this figure as well; some make no difference to it."""
    bases = {cause.key: cause.value for cause in [*_bases(count), *_reads(count)]}
    factors = {cause.key: cause.value for cause in _factors(count)}
    first, *rest = causes
    return count.equals(bases.get(first.key, count.right) * math.prod(factors.get(cause.key, 1.0) for cause in rest))


def _itself(count: Count) -> str:
    return {"peak": "the peak", "kv_cache": "what the cache holds"}.get(count.name, "the right one")


def _factors(count: Count) -> Iterator[Cause]:
    """Factors by which mistakes change a figure."""
    scenario, declares = count.reading.scenario, count.subject.declares
    if count.name == "ratio":
        yield Cause("per cent", "in per cent", 100.0)
        return
    if count.name != "peak":
        own = scenario.dtype.itemsize
        if scenario.kv_heads != HEADS:
            words = f"with {HEADS} query heads for {scenario.kv_heads} KV heads"
            yield Cause("query heads", words, HEADS / scenario.kv_heads)
        if scenario.rows > 1:
            yield Cause("row", f"of one row of {scenario.rows}", 1 / scenario.rows)
        yield Cause("keys", "of keys without values", 0.5)
        for size in (2, 4, 1):
            if size != own:
                yield Cause(f"{size} bytes", f"with {size} bytes a number, which has {own}", size / own)
    unit = UNITS[declares.unit]
    for name, size in UNITS.items():
        if size != unit:
            yield Cause(name, f"in {name} where {declares.unit} is declared", unit / size)
    yield Cause("bits", "in bits", 8.0)


def _bases(count: Count) -> Iterator[Cause]:
    """What mistakes take for the figure, but for the right one."""
    caches = [cause for cause in _caches(count) if cause.value != count.held]
    if count.name == "kv_cache":
        yield Cause("dropped", "nothing: the cache was no longer there when it was read", 0.0)
        yield from caches
    elif count.name == "peak":
        yield from _peaks(count, caches)
    else:
        yield from _savings(count, caches)


def _caches(count: Count) -> Iterator[Cause]:
    """What mistakes take for the bytes of the cache."""
    reading, run = count.reading, count.run
    state, skipped = run.state, reading.scenario.skip_layers
    kept, numbers, others = (sum(getattr(layer, name) for layer in state) for name in ("storage", "numbers", "other"))
    words = f"{others:,} bytes of metadata, such as positions, scores and scales"
    yield Cause("metadata: without", f"keys and values without {words}", float(kept))
    yield Cause("metadata: with", f"keys, values and {words}", float(kept + others))
    if numbers != kept:
        words = f"what views of keys and values show, which keep storages of {kept:,} bytes alive"
        yield Cause("views: alone", words, float(numbers))
        yield Cause("views: with metadata", f"{words}, and metadata", float(numbers + others))
    yield from _nominal(count)
    for layer in range(len(state)):
        own = count.total(state[layer : layer + 1])
        yield Cause(f"layer: times {layer}", f"{LAYERS} times layer {layer}, though layers differ", LAYERS * own)
        yield Cause(f"layer: alone {layer}", f"layer {layer} alone", own)
    if skipped:
        pressed = tuple(layer for index, layer in enumerate(state) if index not in skipped)
        yield Cause("layer: pressed", f"without the skipped layers {list(skipped)}", count.total(pressed))
    ends = {passes: count.total(moment) for passes, moment in run.states}
    for size, group in groupby(ends, ends.__getitem__):
        passes = list(group)
        span = " to ".join(str(number) for number in sorted({passes[0], passes[-1]}))
        for number in passes:
            yield Cause(f"moment: {number}", f"what the cache held after pass {span} of {len(run.lengths)}", size)
    for number, moment in run.states:
        words = f"what the cache held after pass {number} of {len(run.lengths)}, before its eviction"
        if count.total(moment) != ends[number]:
            yield Cause(f"moment: before {number}", words, count.total(moment))
    for index, other in enumerate(reading.runs):
        if other is not run and other.cached:
            yield Cause(f"run: {index}", f"the cache of another run of {other.seen} tokens", count.total(other.state))


def _lengths(count: Count) -> Iterator[tuple[str, str, int]]:
    """Numbers of tokens that are taken for those seen: key, words, number."""
    seen, new = count.run.seen, count.reading.scenario.new_tokens
    yield "seen", f"the {seen} tokens seen", seen
    yield "prompt", f"the prompt's {PROMPT} tokens", PROMPT
    yield "both", f"{PROMPT + new} tokens, though {seen} were fed", PROMPT + new
    yield "more", f"{seen + 1} tokens, though {seen} were fed", seen + 1
    yield "less", f"{seen - 1} tokens, though {seen} were fed", seen - 1
    yield "new", f"the {new} new tokens", new


def _nominal(count: Count) -> Iterator[Cause]:
    """Uncompressed caches, and what a ratio leaves of them."""
    whole, ratio = count.reading.whole, count.reading.scenario.keep_ratio
    skipped = len(count.reading.scenario.skip_layers) / LAYERS
    for key, words, tokens in _lengths(count):
        yield Cause(f"whole: {key}", f"the uncompressed cache of {words}", whole(tokens))
    for key, words, tokens in _lengths(count):
        for way, entries in {
            "exact": ratio * tokens,
            "up": math.ceil(ratio * tokens),
            "down": int(ratio * tokens),
            "evicted": (1 - ratio) * tokens,
        }.items():
            share = f"the evicted share {1 - ratio:.4g}" if way == "evicted" else f"the nominal ratio {ratio:g}"
            what = f"{share} of {words} in all"
            yield Cause(f"nominal: {key} {way}", f"{what} {LAYERS} layers", whole(entries))
            if skipped:
                most = whole(entries) * (1 - skipped) + whole(tokens) * skipped
                yield Cause(f"nominal: {key} {way} but", f"{what} layers that are not skipped", most)


def _peaks(count: Count, caches: Sequence[Cause]) -> Iterator[Cause]:
    """What mistakes take for the peak."""
    reading, run, above = count.reading, count.run, count.above
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
    yield Cause("weights", words, float(run.peak if above else run.peak - count.weights))
    for key, what, value, _ in [Cause("cache", "what the cache holds", count.held), *caches]:
        yield Cause(f"snapshot {key}", f"a snapshot, weights and {what}", value + count.weights - above)
        yield Cause(f"no peak {key}", f"no peak, but {what}", value)


def _savings(count: Count, caches: Sequence[Cause]) -> Iterator[Cause]:
    """What mistakes take for a saving: of two caches one is wrong, or both."""
    run, declares = count.run, count.subject.declares
    if count.name == "ratio":
        for way, words in (
            ("held", "compressed to uncompressed"),
            ("saved", "saved to uncompressed"),
            ("factor", "uncompressed to compressed"),
        ):
            if way != declares.ratio:
                words = f"the ratio of {words}, where {declares.ratio!r} is declared"
                yield Cause(f"convention: {way}", words, count.compared(count.held, count.whole, way))
    wholes = []
    for index, other in enumerate(count.reading.runs):
        if other is run or not other.cached:
            continue
        peaks = count.compared(float(run.peak), float(other.peak))
        yield Cause(f"peaks: {index}", "that of the two runs' peaks, not of their caches", peaks)
        for passes, state in other.states:
            last = passes == len(other.lengths)
            moment = "" if last else f" after pass {passes}, so that the arms were sampled at different moments"
            words = f"another run of {other.seen} tokens{moment}"
            wholes.append(Cause(f"run {index} {passes}", words, count.total(state)))
    for key, words, tokens in _lengths(count):
        if tokens != run.seen:
            wholes.append(Cause(key, f"the uncompressed cache of {words}", count.reading.whole(tokens)))
    cache, whole = Cause("cache", "the cache", count.held), Cause("seen", "the uncompressed one", count.whole)
    pairs = [(own, whole, 1) for own in caches] + [(cache, other, 1) for other in wholes]
    pairs += [(own, other, 2) for own in caches for other in wholes]
    for own, against, depth in pairs:
        words = f"that of {own.words} against {against.words}"
        yield Cause(f"{own.key}, {against.key}", words, count.compared(own.value, against.value), depth)


def _reads(count: Count) -> Iterator[Cause]:
    """Readings of counters, and their differences, in bytes."""
    if count.name in ("saved", "ratio"):
        return
    reads = list(enumerate(count.reading.reads))
    for index, read in reads:
        yield Cause(f"read: {index}", _says(count, read), float(read.value))
    for index, read in reads:
        words = f"{_says(count, read)}, less the weights"
        yield Cause(f"read: {index} weights", words, float(read.value - count.weights))
    for one, first in reads:
        for two, last in reads[one + 1 :]:
            words = f"{_says(count, last)}, less {first.name} after pass {first.passes}"
            yield Cause(f"read: {one} {two}", words, float(last.value - first.value))


def _says(count: Count, read: Read) -> str:
    moment = f"after pass {read.passes} of {count.reading.passes}"
    if read.name == "memory_allocated":
        return f"memory_allocated {moment}, a snapshot"
    if read.name in ("memory_reserved", "max_memory_reserved"):
        return f"{read.name} {moment}, what the allocator reserved, not what tensors have"
    if read.name in ("rss", "ru_maxrss", "get_traced_memory"):
        return f"{read.name} of the process {moment}, which is not that of tensors"
    return f"{read.name} {moment}, {'since its last reset' if read.reset else 'never reset'}"
