"""Broken benchmarks, each with the law that must kill it, what the finding has to name, and its sound twin."""

import re
import time
import timeit
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

import torch

from harness.mutants import right_benchmarks as right
from harness.mutants.mutant import Mutant
from harness.mutants.right_benchmarks import Figures, encoded, timed
from measuring import test_benchmarks as laws
from pressgauge import KnormPress
from pressgauge.conformance.versions import cache_of, using
from pressgauge.measuring.benchmarks import Benchmark
from support.laws import Law


def cold_baseline_first(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The uncompressed run, then the compressed one: "TTFT falls by 97 %"."""
    ids = encoded(tokenizer, prompt, model)
    baseline = timed(model, ids, 1)
    with KnormPress(keep_ratio, prune_after=16)(model):
        compressed = timed(model, ids, 1)
    return {"ttft": compressed, "ttft_ratio": compressed / baseline}


def no_warmup(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """One run, and nothing before it."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"ttft": timed(model, ids, 1), "latency": timed(model, ids, new_tokens)}


def mean_with_warmup(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A mean over all runs."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"latency": fmean([timed(model, ids, new_tokens) for _ in range(5)])}


@torch.no_grad()
def never_synchronised(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The time of launching kernels."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        for _ in range(2):
            start = time.time()
            output = model(ids)
            ttft = time.time() - start
            for _ in range(new_tokens - 1):
                output = model(output.logits[:, -1:].argmax(-1), **using(cache_of(output)))
            latency = time.time() - start
    torch.cuda.synchronize()
    return {"ttft": ttft, "latency": latency}


def starts_on_a_busy_device(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Synchronised at the end, and not before the clock starts."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=1, do_sample=False)
        torch.cuda.synchronize()
        return {"ttft": time.perf_counter() - start}


def ttft_among_the_intervals(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The whole time by all tokens."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"tpot": timed(model, ids, new_tokens) / new_tokens}


def tokens_for_intervals(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Off by one."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"tpot": (timed(model, ids, new_tokens) - timed(model, ids, 1)) / new_tokens}


def requested_not_generated(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The request divides, whatever came of it."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        ttft, latency = timed(model, ids, 1), timed(model, ids, new_tokens)
    return {"tpot": (latency - ttft) / (new_tokens - 1) if new_tokens > 1 else None}


def requested_by_time(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The same for throughput."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"throughput": new_tokens / timed(model, ids, new_tokens)}


@torch.no_grad()
def second_token_for_the_first(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The loop that stops the clock after its first pass, which is the second."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        for _ in range(2):
            torch.cuda.synchronize()
            start, ttft = time.perf_counter(), None
            output = model(ids)
            for _ in range(new_tokens - 1):
                output = model(output.logits[:, -1:].argmax(-1), **using(cache_of(output)))
                torch.cuda.synchronize()
                ttft = ttft or time.perf_counter() - start
    return {"ttft": ttft}


def prompt_in_throughput(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """``generate`` returns the prompt too."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        start = time.perf_counter()
        tokens = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
        return {"throughput": tokens.numel() / (time.perf_counter() - start)}


def decoding_only(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Throughput and latency from the first token on, and no word of it."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        decoding = timed(model, ids, new_tokens) - timed(model, ids, 1)
    return {"throughput": (new_tokens - 1) / decoding, "latency": decoding} if new_tokens > 1 else {"latency": None}


def sum_of_runs(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Three runs on one clock."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"latency": timeit.timeit(lambda: timed(model, ids, new_tokens), number=3)}


def all_rows_by_the_time_of_one(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, batch_size: int
) -> Figures:
    """Rows one after the other, and the clock of the last."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        for _ in range(batch_size):
            latency = timed(model, ids, new_tokens)
    return {"throughput": batch_size * new_tokens / latency}


def tokens_of_one_row(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, batch_size: int
) -> Figures:
    """The time of a batch, and the length of its first row."""
    ids = encoded(tokenizer, [prompt] * batch_size, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"throughput": new_tokens / timed(model, ids, new_tokens)}


def tpot_per_row(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, batch_size: int
) -> Figures:
    """A step makes a token in every row, but no token comes earlier for it."""
    ids = encoded(tokenizer, [prompt] * batch_size, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        decoding = timed(model, ids, new_tokens) - timed(model, ids, 1)
    return {"tpot": decoding / (new_tokens - 1) / batch_size if new_tokens > 1 else None}


@torch.no_grad()
def milliseconds_for_seconds(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """``elapsed_time`` gives milliseconds."""
    ids = encoded(tokenizer, prompt, model)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with KnormPress(keep_ratio, prune_after=16)(model):
        for _ in range(2):
            torch.cuda.synchronize()
            start.record()
            model(ids)
            end.record()
            end.synchronize()
    return {"ttft": start.elapsed_time(end)}


def fastest_run(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The best of several, called the latency."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, new_tokens)
        return {"latency": min(timed(model, ids, new_tokens) for _ in range(3))}


def one_arm_after_the_other(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """All uncompressed runs, then all compressed ones, on a device that gets warm."""
    ids = encoded(tokenizer, prompt, model)
    timed(model, ids, new_tokens)
    plain = median(timed(model, ids, new_tokens) for _ in range(4))
    with KnormPress(keep_ratio, prune_after=16)(model):
        pressed = median(timed(model, ids, new_tokens) for _ in range(4))
    return {"speedup": plain / pressed}


def never_installed(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """``press(model)`` is a context, and nobody enters it."""
    ids = encoded(tokenizer, prompt, model)
    KnormPress(keep_ratio, prune_after=16)(model)
    timed(model, ids, 2)
    return {"latency": timed(model, ids, new_tokens)}


def threshold_not_exceeded(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A prompt that is shorter than the press's default threshold."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio)(model):
        timed(model, ids, 2)
        return {"latency": timed(model, ids, new_tokens)}


def installed_for_the_warmup(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The context ends too early."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, new_tokens)
    return {"latency": timed(model, ids, new_tokens)}


def two_uncompressed_arms(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A cache that is compressed, and another one that is timed."""
    ids = encoded(tokenizer, prompt, model)
    KnormPress(keep_ratio, prune_after=16).cache(model.config)
    timed(model, ids, 2)
    return {"latency_ratio": timed(model, ids, new_tokens) / timed(model, ids, new_tokens)}


def speedup_upside_down(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Below 1 where it is faster."""
    ids = encoded(tokenizer, prompt, model)
    timed(model, ids, new_tokens)
    plain = timed(model, ids, new_tokens)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"speedup": timed(model, ids, new_tokens) / plain}


RESULTS: dict[str, Figures] = {}


def result_of_another_configuration(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float
) -> Figures:
    """Remembered by the prompt alone."""
    if prompt not in RESULTS:
        ids = encoded(tokenizer, prompt, model)
        with KnormPress(keep_ratio, prune_after=16)(model):
            timed(model, ids, 2)
            RESULTS[prompt] = {"latency": timed(model, ids, new_tokens)}
    return RESULTS[prompt]


BASELINE: list[float] = []


def baseline_of_another_call(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Timed once, an hour ago."""
    ids = encoded(tokenizer, prompt, model)
    timed(model, ids, 2)
    if not BASELINE:
        BASELINE.append(timed(model, ids, new_tokens))
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"latency_ratio": timed(model, ids, new_tokens) / BASELINE[0]}


def attached_on_the_clock(model: Any, tokenizer: Any, prompt: str, new_tokens: int, compressor: Any) -> Figures:
    """The clock starts before the compressor is in place."""
    ids = encoded(tokenizer, prompt, model)
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with compressor(model):
            model.generate(ids, max_new_tokens=1, do_sample=False)
            torch.cuda.synchronize()
            ttft = time.perf_counter() - start
    return {"ttft": ttft}


@torch.no_grad()
def no_cache_at_all(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The whole text again for every token."""
    ids = encoded(tokenizer, prompt, model)
    for _ in range(2):
        torch.cuda.synchronize()
        start, text = time.perf_counter(), ids
        for _ in range(new_tokens):
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        torch.cuda.synchronize()
        latency = time.perf_counter() - start
    return {"latency": latency}


def truncated_prompt(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A maximum length that nobody remembers."""
    ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=64).input_ids
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"ttft": timed(model, ids, 1)}


def zero_for_nothing(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """No division by zero, and a figure all the same."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        decoding = timed(model, ids, new_tokens) - timed(model, ids, 1)
    return {"tpot": decoding / max(new_tokens - 1, 1)}


def nan_of_an_empty_list(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The mean of intervals that nobody took."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        ttft = timed(model, ids, 1)
    return {"ttft": ttft, "tpot": float(torch.tensor([]).mean())}


def leaves_a_hook(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A hook that counts passes, and counts on."""
    ids = encoded(tokenizer, prompt, model)
    model.register_forward_hook(lambda *args: None)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"latency": timed(model, ids, new_tokens)}


def mutant(
    function: Callable[..., Figures],
    law: Law,
    says: str,
    twin: Benchmark,
    seen_in: str = "plausible",
    **declares: Any,
) -> Mutant:
    """A mutant that is described by its function."""
    what = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
    name = function.__name__.replace("_", "-")
    return Mutant(
        f"benchmark-{name}", what, seen_in, Benchmark.of(name, function, declares), law, twin, says=(re.escape(says),)
    )


REPORTS = "the reports that this project starts from"
BENCHMARKS: list[Mutant] = [
    mutant(
        cold_baseline_first,
        laws.test_equal_arms_have_the_ratio_1,
        "run 1 came first in the process and ran cold",
        right.PAIRED,
        REPORTS,
    ),
    mutant(no_warmup, laws.test_no_figure_has_the_cold_start_in_it, "1.5 s of cold start", right.LLM_PERF),
    mutant(
        mean_with_warmup,
        laws.test_no_figure_has_the_cold_start_in_it,
        "the warm-up is one of the runs that are averaged",
        right.LOOP,
    ),
    mutant(
        never_synchronised,
        laws.test_times_contain_the_work_of_a_device_that_works_by_itself,
        "no synchronisation",
        right.LOOP,
    ),
    mutant(
        starts_on_a_busy_device,
        laws.test_work_that_others_had_queued_is_in_no_figure,
        "400 ms of work were queued before",
        right.LLM_PERF,
    ),
    mutant(
        ttft_among_the_intervals,
        laws.test_tpot_is_the_mean_time_of_decoding_steps,
        "the prompt's time is in it",
        right.LLM_PERF,
    ),
    mutant(
        tokens_for_intervals,
        laws.test_tpot_is_the_mean_time_of_decoding_steps,
        "divided by all 8 tokens, and timed 7 decoding steps",
        right.LLM_PERF,
    ),
    mutant(
        requested_not_generated,
        laws.test_tokens_are_those_generated_where_the_sequence_ends_early,
        "8 tokens requested; 5 were generated",
        right.LLM_PERF,
    ),
    mutant(
        requested_by_time,
        laws.test_tokens_are_those_generated_where_the_sequence_ends_early,
        "counts the 8 tokens requested",
        right.LLM_PERF,
    ),
    mutant(
        second_token_for_the_first, laws.test_ttft_is_the_time_of_the_prompt, "a decoding step is in it", right.STREAMED
    ),
    mutant(
        prompt_in_throughput,
        laws.test_throughput_is_tokens_by_time,
        "counts the prompt's 96 tokens too",
        right.LLM_PERF,
    ),
    mutant(decoding_only, laws.test_throughput_is_tokens_by_time, "the prompt's time is missing", right.LLM_PERF),
    mutant(
        sum_of_runs, laws.test_latency_is_the_time_of_the_whole_generation, "it is the sum of 3 runs", right.LLM_PERF
    ),
    mutant(
        all_rows_by_the_time_of_one,
        laws.test_rows_of_a_batch_are_generated_together,
        "tokens of 2 rows by the time of 1",
        right.LLM_PERF,
    ),
    mutant(
        tokens_of_one_row, laws.test_rows_of_a_batch_are_generated_together, "of 2 rows one is counted", right.LLM_PERF
    ),
    mutant(tpot_per_row, laws.test_rows_of_a_batch_are_generated_together, "divided by the 2 rows", right.LLM_PERF),
    mutant(
        milliseconds_for_seconds,
        laws.test_ttft_is_the_time_of_the_prompt,
        "it is in ms, and declared in s",
        right.CUDA_EVENTS,
    ),
    mutant(fastest_run, laws.test_a_figure_is_no_extreme_of_its_runs, "is the fastest of 4 runs", right.LOOP),
    mutant(
        one_arm_after_the_other,
        laws.test_a_device_that_gets_slower_favours_neither_arm,
        "one arm after the other",
        right.PAIRED,
    ),
    mutant(
        never_installed, laws.test_figures_react_to_what_is_evicted, "nor does one with 1120 tokens", right.LLM_PERF
    ),
    mutant(
        threshold_not_exceeded,
        laws.test_figures_react_to_what_is_evicted,
        "its threshold was not exceeded, and with 1120 tokens it would be",
        right.LLM_PERF,
    ),
    mutant(
        installed_for_the_warmup,
        laws.test_latency_is_the_time_of_the_whole_generation,
        "the compressor was not installed in the run that was timed",
        right.LLM_PERF,
    ),
    mutant(
        two_uncompressed_arms,
        laws.test_ratios_compare_a_pressed_with_an_uncompressed_run,
        "every run of 8 tokens was uncompressed",
        right.PAIRED,
    ),
    mutant(
        speedup_upside_down,
        laws.test_ratios_compare_a_pressed_with_an_uncompressed_run,
        "of run 3, compressed, by",
        right.PAIRED,
    ),
    mutant(
        result_of_another_configuration,
        laws.test_every_call_is_measured_and_none_changes_the_next,
        "no pass was run at keep_ratio",
        right.LLM_PERF,
    ),
    mutant(
        baseline_of_another_call,
        laws.test_every_call_is_measured_and_none_changes_the_next,
        "ran one arm only: the other is of an earlier call",
        right.PAIRED,
    ),
    mutant(
        attached_on_the_clock,
        laws.test_ttft_is_the_time_of_the_prompt,
        "attaching the compressor is in it",
        right.PAIRED,
        compressor="argument",
    ),
    mutant(
        no_cache_at_all,
        laws.test_the_prompt_is_fed_whole_and_the_tokens_asked_for_are_generated,
        "to no cache",
        right.LOOP,
    ),
    mutant(
        truncated_prompt,
        laws.test_the_prompt_is_fed_whole_and_the_tokens_asked_for_are_generated,
        "the longest fed 65",
        right.LLM_PERF,
    ),
    mutant(
        zero_for_nothing,
        laws.test_there_is_no_figure_without_a_reading,
        "nothing was timed; report None",
        right.LLM_PERF,
    ),
    mutant(nan_of_an_empty_list, laws.test_something_is_reported, "reported tpot is nan", right.LLM_PERF),
    mutant(leaves_a_hook, laws.test_the_model_is_left_as_it_was, "hooks of LlamaForCausalLM", right.LLM_PERF),
]
