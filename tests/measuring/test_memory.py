"""Laws for memory figures."""

import math
from dataclasses import replace
from typing import Any

import torch

from pressgauge.conformance.outcomes import DECLINES, Departure, not_applicable
from pressgauge.measuring.byte_counts import Count
from pressgauge.measuring.byte_mistakes import finding
from pressgauge.measuring.footprints import Footprint, Reading, Scenario

PLAIN = Scenario()
WHOLE = Scenario(keep_ratio=1.0)


def takes(memory: Footprint, option: str) -> None:
    """Skip a law about an option that the function does not take."""
    if option not in memory.taken({option: None}) and memory.declares.compressor != "argument":
        not_applicable(f"the function takes no {option}")


def plain(memory: Footprint) -> Reading:
    """The plain reading, for laws other than the first, which reports a failure."""
    try:
        return memory.reading(PLAIN)
    except Exception as error:
        not_applicable(f"the function fails: {said(error)}")


def read(memory: Footprint, scenario: Scenario) -> Reading:
    """The reading of a scenario, which a function may decline."""
    try:
        return memory.reading(scenario)
    except Departure:
        raise
    except DECLINES as error:
        if not str(error):
            raise
        not_applicable(f"the function declines: {said(error)}")


def said(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def counts(memory: Footprint, reading: Reading, *names: str) -> list[Count]:
    """Figures of these names, by default all, that a reading gives."""
    if reading.run is None:
        not_applicable("the model did not run")
    given = [name for name, value in reading.figures.items() if value is not None and math.isfinite(value)]
    return [Count(memory, reading, name) for name in given if not names or name in names]


def check(memory: Footprint, reading: Reading, *names: str, beside: Scenario = PLAIN) -> None:
    """Raise ``Departure`` for the first of these figures that is wrong; mistakes also explain those of ``beside``."""
    given = counts(memory, reading, *names)
    if not given:
        not_applicable(f"the function reports no {' or '.join(names) or 'figure'}")
    for count in given:
        if not count.holds:
            raise Departure(finding(count, others(memory, beside, count.name)))


def others(memory: Footprint, scenario: Scenario, name: str) -> list[Count]:
    """The same figure of another scenario, if there is one."""
    try:
        reading = memory.reading(scenario)
    except Exception:
        return []
    return counts(memory, reading, name) if reading.run is not None else []


def right_in_plain(memory: Footprint) -> None:
    """Skip a law whose figures are wrong already without what the law is about."""
    for count in counts(memory, plain(memory)):
        if not count.holds:
            not_applicable(f"the {count.name} is wrong without it")


def varied(memory: Footprint, **changes: Any) -> None:
    """Check all figures of a scenario in which something else is changed."""
    right_in_plain(memory)
    check(memory, read(memory, replace(PLAIN, **changes)))


def attempted(memory: Footprint, scenario: Scenario, what: str) -> Reading:
    """The reading of a scenario that a function need not support."""
    try:
        return memory.reading(scenario)
    except Departure:
        raise
    except Exception as error:
        not_applicable(f"the function does not take {what}: {said(error)}")


def test_a_figure_is_a_number(memory: Footprint) -> None:
    """A figure is a positive finite number, for every ratio; a saving may be 0 at ``keep_ratio`` 1."""
    for scenario in (PLAIN, WHOLE):
        for name, value in read(memory, scenario).figures.items():
            if value is None or not math.isfinite(value):
                raise Departure(f"reported {value} as {name} at keep_ratio {scenario.keep_ratio:g}")
            if value < 0:
                raise Departure(f"reported {value:,.6g} as {name} at keep_ratio {scenario.keep_ratio:g}, less than 0")


def test_a_figure_is_of_a_model_that_ran_with_a_cache(memory: Footprint) -> None:
    """A figure of a cache comes from passes that had one, and that fed more than one token."""
    reading = plain(memory)
    figures = ", ".join(f"{value:,.6g}" for value in reading.figures.values() if value is not None)
    if not reading.passes:
        raise Departure(f"reported {figures} without a pass of the model")
    if not any(run.cached for run in reading.runs):
        raise Departure(f"reported {figures}, and no cache was there at all: none of {reading.passes} passes had one")


def test_no_figure_is_given_where_nothing_was_read(memory: Footprint) -> None:
    """Without a device the counters have nothing to say: the function raises, or reports None, and not 0."""
    if not any(read.name.startswith(("memory", "max_memory")) for read in plain(memory).reads):
        not_applicable("the function reads no counter of a device")
    scenario = replace(PLAIN, device=False)
    try:
        reading = memory.reading(scenario)
    except Departure:
        raise
    except Exception:
        return
    for name, value in reading.figures.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise Departure(
                f"reported {value:g} as {name} on a machine without a device, where no counter says anything"
            )


def test_bytes_of_the_cache_are_those_of_its_storages(memory: Footprint) -> None:
    """The bytes of a cache are those of all storages that it keeps alive at the end of the run."""
    check(memory, plain(memory), "kv_cache", beside=WHOLE)


def test_the_peak_is_the_most_that_was_allocated(memory: Footprint) -> None:
    """A peak is the most bytes that were allocated at any moment of the run."""
    check(memory, plain(memory), "peak", beside=WHOLE)


def test_savings_are_against_the_uncompressed_cache_of_the_same_tokens(memory: Footprint) -> None:
    """Saved bytes and ratios compare what the cache holds with what all tokens seen would take."""
    check(memory, plain(memory), "saved", "ratio", beside=WHOLE)


def test_something_is_evicted_and_shows(memory: Footprint) -> None:
    """With a ``keep_ratio`` below 1 the model runs again, and its cache holds less."""
    takes(memory, "keep_ratio")
    if not plain(memory).passes:
        not_applicable("the model did not run")
    read(memory, WHOLE)
    for again in memory.arms:
        own = memory.reading(again.scenario)
        if not again.passes and (not own.passes or own.figures != again.figures):
            figures = ", ".join(f"{value:,.6g}" for value in again.figures.values() if value is not None)
            raise Departure(
                f"reported {figures} at keep_ratio {again.scenario.keep_ratio:g} without a pass: "
                "the result of another keep_ratio was used again"
            )
    pressed = plain(memory)
    runs = [run for run in pressed.runs if run.cached]
    if not runs:
        not_applicable("no pass had a cache")
    if not any(map(pressed.evicts, runs)):
        raise Departure(
            f"at keep_ratio {PLAIN.keep_ratio} nothing was evicted, the compressor was never installed: the cache of "
            f"{runs[-1].seen} tokens holds {sum(layer.storage for layer in runs[-1].state):,} bytes, all of them"
        )


def test_memory_does_not_depend_on_what_ran_before(memory: Footprint) -> None:
    """The figure of an arm is its own, whatever was measured before it in the same process."""
    right_in_plain(memory)
    read(memory, WHOLE)
    check(memory, memory.arms[1])


def test_at_keep_ratio_1_nothing_is_saved(memory: Footprint) -> None:
    """At ``keep_ratio`` 1 the figure is that of the uncompressed cache."""
    takes(memory, "keep_ratio")
    right_in_plain(memory)
    reading = read(memory, WHOLE)
    for run in reading.runs:
        if reading.evicts(run):
            held, whole = sum(layer.storage for layer in run.state), reading.whole(run.seen)
            raise Departure(f"at keep_ratio 1 the cache of {run.seen} tokens holds {held:,} bytes of {whole:,.0f}")
    check(memory, reading)


def test_the_figure_grows_with_the_tokens_seen(memory: Footprint) -> None:
    """Generated tokens are in the cache as those of the prompt are."""
    varied(memory, new_tokens=20)


def test_skipped_layers_count_in_full(memory: Footprint) -> None:
    """Layers in ``skip_layers`` hold all tokens, and count so."""
    takes(memory, "skip_layers")
    varied(memory, skip_layers=(0,))


def test_heads_are_the_kv_heads(memory: Footprint) -> None:
    """With grouped queries the cache has as many heads as keys have, not as queries have."""
    varied(memory, kv_heads=2)


def test_numbers_have_the_size_of_their_dtype(memory: Footprint) -> None:
    """A number of float32 has 4 bytes."""
    varied(memory, dtype=torch.float32)


def test_all_rows_count(memory: Footprint) -> None:
    """The cache of a batch is that of all its rows."""
    right_in_plain(memory)
    check(memory, attempted(memory, replace(PLAIN, rows=2), "two rows"))


def test_evicted_entries_count_as_long_as_they_are_in_memory(memory: Footprint) -> None:
    """A view of a few entries keeps the storage of all of them alive."""
    if memory.declares.compressor != "argument":
        not_applicable("the function brings its own compressor")
    right_in_plain(memory)
    check(memory, attempted(memory, replace(PLAIN, views=True), "a compressor that evicts by views"))


def test_measuring_leaves_nothing_behind(memory: Footprint) -> None:
    """A second call gives the same figure; no cache stays in memory, and the model is as it was."""
    plain(memory)
    meter = memory.meter(PLAIN)
    first = memory.measure(PLAIN, meter)
    second = memory.measure(PLAIN, meter)
    for reading in (first, second):
        if reading.left:
            raise Departure(f"{reading.left:,} bytes of caches are still in memory after the call")
        if reading.changed:
            raise Departure(f"the call changed the model's {reading.changed}")
    for name, value in first.figures.items():
        again = second.figures[name]
        if again != value:
            raise Departure(f"reported {value} as {name}, and {again} when it was called again")
