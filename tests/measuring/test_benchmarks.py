"""Laws for benchmarks, on an accelerator of which everything is known.

Exact values are those of a device that waits for every pass, in a warm process. Each further law changes one thing
about the device, and no figure changes with it.
"""

import math

from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.measuring.benchmarks import (
    FIGURES,
    RATIOS,
    Ask,
    Benchmark,
    Call,
)
from pressgauge.measuring.clock import SECOND, Script
from pressgauge.measuring.explaining import (
    close,
    explained,
    figure_of,
    ratio_explained,
    right_ratios,
    shown,
)
from pressgauge.measuring.runs import Run, measured, right, runs_of, whole


def slower(run: int) -> int:
    """Every run takes 2 % longer than the one before."""
    return round(1000 * 1.02**run)


def uneven(run: int) -> int:
    """No two of the first runs take the same time."""
    return 1000 + 3 * (37 * (run + 1) ** 2 % 101)


PLAIN = Script(waits=True)
QUEUED = Script()
BUSY = Script(queued=SECOND * 2 // 5)
COLD = Script(cold_prompt=SECOND * 3 // 2, cold_step=SECOND // 4, waits=True)
DRIFT = Script(pace=slower, waits=True)
UNEVEN = Script(pace=uneven, waits=True)
LONG = 1024
"""Tokens that exceed the thresholds of compressors."""
DRIFT_OF_A_PAIR = 0.041
"""A measurement may take two runs."""


def one_call(benchmark: Benchmark, script: Script = PLAIN, ask: Ask | None = None) -> Call:
    """A call in a process of its own; not applicable if it is refused."""
    call = benchmark.calls(script, ask or Ask())[0]
    if call.refusal:
        not_applicable(f"the benchmark refuses: {call.refusal}")
    return call


def run_of(benchmark: Benchmark, call: Call) -> Run:
    """The run that the figures of a call are of."""
    if not call.passes:
        raise Departure(f"no pass of the model was run at keep_ratio {call.ask.keep_ratio}")
    run = measured(call, benchmark.declares)
    if run is None:
        fed = max(one.fed for one in runs_of(call.passes, benchmark.declares.prompt_tokens))
        raise Departure(f"no run fed the prompt's {benchmark.declares.prompt_tokens} tokens: the longest fed {fed}")
    return run


def check(benchmark: Benchmark, figure: str, call: Call) -> None:
    """Raise ``Departure`` unless a figure of a call is right."""
    value, run = call.figures[figure], run_of(benchmark, call)
    rights = right(figure, run, call, benchmark.declares)
    if not any(close(value, one) for one in rights):
        raise Departure(explained(benchmark, figure, call))


def exact(benchmark: Benchmark, figure: str) -> None:
    """A figure has its right value."""
    call = one_call(benchmark)
    if figure not in call.figures:
        not_applicable(f"it reports no {figure}")
    check(benchmark, figure, call)


def reported(call: Call, names: tuple[str, ...]) -> list[str]:
    """Those of these figures that a call reported."""
    return [name for name in names if name in call.figures]


def test_something_is_reported(benchmark: Benchmark) -> None:
    """A benchmark reports at least one figure that is known, as a finite number above zero."""
    call = benchmark.calls(PLAIN, Ask())[0]
    if call.refusal:
        raise Departure(f"it refuses a prompt of {benchmark.declares.prompt_tokens} tokens: {call.refusal}")
    if not call.figures:
        raise Departure(f"it reports none of {', '.join((*FIGURES, *RATIOS))}")
    for name, value in call.figures.items():
        if not (math.isfinite(value) and value > 0):
            raise Departure(f"reported {name} is {value:.4g}: a time is a finite number above zero")


def test_the_prompt_is_fed_whole_and_the_tokens_asked_for_are_generated(benchmark: Benchmark) -> None:
    """What is timed is the request: the prompt in one run with a cache, then one pass per further token."""
    call = one_call(benchmark)
    run, ask, tokens = run_of(benchmark, call), call.ask, benchmark.declares.prompt_tokens
    uncached = [one for one in call.passes if not one.cached and one.fed > tokens]
    if uncached:
        lengths = ", ".join(str(one.fed) for one in uncached[:3])
        raise Departure(f"passes fed {lengths} tokens to no cache: every step feeds the whole text again")
    if len(reported(call, ("tpot", "throughput", "latency"))) and not ask.generated <= run.tokens <= ask.generated + 1:
        raise Departure(f"{ask.new_tokens} tokens were asked for, and the longest run generated {run.tokens}")


def test_ttft_is_the_time_of_the_prompt(benchmark: Benchmark) -> None:
    """Time to first token is the time of the prompt's pass, whose logits give the first token."""
    exact(benchmark, "ttft")


def test_tpot_is_the_mean_time_of_decoding_steps(benchmark: Benchmark) -> None:
    """Time per output token is the time of all later tokens by their number."""
    exact(benchmark, "tpot")


def test_throughput_is_tokens_by_time(benchmark: Benchmark) -> None:
    """Throughput is the number of generated tokens by the time of prompt and decoding."""
    exact(benchmark, "throughput")


def test_latency_is_the_time_of_the_whole_generation(benchmark: Benchmark) -> None:
    """Latency is the time from the prompt to the last token."""
    exact(benchmark, "latency")


def test_ratios_compare_a_pressed_with_an_uncompressed_run(benchmark: Benchmark) -> None:
    """A ratio is the pressed figure by the uncompressed one; a speedup is the inverse, of the figure declared."""
    call = one_call(benchmark)
    names = reported(call, RATIOS)
    if not names:
        not_applicable("it reports no ratio")
    for name in names:
        rights = right_ratios(benchmark, name, call)
        if not rights:
            run = run_of(benchmark, call)
            arm = "compressed" if run.compressed else "uncompressed"
            raise Departure(f"reported {name} {call.figures[name]:.4g}, and every run of {run.tokens} tokens was {arm}")
        if not any(close(call.figures[name], one) for one in rights):
            raise Departure(ratio_explained(benchmark, name, call, rights))


def test_equal_arms_have_the_ratio_1(benchmark: Benchmark) -> None:
    """At keep_ratio 1 nothing is evicted, so that pressed by uncompressed is 1, whichever arm runs first in a cold
    process."""
    first, second = benchmark.calls(COLD, Ask(1.0), Ask(1.0))
    if first.refusal or second.refusal:
        not_applicable(f"the benchmark refuses: {first.refusal or second.refusal}")
    names = reported(first, RATIOS)
    for name in names:
        if not close(first.figures[name], 1):
            raise Departure(ratio_explained(benchmark, name, first, [1.0]))
    for figure in [] if names else reported(first, FIGURES):
        one, other = first.figures[figure], second.figures.get(figure, math.nan)
        if not close(one, other):
            times = f"{shown(benchmark, figure, one)}, then {shown(benchmark, figure, other)}"
            raise Departure(
                f"two calls at keep_ratio 1 report {figure} {times}, a ratio of {other / one:.4g} out of nothing: the "
                "first call of the process has the cold start in it"
            )


def test_no_figure_has_the_cold_start_in_it(benchmark: Benchmark) -> None:
    """Where the first passes of a process take longer, the figures are those of warm passes."""
    base, call = one_call(benchmark), one_call(benchmark, COLD)
    for figure in reported(base, FIGURES):
        if not close(call.figures.get(figure, math.nan), base.figures[figure]):
            says = explained(benchmark, figure, call)
            cold = "" if "cold" in says or "warm-up" in says else ": the cold start of the process is in it"
            raise Departure(says + cold)


def unchanged(benchmark: Benchmark, script: Script, base: Script, why: str) -> None:
    """Raise ``Departure`` if a figure is another one under this script; ``why`` may show the number of readings."""
    if benchmark.declares.device == "cpu":
        not_applicable("it runs on the CPU only")
    one, call = one_call(benchmark, base), one_call(benchmark, script)
    for figure in reported(one, (*FIGURES, *RATIOS)):
        value, expected = call.figures.get(figure, math.nan), one.figures[figure]
        if not close(value, expected):
            says = f"reported {figure} {shown(benchmark, figure, value)}"
            raise Departure(f"{says}, and {shown(benchmark, figure, expected)} {why.format(call.hasty)}")


def test_times_contain_the_work_of_a_device_that_works_by_itself(benchmark: Benchmark) -> None:
    """A pass is queued and its time elapses later, so that a clock is read after synchronisation."""
    why = "if every pass waits for the device: a clock was read {} times while passes were queued: no synchronisation"
    unchanged(benchmark, QUEUED, PLAIN, why)


def test_work_that_others_had_queued_is_in_no_figure(benchmark: Benchmark) -> None:
    """The device may be busy when a benchmark begins, so that it waits before it starts its clock."""
    unchanged(benchmark, BUSY, QUEUED, "on an idle device: 400 ms of work were queued before, and not waited for")


def test_a_device_that_gets_slower_favours_neither_arm(benchmark: Benchmark) -> None:
    """Where every run takes 2 % longer than the one before, a ratio is off by the drift of two runs at most."""
    base, call = one_call(benchmark), one_call(benchmark, DRIFT)
    names = reported(base, RATIOS)
    if not names:
        not_applicable("it reports no ratio")
    for name in names:
        off = call.figures.get(name, math.nan) / base.figures[name] - 1
        if not abs(off) <= DRIFT_OF_A_PAIR:
            runs = runs_of(call.passes, benchmark.declares.prompt_tokens)
            order = "".join("c" if run.compressed else "u" for run in runs if run.steps)
            raise Departure(
                f"reported {name} is {off:+.1%} off where every run is 2 % slower than the one before: runs were "
                f"{order} (c compressed, u uncompressed), one arm after the other"
            )


def test_a_figure_is_no_extreme_of_its_runs(benchmark: Benchmark) -> None:
    """Of repeated runs a benchmark reports a median or a mean, and the fastest only if it declares so."""
    call = one_call(benchmark, UNEVEN)
    declares = benchmark.declares
    mine = run_of(benchmark, call)
    runs = [run for run in runs_of(call.passes, declares.prompt_tokens) if whole(run, declares.prompt_tokens)]
    alike = [run for run in runs if len(run.steps) == len(mine.steps) and run.compressed == mine.compressed]
    if len(alike) < 3 or not reported(call, FIGURES):
        not_applicable("it does not repeat its runs")
    for figure in reported(call, FIGURES):
        values = [value[0] for run in alike if (value := right(figure, run, call, declares))] or [math.nan]
        fastest = max if figure == "throughput" else min
        extremes = {"fastest": fastest(values), "slowest": min(values) if fastest is max else max(values)}
        if declares.statistic == "minimum":
            del extremes["fastest"]
        for name, extreme in extremes.items():
            if close(call.figures[figure], extreme):
                what = f"reported {figure} {shown(benchmark, figure, extreme)} is the {name} of {len(values)} runs"
                raise Departure(f"{what}: report their median or mean, or declare statistic 'minimum'")


def test_figures_react_to_what_is_evicted(benchmark: Benchmark) -> None:
    """With keep_ratio .5 the timed passes meet fewer entries, and their times fall by what these would have cost."""
    call, base = one_call(benchmark), one_call(benchmark, ask=Ask(1.0))
    run, plain = run_of(benchmark, call), run_of(benchmark, base)
    figures = reported(call, ("tpot", "throughput", "latency"))
    if not figures and all(figure_of(benchmark, name) == "ttft" for name in reported(call, RATIOS)):
        not_applicable("it reports nothing that depends on the cache")
    if not run.compressed:
        (long,) = benchmark.calls(PLAIN, Ask(longer=LONG))
        threshold = any(one.compressed for one in long.passes)
        many = run.fed + LONG
        raise Departure(
            f"at keep_ratio {call.ask.keep_ratio} no pass of {len(call.passes)} met an eviction, with a prompt of "
            f"{run.fed} tokens: "
            + (
                f"its threshold was not exceeded, and with {many} tokens it would be"
                if threshold
                else f"nor does one with {many} tokens, so that the compressor is not installed where passes are run"
            )
        )
    for figure in figures:
        values = [one.figures.get(figure, math.nan) for one in (call, base)]
        rights = [right(figure, *pair, benchmark.declares)[0] for pair in ((run, call), (plain, base))]
        if close(values[0], values[1]) and not close(rights[0], rights[1]):
            held = max(one.seen - one.held for one in run.passes)
            raise Departure(
                f"{figure} is {shown(benchmark, figure, values[0])} at keep_ratio {call.ask.keep_ratio} and at 1, "
                f"while up to {held:g} of {run.passes[-1].seen} entries were missing; right are "
                f"{shown(benchmark, figure, rights[0])} and {shown(benchmark, figure, rights[1])}"
            )


def test_every_call_is_measured_and_none_changes_the_next(benchmark: Benchmark) -> None:
    """Figures of a configuration are of its own passes, the same whatever was measured before."""
    asks = (Ask(), Ask(1.0), Ask(0.25), Ask())
    calls = benchmark.calls(PLAIN, *asks)
    if refusal := next((call.refusal for call in calls if call.refusal), ""):
        not_applicable(f"the benchmark refuses: {refusal}")
    for number, call in enumerate(calls[:3]):
        if not call.passes:
            like = [one.ask.keep_ratio for one in calls[:number] if one.figures == call.figures]
            whose = f": its figures are those of keep_ratio {like[0]}" if like else ""
            raise Departure(f"no pass was run at keep_ratio {call.ask.keep_ratio}{whose}")
        for name in reported(call, RATIOS):
            if not right_ratios(benchmark, name, call):
                raise Departure(
                    f"at keep_ratio {call.ask.keep_ratio}, after other calls, it reports {name} "
                    f"{call.figures[name]:.4g} and ran one arm only: the other is of an earlier call"
                )
    first, last = calls[0], calls[-1]
    for name, value in first.figures.items():
        again = last.figures.get(name, math.nan)
        if not close(value, again):
            raise Departure(
                f"{name} at keep_ratio {first.ask.keep_ratio} is {shown(benchmark, name, value)} in a fresh process, "
                f"and {shown(benchmark, name, again)} after other configurations"
            )


def test_tokens_are_those_generated_where_the_sequence_ends_early(benchmark: Benchmark) -> None:
    """If the end of sequence comes after 5 tokens, times are divided by what was generated, not by the request."""
    call = one_call(benchmark, ask=Ask(ends_after=5))
    for figure in reported(call, FIGURES):
        base = one_call(benchmark)
        rights = right(figure, run_of(benchmark, base), base, benchmark.declares)
        # What is wrong without an end of sequence is another law's finding.
        if any(close(base.figures.get(figure, math.nan), one) for one in rights):
            check(benchmark, figure, call)


def test_there_is_no_figure_without_a_reading(benchmark: Benchmark) -> None:
    """Where one token is generated there is no later one, and no time per later token: it is None, or refused."""
    for ask in (Ask(new_tokens=1), Ask(ends_after=1)):
        call = benchmark.calls(PLAIN, ask)[0]
        for figure in [] if call.refusal else reported(call, FIGURES):
            run, value = run_of(benchmark, call), call.figures[figure]
            if not right(figure, run, call, benchmark.declares):
                after = "new_tokens 1" if ask.new_tokens == 1 else "an end of sequence as the first token"
                raise Departure(f"reported {figure} {value:.4g} with {after}: nothing was timed; report None")
            if not (math.isfinite(value) and value > 0):
                raise Departure(f"reported {figure} is {value:.4g}: a time is a finite number above zero")


def test_rows_of_a_batch_are_generated_together(benchmark: Benchmark) -> None:
    """Throughput counts the tokens of all rows that ran in the time, and times are those of the batch."""
    if not benchmark.batched:
        not_applicable("it takes no batch_size, and its prompt is one text")
    call, base = one_call(benchmark, ask=Ask(rows=2)), one_call(benchmark)
    for figure in reported(call, FIGURES):
        rights = right(figure, run_of(benchmark, base), base, benchmark.declares)
        if any(close(base.figures.get(figure, math.nan), one) for one in rights):
            check(benchmark, figure, call)


def test_the_model_is_left_as_it_was(benchmark: Benchmark) -> None:
    """After a call the model has no more hooks, no other configuration, and is in the same mode."""
    call = one_call(benchmark)
    if call.changed:
        raise Departure(f"after the call, {call.changed} is no more what it was")
