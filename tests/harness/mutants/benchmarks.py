"""Benchmarks as people write them: right ones in several styles, and broken ones, each with its sound twin."""

import time
import timeit
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import fmean, median
from threading import Thread
from time import perf_counter
from typing import Any

import torch
from torch.utils.benchmark import Timer
from transformers import DynamicCache, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from pressgauge import KnormPress
from pressgauge.conformance.versions import cache_of, using

Figures = dict[str, float | None]


def encoded(tokenizer: Any, prompt: Any, model: Any) -> Any:
    """Token ids of a prompt, on the model's device."""
    return tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)


def timed(model: Any, ids: Any, count: int) -> float:
    """Seconds of generating ``count`` tokens, synchronised on both sides."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=count, do_sample=False)
    torch.cuda.synchronize()
    return time.perf_counter() - start


# Right ones


@torch.no_grad()
def loop(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int, repeats: int = 3
) -> Figures:
    """A loop by hand, synchronised after the prompt and after every step."""
    ids = encoded(tokenizer, prompt, model)
    press = KnormPress(keep_ratio, prune_after=prune_after)
    ttfts, tpots, latencies, counts = [], [], [], []
    for number in range(repeats + 1):
        cache = DynamicCache(config=model.config)
        steps: list[float] = []
        with press(model):
            torch.cuda.synchronize()
            start = time.perf_counter()
            output = model(ids, use_cache=True, **using(cache))
            token = output.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()
            first = last = time.perf_counter()
            while len(steps) < new_tokens - 1 and token.item() != tokenizer.eos_token_id:
                output = model(token, use_cache=True, **using(cache_of(output)))
                token = output.logits[:, -1:].argmax(-1)
                torch.cuda.synchronize()
                now = time.perf_counter()
                steps.append(now - last)
                last = now
        if number:
            ttfts.append(first - start)
            tpots += steps
            latencies.append(last - start)
            counts.append(len(steps) + 1)
    return {
        "ttft": median(ttfts),
        "tpot": fmean(tpots) if tpots else None,
        "latency": median(latencies),
        "throughput": median(count / latency for count, latency in zip(counts, latencies, strict=True)),
    }


def llm_perf(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int, batch_size: int
) -> Figures:
    """``generate`` for one token and for all of them, after a warm-up, over a batch."""
    ids = encoded(tokenizer, [prompt] * batch_size, model)

    def timed(count: int) -> tuple[float, int]:
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        tokens = model.generate(ids, max_new_tokens=count, do_sample=False)
        torch.cuda.synchronize()
        return (time.perf_counter_ns() - start) / 1e9, tokens.shape[1] - ids.shape[1]

    with KnormPress(keep_ratio, prune_after=prune_after)(model):
        timed(2)
        prefill, _ = timed(1)
        latency, generated = timed(new_tokens)
    return {
        "ttft": prefill,
        "tpot": (latency - prefill) / (generated - 1) if generated > 1 else None,
        "latency": latency,
        "throughput": batch_size * generated / latency,
    }


@torch.inference_mode()
def cuda_events(
    model: Any, tokenizer: Any, prompt: Any, new_tokens: int, keep_ratio: float, prune_after: int
) -> Figures:
    """Events on the device, and milliseconds, as they report them."""
    cache: Any = None
    for _ in range(2):
        cache = KnormPress(keep_ratio, prune_after=prune_after).cache(model.config)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(new_tokens + 1)]
        torch.cuda.synchronize()
        events[0].record()
        token = model(prompt, **using(cache)).logits[:, -1:].argmax(-1)
        events[1].record()
        for event in events[2:]:
            token = model(token, **using(cache)).logits[:, -1:].argmax(-1)
            event.record()
        torch.cuda.synchronize()
    decoding = events[1].elapsed_time(events[-1])
    steps = new_tokens - 1
    return {
        "ttft": events[0].elapsed_time(events[1]),
        "tpot": decoding / steps if steps else None,
        "throughput": len(prompt) * steps / decoding * 1000 if steps else None,
    }


cuda_events.declares = {"units": {"ttft": "ms", "tpot": "ms"}, "prompt": "ids", "throughput": "decode"}  # type: ignore[attr-defined]


class Clocked(BaseStreamer):
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        value.cpu()
        self.times.append(time.monotonic())

    def end(self) -> None:
        pass


def streamed(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int) -> Figures:
    """``generate`` with a streamer, whose first call brings the prompt."""
    inputs = tokenizer(prompt, return_tensors="pt").to("cuda")
    with KnormPress(keep_ratio, prune_after=prune_after)(model):
        for _ in range(2):
            streamer = Clocked()
            model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, streamer=streamer)
    start, first, *later = streamer.times
    return {
        "ttft": first - start,
        "tpot": (later[-1] - first) / len(later) if later else None,
        "latency": streamer.times[-1] - start,
    }


def in_thread(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int) -> Figures:
    """``generate`` in a thread, and the first piece of text here."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    with KnormPress(keep_ratio, prune_after=prune_after)(model):
        for _ in range(2):
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
            options = {**inputs, "streamer": streamer, "max_new_tokens": new_tokens, "do_sample": False}
            thread = Thread(target=model.generate, kwargs=options)
            torch.cuda.synchronize()
            start = perf_counter()
            thread.start()
            text = next(streamer)
            ttft = perf_counter() - start
            text += "".join(streamer)
            thread.join()
            latency = perf_counter() - start
    generated = len(tokenizer(text, add_special_tokens=False).input_ids)
    return {"ttft": ttft, "latency": latency, "throughput": generated / latency}


