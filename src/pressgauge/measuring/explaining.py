"""Which known mistake gives exactly the figure that a benchmark reported."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from statistics import fmean

from pressgauge.measuring.benchmarks import ATTACHING, FIGURES, UNITS, Benchmark, Call
from pressgauge.measuring.clock import SECOND, Pass
from pressgauge.measuring.runs import Cost, Run, measured, right, runs_of, taken, warm, whole

TOLERANCE = 1e-3
"""Figures may be rounded."""


def close(one: float, other: float) -> bool:
    """Whether two figures agree."""
    return math.isclose(one, other, rel_tol=TOLERANCE)


def shown(benchmark: Benchmark, figure: str, value: float) -> str:
    """A figure as people read it."""
    if figure not in FIGURES:
        return f"{value:.4g}"
    unit = benchmark.unit(figure)
    if unit == "s" and abs(value) < 1:
        return f"{value * 1000:.4g} ms"
    return f"{value * UNITS[unit]:.4g} {unit}"


@dataclass(frozen=True)
class Hypothesis:
    """A value that a mistake would give.

    Attributes:
        value: in seconds or tokens per second.
        words: how it is computed.
        faults: the mistakes.
    """

    value: float
    words: str
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A part of a run that may be timed."""

    name: str
    nanoseconds: float
    words: str
    tokens: int
    """Tokens that are generated in it."""


def _parts(run: Run, cost: Cost) -> Iterator[Part]:
    prompt, steps = sum(map(cost, run.prompt)), [cost(one) for one in run.steps]
    count = len(steps)
    many = f"{count} decoding steps" if count > 1 else "a decoding step"
    yield Part("prompt", prompt, "the prompt", 1)
    if steps:
        yield Part("steps", sum(steps), many, count)
        yield Part("whole", prompt + sum(steps), f"the prompt and {many}", count + 1)
        yield Part("first", prompt + steps[0], "the prompt and a decoding step", 2)
    if count > 1:
        yield Part("later", sum(steps[1:]), f"{many} but the first", count - 1)


def _named(run: Run) -> Iterator[tuple[str, float]]:
    return ((part.name, part.nanoseconds) for part in _parts(run, warm))


FAULTS = {
    ("ttft", "first"): "a decoding step is in it (first_token is 'prefill')",
    ("ttft", "prompt"): "the first decoding step is missing (first_token is 'decode')",
    ("ttft", "steps"): "the prompt was not timed",
    ("ttft", "whole"): "it is the time of the whole generation",
    ("tpot", "whole"): "the prompt's time is in it",
    ("tpot", "prompt"): "it is the prompt's time",
    ("tpot", "later"): "the first decoding step is missing",
    ("tpot", "steps"): "the prompt's time is missing (tpot is 'all')",
    ("throughput", "steps"): "the prompt's time is missing",
    ("throughput", "prompt"): "decoding was not timed",
    ("throughput", "whole"): "the prompt's time is in it (throughput is 'decode')",
    ("latency", "steps"): "the prompt's time is missing",
    ("latency", "prompt"): "decoding was not timed",
    ("latency", "whole"): "the prompt's time is in it (latency is 'decode')",
}


@dataclass(frozen=True)
class Count:
    """A number by which a time may be divided, or that may be divided by it."""

    number: float
    words: str
    faults: tuple[str, ...] = ()


