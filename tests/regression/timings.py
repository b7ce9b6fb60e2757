"""Times relative to the uncompressed model, and whether they are longer than recorded.

Times differ between processes, because of memory placement and other load. A ratio is therefore recorded as its mean
over several processes. It is called slower if the mean over several other processes is, by a test with an error rate of
one in 200; further processes are started only for ratios that seem slower so far. ``python -m tools.benchmarks
false-alarms`` measures the false-alarm rate and the power.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from statistics import fmean, median, stdev
from typing import Any

import torch
from scipy.stats import t
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge import Generation, KnormPress, Press, StreamingLLMPress, generate, perplexity
from pressgauge.models import load
from pressgauge.texts import load_text
from pressgauge.timing import interleave
from regression.baseline import Row

PAIRS = 16
"""Pairs per process."""
PROCESSES = 5
"""Processes on each side of a comparison. A baseline has twice as many, in two halves that must agree."""
PROMPT = 512
SHORT = 192
"""Tokens of the text for timing the one pass."""
NEW_TOKENS = 17
SUSPECT = 1.04
"""Smallest slowdown, in this process or the mean of the processes so far, that is measured further."""
ERROR_RATE = 0.005
PRESSES: dict[str, Press] = {
    "knorm budget": KnormPress(0.5, prune_after=64),
    "streaming-llm step": StreamingLLMPress(0.5, prune_after=64, schedule="step"),
}
WHATS = ("TTFT", "TPOT", "one-pass to plain")
NAMES = tuple(f"{name} {what}" for name in PRESSES for what in WHATS)
"""Names of all recorded ratios."""


@dataclass(frozen=True)
class Level:
    """A ratio over several processes: the geometric mean of their medians.

    Attributes:
        mean: mean of the logarithms.
        deviation: standard deviation of the logarithms over processes.
        processes: number of processes.
    """

    mean: float
    deviation: float
    processes: int

    @property
    def ratio(self) -> float:
        """The ratio."""
        return math.exp(self.mean)


def level(ratios: Sequence[float]) -> Level:
    """Level of the medians of at least two processes."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return Level(fmean(logarithms), stdev(logarithms), len(logarithms))


def _reach(processes: int) -> float:
    """Half width of the 95 % confidence interval of the mean, in standard deviations of a process."""
    return float(t.ppf(0.975, processes - 1)) / math.sqrt(processes)


def to_row(found: Level) -> Row:
    """A ratio with its 95 % confidence interval, for a baseline."""
    width = _reach(found.processes) * found.deviation
    low, high = (math.exp(found.mean + sign * width) for sign in (-1, 1))
    return {"ratio": round(found.ratio, 4), "low": round(low, 4), "high": round(high, 4), "processes": found.processes}


def from_row(row: Row) -> Level:
    """The ratio in a baseline."""
    processes = int(row["processes"])
    width = math.log(float(row["high"]) / float(row["low"])) / 2
    return Level(math.log(float(row["ratio"])), width / _reach(processes), processes)


def margin(was: Level, now: Level) -> float:
    """Least difference of logarithms that is significant by Welch's one-sided test."""
    parts = [(one.deviation**2 / one.processes, one.processes - 1) for one in (was, now)]
    variance = sum(part for part, _ in parts)
    if not variance:
        return 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(t.ppf(1 - ERROR_RATE, freedom)) * math.sqrt(variance)


def slower(was: Level, now: Level) -> bool:
    """Whether ``now`` is significantly above ``was``."""
    return now.mean - was.mean > margin(was, now)


def alike(was: Level, now: Level) -> bool:
    """Whether neither is slower than the other."""
    return abs(now.mean - was.mean) <= max(margin(was, now), math.log(SUSPECT))


Pairs = list[tuple[float, float]]
Measure = Callable[[Collection[str]], Mapping[str, float]]
"""Measures the ratios of these names, or more, in one process: the medians."""


def longer(was: Mapping[str, Level], measures: Iterable[Measure]) -> dict[str, Level]:
    """Ratios that are slower than recorded. Each of ``measures`` is called while some seem slower, for those only."""
    found: dict[str, list[float]] = {name: [] for name in was}
    suspects = list(was)
    for measure in measures:
        if not suspects:
            break
        medians = measure(suspects)
        for name in suspects:
            found[name].append(medians[name])
        suspects = [name for name in suspects if fmean(map(math.log, found[name])) > was[name].mean + math.log(SUSPECT)]
    now = {name: level(found[name]) for name in suspects}
    return {name: one for name, one in now.items() if slower(was[name], one)}


def _decoding(model: PreTrainedModel, ids: Tensor, press: Press) -> dict[str, Pairs]:
    def run(arm: Press | None) -> tuple[float, float]:
        found = generate(model, ids[:1, :PROMPT], arm, NEW_TOKENS, eos_token_id=[])
        assert found.tpot is not None
        return found.ttft, found.tpot

    runs = interleave(lambda: run(press), lambda: run(None), PAIRS)
    return {
        what: [(pressed[place], plain[place]) for pressed, plain in runs] for place, what in enumerate(("TTFT", "TPOT"))
    }


def seconds(work: Callable[[], object]) -> float:
    """Duration of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _onepass(model: PreTrainedModel, ids: Tensor, press: Press) -> dict[str, Pairs]:
    ids = ids[:1, :SHORT]
    mine, plain = partial(perplexity, model, ids, press), partial(perplexity, model, ids, method="plain")
    return {"one-pass to plain": interleave(lambda: seconds(mine), lambda: seconds(plain), PAIRS)}


def measure(model: PreTrainedModel, ids: Tensor, wanted: Collection[str] = NAMES) -> dict[str, float]:
    """Medians of ratios over pairs, for these ratios and those measured with them, in this process."""
    found: dict[str, float] = {}
    for name, press in PRESSES.items():
        for work, whats in ((_decoding, ("TTFT", "TPOT")), (_onepass, ("one-pass to plain",))):
            if any(f"{name} {what}" in wanted for what in whats):
                for what, pairs in work(model, ids, press).items():
                    found[f"{name} {what}"] = median(first / second for first, second in pairs)
    return found


def measure_alone(device: str, threads: int, wanted: Collection[str]) -> dict[str, float]:
    """Load the model and measure, in a new process."""
    torch.set_num_threads(threads)
    model, tokenizer = load("reference", device=device)
    return measure(model, load_text("reference", tokenizer, samples=1, tokens=PROMPT).to(device), wanted)


def measure_elsewhere(device: torch.device, wanted: Collection[str] = NAMES) -> dict[str, float]:
    """Run ``measure_alone`` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_alone, str(device), torch.get_num_threads(), wanted).result()


@contextmanager
def slowed(model: PreTrainedModel, share: float) -> Iterator[None]:
    """Slow down each decoding step by a share, with busy waiting."""
    ended = math.nan

    def wait(module: object, args: object, output: object) -> None:
        nonlocal ended
        until = time.perf_counter()
        until += share * (until - ended) if ended == ended else 0.0
        while time.perf_counter() < until:
            pass
        ended = time.perf_counter()

    handle = model.register_forward_hook(wait)
    try:
        yield
    finally:
        handle.remove()


def slower_generate(share: float) -> Callable[..., Generation]:
    """``generate`` with each token slowed by a share while a press is attached."""
    plain = generate

    def slow(model: PreTrainedModel, ids: Tensor, press: Press | None, *args: Any, **kwargs: Any) -> Generation:
        with nullcontext() if press is None else slowed(model, share):
            return plain(model, ids, press, *args, **kwargs)

    return slow
