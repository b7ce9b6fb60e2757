"""The scripted clock, and the right figures that follow from it: against numbers worked out by hand."""

import threading
import time
import timeit
from collections.abc import Iterator
from functools import partial
from time import perf_counter_ns
from typing import Any

import pytest
import torch
from transformers import StaticCache
from transformers.utils.import_utils import is_torch_cuda_available

from pressgauge import KnormPress
from pressgauge.conformance.versions import using
from pressgauge.measuring.benchmarks import Ask, Benchmark, Call, model_of_known_length, prompt, tokenizer
from pressgauge.measuring.clock import SECOND, Device, Script, scripted
from pressgauge.measuring.runs import measured, right

MS = SECOND // 1000


@pytest.fixture
def device() -> Iterator[Device]:
    """A device on which our model runs; the first pass of a process takes a second more."""
    tokenizer()
    with scripted(Device(Script(cold_prompt=SECOND)), model_of_known_length(), globals()) as device:
        yield device


def tokens(count: int) -> Any:
    """A prompt."""
    return tokenizer()(prompt(count, None), return_tensors="pt").input_ids


def since(start: int, clock: Any = time.perf_counter) -> float:
    """Seconds by a clock that may be given as a default argument."""
    return float(clock() - start / SECOND)


def test_a_pass_takes_its_time_when_the_device_is_waited_for(device: Device) -> None:
    """10 tokens at half a millisecond and 4 ms for the pass, and a second more for the first one."""
    model, start = model_of_known_length(), device.now
    model(tokens(10))
    assert device.now == start
    torch.cuda.synchronize()
    assert device.now == start + SECOND + 9 * MS
    logits = model(tokens(10)).logits
    assert logits[0, -1].argmax().item() >= 0
    assert device.now == start + SECOND + 18 * MS


def test_every_clock_shows_the_time_of_the_device(device: Device) -> None:
    """Those of ``time``, in seconds and nanoseconds, under names of one's own and as default arguments."""
    start = device.now
    time.sleep(0.25)
    assert device.now == start + 250 * MS
    for name in ("perf_counter", "monotonic", "time", "process_time"):
        assert getattr(time, name)() == device.now / SECOND
        assert getattr(time, f"{name}_ns")() == device.now
    assert perf_counter_ns() == device.now
    assert since(start) == 0.25
    assert timeit.timeit(partial(time.sleep, 0.5), number=2) == 1


def test_events_count_milliseconds_between_passes(device: Device) -> None:
    """An event is recorded behind what is queued, and read when the device has come so far."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    model_of_known_length()(tokens(10))
    end.record()
    with pytest.raises(RuntimeError, match="not ready"):
        start.elapsed_time(end)
    end.synchronize()
    assert start.elapsed_time(end) == 1009


def test_steps_take_time_for_what_is_held(device: Device) -> None:
    """4.5 ms and a sixteenth for each entry, of which a press leaves half; a static cache holds what was fed."""
    model = model_of_known_length()
    for cache, held in (
        (KnormPress(0.5, prune_after=4).cache(model.config), 16),
        (StaticCache(config=model.config, max_cache_len=64), 32),
    ):
        with torch.no_grad():
            model(tokens(32), **using(cache))
            model(tokens(32)[:, :1], **using(cache))
        last = device.passes[-1]
        assert (last.seen, last.held, last.compressed) == (32, held, held < 32)
        assert last.warm == 4.5 * MS + held * MS / 16


def test_passes_of_another_thread_wait_until_they_have_been_noticed(device: Device) -> None:
    """So that what this thread reads when it is woken does not depend on who is faster."""
    reading, woken = [], threading.Condition()

    def work() -> None:
        for _ in range(2):
            model_of_known_length()(tokens(10))
            torch.cuda.synchronize()
            with woken:
                woken.notify()

    with woken:
        worker = threading.Thread(target=work)
        worker.start()
        woken.wait()
        reading.append(time.perf_counter_ns())
    worker.join()
    assert reading == [2 * SECOND + 9 * MS]
    assert device.now == reading[0] + 9 * MS


def test_nothing_is_left_of_a_script() -> None:
    """Clocks, torch and what transformers knows of GPUs are as before."""
    clocks, known = (time.perf_counter, perf_counter_ns, since.__defaults__), torch.cuda.is_available()
    with scripted(Device(), model_of_known_length(), globals()):
        assert (time.perf_counter, since.__defaults__) != (clocks[0], clocks[2])
        assert torch.cuda.is_available()
        assert torch.zeros(1, device="cuda").is_cuda
        assert is_torch_cuda_available()
    assert (time.perf_counter, perf_counter_ns, since.__defaults__) == clocks
    assert torch.cuda.is_available() == is_torch_cuda_available() == known
    assert torch.zeros(1).device.type == "cpu"
    assert not model_of_known_length().model._forward_pre_hooks


def generated(model: Any, tokenizer: Any, text: str, new_tokens: int) -> dict[str, float]:
    """Nothing but passes."""
    model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=new_tokens, do_sample=False)
    return {}


def figures(call: Call, benchmark: Benchmark) -> dict[str, list[float]]:
    """The right figures of a call."""
    run = measured(call, benchmark.declares)
    assert run is not None
    return {name: right(name, run, call, benchmark.declares) for name in ("ttft", "tpot", "throughput", "latency")}


def test_right_figures_are_those_worked_out_by_hand() -> None:
    """A prompt of 16 tokens takes 12 ms, and steps with 16, 17 and 18 entries 5.5 ms and 1/16 more each time."""
    benchmark = Benchmark.of("generate", generated, {"prompt_tokens": 16})
    steps = 5.5 + 5.5625 + 5.625
    (call,) = benchmark.calls(Script(), Ask(1.0, new_tokens=4))
    found = figures(call, benchmark)
    assert found["ttft"] == [0.012]
    assert found["tpot"] == pytest.approx([steps / 3000] * 2)
    assert found["latency"] == pytest.approx([(12 + steps) / 1000])
    assert found["throughput"] == pytest.approx([4 / (12 + steps) * 1000])


@pytest.mark.parametrize(
    ("declares", "figure", "value"),
    [
        ({"first_token": "decode"}, "ttft", 0.0175),
        ({"tpot": "all"}, "tpot", 0.028687_5 / 4),
        ({"latency": "decode"}, "latency", 0.016687_5),
        ({"throughput": "decode"}, "throughput", 3 / 0.016687_5),
        ({"throughput": "prompt"}, "throughput", 20 / 0.028687_5),
    ],
)
def test_declared_figures_are_right_as_declared(declares: dict[str, Any], figure: str, value: float) -> None:
    """Each declaration says what is timed, or by what it is divided."""
    benchmark = Benchmark.of("generate", generated, {"prompt_tokens": 16, **declares})
    (call,) = benchmark.calls(Script(), Ask(1.0, new_tokens=4))
    assert figures(call, benchmark)[figure] == pytest.approx([value])


@pytest.mark.parametrize(
    ("declares", "message"),
    [
        ({"units": {"ttft": "tokens/s"}}, "declares units has no 'ttft' in 'tokens/s'"),
        ({"units": {"tftt": "s"}}, "declares units has no 'tftt' in 's'"),
        ({"tpot": "first"}, "declares tpot must be one of 'later', 'all', got 'first'"),
        ({"warmup": 3}, "declares has no 'warmup'"),
    ],
)
def test_declarations_are_checked(declares: dict[str, Any], message: str) -> None:
    """With the value and what is known."""
    with pytest.raises(ValueError, match=message):
        Benchmark.of("generate", generated, declares)