def _counts(figure: str, part: Part, run: Run, call: Call, prompt: str) -> Iterator[Count]:
    """Counts for a part of a run, those without a fault first; ``prompt`` says which tokens are counted."""
    ask, natural = call.ask, part.tokens
    if figure in ("ttft", "latency"):
        yield Count(1, "")
        return
    rows: list[tuple[int, tuple[str, ...]]] = [(run.rows if figure == "throughput" else 1, ())]
    others = {1, run.rows, ask.rows, run.rows * ask.rows} - {rows[0][0]}
    for other in sorted(others):
        if figure == "tpot":
            rows.append((other, (f"divided by the {other} rows, which are generated together",)))
        elif other > run.rows:
            rows.append((other, (f"tokens of {other} rows by the time of {run.rows}",)))
        else:
            rows.append((other, (f"of {run.rows} rows one is counted",)))
    counts: dict[int, tuple[str, ...]] = {natural: ()}
    by = "divided by " if figure == "tpot" else "counts "
    for number, fault in (
        (run.tokens, f"{by}all {run.tokens} tokens, and timed {part.words}"),
        (ask.new_tokens, f"{by}the {ask.new_tokens} tokens requested, and {run.tokens} were generated"),
        (ask.new_tokens - 1, f"{by}the intervals of {ask.new_tokens} tokens requested; {run.tokens} were generated"),
        (run.tokens - 1, f"{by}{run.tokens - 1} tokens, and timed {part.words}"),
        (run.fed, f"{by}the prompt's {run.fed} tokens"),
        (run.fed + run.tokens, f"{by}the prompt's {run.fed} tokens too"),
        (run.fed + ask.new_tokens, f"{by}the prompt's {run.fed} tokens too"),
        (1, f"the sum of {part.words}, divided by nothing"),
    ):
        counts.setdefault(number, (fault,))
    if prompt == "prompt" and part.name == "whole":
        counts[natural] = (f"the prompt's {run.fed} tokens are not counted (throughput is 'prompt')",)
        counts[run.fed + run.tokens] = ()
    for number, faults in counts.items():
        for factor, fault_of_rows in rows:
            if number:
                yield Count(number * factor, f"{number * factor}", faults + fault_of_rows)


def _times(count: int, one: Pass) -> int:
    return count * one.warm


def _arms(benchmark: Benchmark, call: Call, run: Run) -> Iterator[tuple[list[Run], Cost, int, str, str]]:
    """Runs whose mean may have been reported, their cost, extra nanoseconds, words, and the mistake if it is one."""
    every = [one for one in runs_of(call.passes, run.fed) if whole(one, run.fed)]
    alike = [one for one in every if len(one.steps) == len(run.steps)]
    mine = [one for one in alike if one.compressed == run.compressed]
    yield [run], warm, 0, "", ""
    for arm in (mine, [one for one in every if one.compressed == run.compressed], every):
        for one in arm:
            if one.cold:
                fault = "the first passes of the process are in it, {cold:.4g} s of cold start"
                yield [one], taken, 0, " of a cold run", fault
    if any(one.cold for one in mine) and len(mine) > 1:
        fault = "the warm-up is one of the runs that are averaged"
        yield mine, taken, 0, f", mean of {len(mine)} runs with the cold one", fault
    for count in range(2, len(mine) + 1):
        yield mine[-count:], partial(_times, count), 0, f", {count} times", f"it is the sum of {count} runs"
    plain = [one for one in alike if run.compressed and not one.compressed]
    if plain:
        yield (
            plain[:1],
            warm,
            0,
            " of an uncompressed run",
            "the compressor was not installed in the run that was timed",
        )
    if benchmark.declares.compressor == "argument":
        yield [run], warm, ATTACHING, " and attaching the compressor", "attaching the compressor is in it"


def hypotheses(benchmark: Benchmark, figure: str, call: Call, run: Run) -> list[Hypothesis]:
    """What known mistakes would report, those of fewest mistakes first."""
    declares = benchmark.declares
    wanted = {"ttft": "first" if declares.first_token == "decode" else "prompt", "latency": "whole"}
    wanted |= {"tpot": "whole" if declares.tpot == "all" else "steps", "throughput": "whole"}
    if figure in ("throughput", "latency") and getattr(declares, figure) == "decode":
        wanted[figure] = "steps"
    found = []
    for arm, cost, extra, of, fault in _arms(benchmark, call, run):
        for parts in zip(*(_parts(one, cost) for one in arm), strict=False):
            first = parts[0]
            part = replace(first, nanoseconds=fmean(one.nanoseconds for one in parts) + extra)
            cold = (part.nanoseconds - fmean(dict(_named(one))[part.name] for one in arm)) / SECOND
            missed = () if part.name == wanted[figure] else (FAULTS.get((figure, part.name), f"it times {part.words}"),)
            faults = missed + ((fault.format(cold=cold),) if fault else ())
            for count in _counts(figure, part, run, call, declares.throughput):
                seconds = part.nanoseconds / SECOND
                what = f"{part.words}{of}"
                if figure == "throughput":
                    value, words = count.number / seconds if seconds else math.inf, f"{count.words} / ({what})"
                else:
                    value, words = seconds / count.number, f"({what}) / {count.words}" if count.words else what
                found.append(Hypothesis(value, words, faults + count.faults))
    rights = right(figure, run, call, declares)
    wrong = [one for one in found if 0 < len(one.faults) < 3 and not any(close(one.value, value) for value in rights)]
    return sorted(wrong, key=lambda one: len(one.faults))