def torch_timer(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int
) -> Figures:
    """``torch.utils.benchmark``, which warms up and synchronises by itself."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=prune_after)(model):
        model.generate(ids, max_new_tokens=2, do_sample=False)
        names = {"model": model, "ids": ids, "n": new_tokens}
        prefill = Timer("model(ids)", globals=names).blocked_autorange(min_run_time=0.3).median
        latency = Timer("model.generate(ids, max_new_tokens=n, do_sample=False)", globals=names).timeit(2).mean
    return {"ttft": prefill, "latency": latency}


def timeit_style(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int
) -> Figures:
    """The best of ``timeit.repeat``, as its documentation recommends."""
    ids = encoded(tokenizer, prompt, model)

    def run() -> None:
        with torch.no_grad():
            model(ids)
        torch.cuda.synchronize()

    with KnormPress(keep_ratio, prune_after=prune_after)(model):
        run()
        return {"ttft": min(timeit.repeat(run, number=1, repeat=4))}


timeit_style.declares = {"statistic": "minimum"}  # type: ignore[attr-defined]


def paired(
    model: Any, tokenizer: Any, prompts: list[str], new_tokens: int, compressor: Any, keep_ratio: float, repeats: int
) -> Figures:
    """Both arms in turns after a warm-up of both, each with its own caches, and medians of the ratios of pairs."""
    ids = encoded(tokenizer, prompts, model)

    def arm(attached: Any) -> tuple[float, float, float]:
        with attached:
            torch.accelerator.synchronize()
            start = time.time()
            model.generate(ids, max_new_tokens=1, do_sample=False)
            torch.accelerator.synchronize()
            first = time.time()
            tokens = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
            torch.accelerator.synchronize()
            ttft, latency = first - start, time.time() - first
        generated = tokens.shape[1] - ids.shape[1]
        return ttft, latency, (latency - ttft) / (generated - 1) if generated > 1 else 0.0

    pairs = []
    for number in range(repeats + 1):
        if number % 2:
            pressed, plain = arm(compressor(model)), arm(nullcontext())
        else:
            plain, pressed = arm(nullcontext()), arm(compressor(model))
        pairs.append((pressed, plain))
    del pairs[0]
    return {
        "ttft": median(pressed[0] for pressed, _ in pairs),
        "tpot": median(pressed[2] for pressed, _ in pairs) or None,
        "ttft_ratio": median(pressed[0] / plain[0] for pressed, plain in pairs),
        "speedup": median(plain[1] / pressed[1] for pressed, plain in pairs),
    }


paired.declares = {"compressor": "argument", "prompt": "texts"}  # type: ignore[attr-defined]

RIGHT: list[Callable[..., Figures]] = [
    loop, llm_perf, cuda_events, streamed, in_thread, torch_timer, timeit_style, paired,
]  # fmt: skip


# Broken ones


@dataclass(frozen=True)
class Broken:
    """A broken benchmark.

    Attributes:
        function: it.
        law: the law that it breaks, without ``test_``.
        names: words of the finding that name the mistake.
        twin: a right benchmark in the same style.
        declares: what it declares.
    """

    function: Callable[..., Figures]
    law: str
    names: str
    twin: Callable[..., Figures]
    declares: dict[str, Any] = field(default_factory=dict)


BROKEN: list[Broken] = []


def broken(law: str, names: str, twin: Callable[..., Figures], **declares: Any) -> Callable[[Any], Any]:
    """Enter a broken benchmark in the list."""

    def enter(function: Callable[..., Figures]) -> Callable[..., Figures]:
        BROKEN.append(Broken(function, law, names, twin, declares))
        return function

    return enter


@broken("equal_arms_have_the_ratio_1", "run 1 came first in the process and ran cold", paired)
def cold_baseline_first(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The uncompressed run, then the compressed one: "TTFT falls by 97 %"."""
    ids = encoded(tokenizer, prompt, model)
    baseline = timed(model, ids, 1)
    with KnormPress(keep_ratio, prune_after=16)(model):
        compressed = timed(model, ids, 1)
    return {"ttft": compressed, "ttft_ratio": compressed / baseline}


