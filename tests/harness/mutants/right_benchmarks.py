"""Benchmarks that are right, each in its own style: no law may break on them."""

import copy
import time
import timeit
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
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
from pressgauge.measuring.benchmarks import Benchmark

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


@torch.no_grad()
def on_the_cpu(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int
) -> Figures:
    """A prompt in chunks, which meet evictions, and no synchronisation, where none is needed."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert model.device.type == ids.device.type == "cpu"
    for _ in range(2):
        cache = KnormPress(keep_ratio, prune_after=prune_after).cache(model.config)
        readings = [time.process_time()]
        for chunk in ids.split(32, dim=1):
            logits = model(chunk, **using(cache)).logits
        readings.append(time.process_time())
        for _ in range(new_tokens - 1):
            logits = model(logits[:, -1:].argmax(-1), **using(cache)).logits
            readings.append(time.process_time())
    steps = [later - earlier for earlier, later in pairwise(readings[1:])]
    return {"ttft": readings[1] - readings[0], "tpot": median(steps) if steps else None}


def first_tokens(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int
) -> Figures:
    """Nothing but first tokens, of both arms by turns."""
    ids = encoded(tokenizer, prompt, model)
    press = KnormPress(keep_ratio, prune_after=prune_after)
    pairs = []
    for _ in range(6):
        baseline = timed(model, ids, 1)
        with press(model):
            pairs.append((timed(model, ids, 1), baseline))
    pressed, baseline = (median(arm) for arm in zip(*pairs[1:], strict=True))
    return {"ttft": pressed, "ttft_ratio": pressed / baseline}


@torch.no_grad()
def prefilled(model: Any, tokenizer: Any, prompt: str, new_tokens: int, keep_ratio: float, prune_after: int) -> Figures:
    """The prompt and its steps timed apart, each run on a copy of one cache; milliseconds with two digits."""
    ids = encoded(tokenizer, prompt, model)

    def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start), result

    def prefill() -> tuple[Any, Any]:
        cache = KnormPress(keep_ratio, prune_after=prune_after).cache(model.config)
        return cache, model(ids, **using(cache)).logits[:, -1:].argmax(-1)

    def decode(cache: Any, token: Any) -> None:
        for _ in range(new_tokens - 1):
            token = model(token, **using(cache)).logits[:, -1:].argmax(-1)

    prompts = [clocked(prefill) for _ in range(4)]
    cache, token = prompts[-1][1]
    copies = [copy.deepcopy(cache) for _ in range(4)]
    steps = [clocked(partial(decode, one, token))[0] for one in copies]
    return {
        "ttft": round(median(time for time, _ in prompts[1:]), 2),
        "tpot": round(median(steps[1:]) / (new_tokens - 1), 2) if new_tokens > 1 else None,
    }


LOOP = Benchmark.of("loop", loop)
LLM_PERF = Benchmark.of("llm-perf", llm_perf)
CUDA_EVENTS = Benchmark.of(
    "cuda-events",
    cuda_events,
    {"units": {"ttft": "ms", "tpot": "ms"}, "prompt": "ids", "throughput": "decode"},
)
STREAMED = Benchmark.of("streamed", streamed)
IN_THREAD = Benchmark.of("in-thread", in_thread)
TORCH_TIMER = Benchmark.of("torch-timer", torch_timer)
TIMEIT = Benchmark.of("timeit", timeit_style, {"statistic": "minimum"})
PAIRED = Benchmark.of("paired", paired, {"compressor": "argument", "prompt": "texts"})
ON_THE_CPU = Benchmark.of("on-the-cpu", on_the_cpu, {"device": "cpu"})
FIRST_TOKENS = Benchmark.of("first-tokens", first_tokens)
PREFILLED = Benchmark.of("prefilled", prefilled, {"units": {"ttft": "ms", "tpot": "ms"}})
RIGHT_BENCHMARKS = [
    PREFILLED,
    FIRST_TOKENS,
    ON_THE_CPU,
    LOOP,
    LLM_PERF,
    CUDA_EVENTS,
    STREAMED,
    IN_THREAD,
    TORCH_TIMER,
    TIMEIT,
    PAIRED,
]