def in_other_units(benchmark: Benchmark, figure: str, value: float, rights: list[float]) -> str:
    """Whether a figure is right in another unit; else empty."""
    declared = benchmark.unit(figure)
    for unit, scale in UNITS.items():
        same_kind = ("tokens" in unit) == (figure == "throughput")
        if same_kind and unit != declared and any(close(value * UNITS[declared], one * scale) for one in rights):
            return f"it is in {unit}, and declared in {declared}"
    return ""


def explained(benchmark: Benchmark, figure: str, call: Call) -> str:
    """What is wrong with a figure: what was reported, by which mistake, and what is right."""
    run = measured(call, benchmark.declares)
    assert run is not None, "whoever asks has found the run"
    rights = right(figure, run, call, benchmark.declares)
    value = call.figures[figure]
    says = f"reported {figure} {shown(benchmark, figure, value)}"
    ending = f"; right is {shown(benchmark, figure, rights[0])}" if rights else "; there was nothing to time"
    if unit := in_other_units(benchmark, figure, value, rights):
        return f"{says}: {unit}{ending}"
    for one in hypotheses(benchmark, figure, call, run):
        unit = in_other_units(benchmark, figure, value, [one.value])
        if close(one.value, value) or unit:
            faults = (*one.faults, unit) if unit else one.faults
            return f"{says} is {one.words}: {', and '.join(faults)}{ending}"
    return f"{says}{ending}"


def ratio_explained(benchmark: Benchmark, name: str, call: Call, rights: list[float]) -> str:
    """What is wrong with a ratio, by the runs whose quotient it is."""
    figure, value = figure_of(benchmark, name), call.figures[name]
    says = f"reported {name} {value:.4g} at keep_ratio {call.ask.keep_ratio}"
    ending = f"; right is {rights[0]:.4g}"
    runs = [one for one in runs_of(call.passes, benchmark.declares.prompt_tokens) if one.steps or figure == "ttft"]
    for first, second in permutations(range(len(runs)), 2):
        times = [right(figure, runs[number], call, benchmark.declares, taken) for number in (first, second)]
        if any(close(one / other, value) for one in times[0] for other in times[1]):
            of = [
                f"{shown(benchmark, figure, values[0])} of run {number + 1}{', compressed,' * runs[number].compressed}"
                for number, values in zip((first, second), times, strict=True)
            ]
            cold = [number + 1 for number in (first, second) if runs[number].cold]
            fault = f": run {cold[0]} came first in the process and ran cold" if cold else ""
            return f"{says} is {of[0]} by {of[1].rstrip(',')}{fault}{ending}"
    return says + ending


def figure_of(benchmark: Benchmark, ratio: str) -> str:
    """The figure of which a ratio is reported."""
    return str(benchmark.declares.speedup) if ratio == "speedup" else ratio.removesuffix("_ratio")


def right_ratios(benchmark: Benchmark, name: str, call: Call) -> list[float]:
    """Right values of a ratio; none where an arm is missing."""
    figure, declares = figure_of(benchmark, name), benchmark.declares
    run, other = (measured(call, declares, compressed=arm) for arm in (True, False))
    if figure == "ttft" and run is not None and not any(one.compressed for one in run.prompt):
        # Where no pass of a prompt meets an eviction, the arms cannot be told apart.
        other = run
    if run is None or other is None or (figure != "ttft" and call.ask.keep_ratio < 1 and not run.compressed):
        return []
    pressed, plain = right(figure, run, call, declares), right(figure, other, call, declares)
    # A speedup of a throughput is already above 1 where the pressed run is faster.
    inverse = name == "speedup" and figure != "throughput"
    return [other / one if inverse else one / other for one, other in zip(pressed, plain, strict=True)]