@broken("no_figure_has_the_cold_start_in_it", "1.5 s of cold start", llm_perf)
def no_warmup(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """One run, and nothing before it."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"ttft": timed(model, ids, 1), "latency": timed(model, ids, new_tokens)}


@broken("no_figure_has_the_cold_start_in_it", "the warm-up is one of the runs that are averaged", loop)
def mean_with_warmup(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A mean over all runs."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"latency": fmean([timed(model, ids, new_tokens) for _ in range(5)])}


@broken("times_contain_the_work_of_a_device_that_works_by_itself", "no synchronisation", loop)
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


@broken("work_that_others_had_queued_is_in_no_figure", "400 ms of work were queued before", llm_perf)
def starts_on_a_busy_device(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Synchronised at the end, and not before the clock starts."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=1, do_sample=False)
        torch.cuda.synchronize()
        return {"ttft": time.perf_counter() - start}


@broken("tpot_is_the_mean_time_of_decoding_steps", "the prompt's time is in it", llm_perf)
def ttft_among_the_intervals(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The whole time by all tokens."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"tpot": timed(model, ids, new_tokens) / new_tokens}


@broken("tpot_is_the_mean_time_of_decoding_steps", "divided by all 8 tokens, and timed 7 decoding steps", llm_perf)
def tokens_for_intervals(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Off by one."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"tpot": (timed(model, ids, new_tokens) - timed(model, ids, 1)) / new_tokens}


@broken("tokens_are_those_generated_where_the_sequence_ends_early", "8 tokens requested; 5 were generated", llm_perf)
def requested_not_generated(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The request divides, whatever came of it."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        ttft, latency = timed(model, ids, 1), timed(model, ids, new_tokens)
    return {"tpot": (latency - ttft) / (new_tokens - 1) if new_tokens > 1 else None}


@broken("tokens_are_those_generated_where_the_sequence_ends_early", "counts the 8 tokens requested", llm_perf)
def requested_by_time(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The same for throughput."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"throughput": new_tokens / timed(model, ids, new_tokens)}


@broken("ttft_is_the_time_of_the_prompt", "a decoding step is in it", streamed)
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


@broken("throughput_is_tokens_by_time", "counts the prompt's 96 tokens too", llm_perf)
def prompt_in_throughput(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """``generate`` returns the prompt too."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        start = time.perf_counter()
        tokens = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
        return {"throughput": tokens.numel() / (time.perf_counter() - start)}


@broken("throughput_is_tokens_by_time", "the prompt's time is missing", llm_perf)
def decoding_only(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Throughput and latency from the first token on, and no word of it."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        decoding = timed(model, ids, new_tokens) - timed(model, ids, 1)
    return {"throughput": (new_tokens - 1) / decoding, "latency": decoding} if new_tokens > 1 else {"latency": None}


@broken("latency_is_the_time_of_the_whole_generation", "it is the sum of 3 runs", llm_perf)
def sum_of_runs(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Three runs on one clock."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"latency": timeit.timeit(lambda: timed(model, ids, new_tokens), number=3)}


@broken("rows_of_a_batch_are_generated_together", "tokens of 2 rows by the time of 1", llm_perf)
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


@broken("rows_of_a_batch_are_generated_together", "of 2 rows one is counted", llm_perf)
def tokens_of_one_row(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, batch_size: int
) -> Figures:
    """The time of a batch, and the length of its first row."""
    ids = encoded(tokenizer, [prompt] * batch_size, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"throughput": new_tokens / timed(model, ids, new_tokens)}


@broken("rows_of_a_batch_are_generated_together", "divided by the 2 rows", llm_perf)
def tpot_per_row(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, batch_size: int
) -> Figures:
    """A step makes a token in every row, but no token comes earlier for it."""
    ids = encoded(tokenizer, [prompt] * batch_size, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        decoding = timed(model, ids, new_tokens) - timed(model, ids, 1)
    return {"tpot": decoding / (new_tokens - 1) / batch_size if new_tokens > 1 else None}


@broken("ttft_is_the_time_of_the_prompt", "it is in ms, and declared in s", cuda_events)
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


@broken("a_figure_is_no_extreme_of_its_runs", "is the fastest of 4 runs", loop)
def fastest_run(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The best of several, called the latency."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, new_tokens)
        return {"latency": min(timed(model, ids, new_tokens) for _ in range(3))}


@broken("a_device_that_gets_slower_favours_neither_arm", "one arm after the other", paired)
def one_arm_after_the_other(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """All uncompressed runs, then all compressed ones, on a device that gets warm."""
    ids = encoded(tokenizer, prompt, model)
    timed(model, ids, new_tokens)
    plain = median(timed(model, ids, new_tokens) for _ in range(4))
    with KnormPress(keep_ratio, prune_after=16)(model):
        pressed = median(timed(model, ids, new_tokens) for _ in range(4))
    return {"speedup": plain / pressed}


@broken("figures_react_to_what_is_evicted", "no pass met an eviction", llm_perf)
def never_installed(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """``press(model)`` is a context, and nobody enters it."""
    ids = encoded(tokenizer, prompt, model)
    KnormPress(keep_ratio, prune_after=16)(model)
    timed(model, ids, 2)
    return {"latency": timed(model, ids, new_tokens)}


@broken("figures_react_to_what_is_evicted", "its threshold not exceeded", llm_perf)
def threshold_not_exceeded(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A prompt that is shorter than the press's default threshold."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio)(model):
        timed(model, ids, 2)
        return {"latency": timed(model, ids, new_tokens)}


@broken("latency_is_the_time_of_the_whole_generation", "it is a figure of the uncompressed run", llm_perf)
def installed_for_the_warmup(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The context ends too early."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, new_tokens)
    return {"latency": timed(model, ids, new_tokens)}


@broken("ratios_compare_a_pressed_with_an_uncompressed_run", "every run of 8 tokens was uncompressed", paired)
def two_uncompressed_arms(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A cache that is compressed, and another one that is timed."""
    ids = encoded(tokenizer, prompt, model)
    KnormPress(keep_ratio, prune_after=16).cache(model.config)
    timed(model, ids, 2)
    return {"latency_ratio": timed(model, ids, new_tokens) / timed(model, ids, new_tokens)}


@broken("ratios_compare_a_pressed_with_an_uncompressed_run", "of run 3, compressed, by", paired)
def speedup_upside_down(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Below 1 where it is faster."""
    ids = encoded(tokenizer, prompt, model)
    timed(model, ids, new_tokens)
    plain = timed(model, ids, new_tokens)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"speedup": timed(model, ids, new_tokens) / plain}


RESULTS: dict[str, Figures] = {}


@broken("every_call_is_measured_and_none_changes_the_next", "its figures are those of keep_ratio", llm_perf)
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


@broken("every_call_is_measured_and_none_changes_the_next", "ran one arm only: the other is of an earlier call", paired)
def baseline_of_another_call(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """Timed once, an hour ago."""
    ids = encoded(tokenizer, prompt, model)
    timed(model, ids, 2)
    if not BASELINE:
        BASELINE.append(timed(model, ids, new_tokens))
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"latency_ratio": timed(model, ids, new_tokens) / BASELINE[0]}


@broken("ttft_is_the_time_of_the_prompt", "attaching the compressor is in it", paired, compressor="argument")
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


@broken("the_prompt_is_fed_whole_and_the_tokens_asked_for_are_generated", "to no cache", loop)
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


@broken("the_prompt_is_fed_whole_and_the_tokens_asked_for_are_generated", "the longest fed 65", llm_perf)
def truncated_prompt(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A maximum length that nobody remembers."""
    ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=64).input_ids
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        return {"ttft": timed(model, ids, 1)}


@broken("there_is_no_figure_without_a_reading", "nothing was timed; report None", llm_perf)
def zero_for_nothing(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """No division by zero, and a figure all the same."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        timed(model, ids, 2)
        decoding = timed(model, ids, new_tokens) - timed(model, ids, 1)
    return {"tpot": decoding / max(new_tokens - 1, 1)}


@broken("something_is_reported", "reported tpot is nan", llm_perf)
def nan_of_an_empty_list(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """The mean of intervals that nobody took."""
    ids = encoded(tokenizer, prompt, model)
    with KnormPress(keep_ratio, prune_after=16)(model):
        ttft = timed(model, ids, 1)
    return {"ttft": ttft, "tpot": float(torch.tensor([]).mean())}


@broken("the_model_is_left_as_it_was", "hooks of LlamaForCausalLM", llm_perf)
def leaves_a_hook(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float) -> Figures:
    """A hook that counts passes, and counts on."""
    ids = encoded(tokenizer, prompt, model)
    model.register_forward_hook(lambda *args: None)
    with KnormPress(keep_ratio, prune_after=16)(model):
        return {"latency": timed(model, ids, new_tokens)}
