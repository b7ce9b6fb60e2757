"""How long things take beside the same without a press, and whether that is longer than it was.

Processes differ: what has which place in memory, and what else the machine does meanwhile, is the same for all runs of
a process. So a ratio is recorded as its mean over several processes, and is called slower if the mean over several
others is, by a test whose error rate is one in 200. No other one is asked about what the process at hand does not find
slower. How often something is called slower where nothing is, and where something is, is counted by
``python -m tools.benchmarks false-alarms``.
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
"""Of each process."""
PROCESSES = 5
"""Of each side of a comparison. A baseline has two sides' worth, which have to agree."""
PROMPT = 512
SHORT = 192
"""Tokens of the text that the one pass is timed on."""
NEW_TOKENS = 17
SUSPECT = 1.04
"""What is slower by less than this in the process at hand, or in the mean of those asked so far, is not slower."""
ERROR_RATE = 0.005
PRESSES: dict[str, Press] = {
    "knorm budget": KnormPress(0.5, prune_after=64),
    "streaming-llm step": StreamingLLMPress(0.5, prune_after=64, schedule="step"),
}
WHATS = ("TTFT", "TPOT", "one-pass to plain")
NAMES = tuple(f"{name} {what}" for name in PRESSES for what in WHATS)
"""All ratios that are recorded."""


@dataclass(frozen=True)
class Level:
    """A ratio over several processes: the geometric mean of their medians.

    Attributes:
        mean: of the logarithms.
        deviation: the standard deviation of one process's logarithm.
        processes: how many there were.
    """

    mean: float
    deviation: float
    processes: int

    @property
    def ratio(self) -> float:
        """The ratio itself."""
        return math.exp(self.mean)


def level(ratios: Sequence[float]) -> Level:
    """Of the medians of at least two processes."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return Level(fmean(logarithms), stdev(logarithms), len(logarithms))


def _reach(processes: int) -> float:
    """By how many standard deviations of a process the 95 % interval of a mean goes up and down."""
    return float(t.ppf(0.975, processes - 1)) / math.sqrt(processes)


def to_row(found: Level) -> Row:
    """A ratio with its 95 % interval, for a baseline."""
    width = _reach(found.processes) * found.deviation
    low, high = (math.exp(found.mean + sign * width) for sign in (-1, 1))
    return {"ratio": round(found.ratio, 4), "low": round(low, 4), "high": round(high, 4), "processes": found.processes}


def from_row(row: Row) -> Level:
    """The ratio that a baseline has."""
    processes = int(row["processes"])
    width = math.log(float(row["high"]) / float(row["low"])) / 2
    return Level(math.log(float(row["ratio"])), width / _reach(processes), processes)


def margin(was: Level, now: Level) -> float:
    """By how much one logarithm has to be above the other by Welch's one-sided test: each has a spread of its own."""
    parts = [(one.deviation**2 / one.processes, one.processes - 1) for one in (was, now)]
    variance = sum(part for part, _ in parts)
    if not variance:
        return 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(t.ppf(1 - ERROR_RATE, freedom)) * math.sqrt(variance)


def slower(was: Level, now: Level) -> bool:
    """Whether ``now`` is more than ``was`` by more than their spread explains."""
    return now.mean - was.mean > margin(was, now)


def alike(was: Level, now: Level) -> bool:
    """Whether neither would be called slower than the other."""
    return abs(now.mean - was.mean) <= max(margin(was, now), math.log(SUSPECT))


Pairs = list[tuple[float, float]]
Measure = Callable[[Collection[str]], Mapping[str, float]]
"""Measures at least the ratios of these names, in one process: the medians."""


def longer(was: Mapping[str, Level], measures: Iterable[Measure]) -> dict[str, Level]:
    """The ratios that are slower than they were. Each of ``measures`` is asked as long as some seem so, about those."""
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
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _onepass(model: PreTrainedModel, ids: Tensor, press: Press) -> dict[str, Pairs]:
    ids = ids[:1, :SHORT]
    mine, plain = partial(perplexity, model, ids, press), partial(perplexity, model, ids, method="plain")
    return {"one-pass to plain": interleave(lambda: seconds(mine), lambda: seconds(plain), PAIRS)}


def measure(model: PreTrainedModel, ids: Tensor, wanted: Collection[str] = NAMES) -> dict[str, float]:
    """Medians of the ratios of pairs, for these ratios and for what is measured with them, in this process."""
    found: dict[str, float] = {}
    for name, press in PRESSES.items():
        for work, whats in ((_decoding, ("TTFT", "TPOT")), (_onepass, ("one-pass to plain",))):
            if any(f"{name} {what}" in wanted for what in whats):
                for what, pairs in work(model, ids, press).items():
                    found[f"{name} {what}"] = median(first / second for first, second in pairs)
    return found


def measure_alone(device: str, threads: int, wanted: Collection[str]) -> dict[str, float]:
    """What a new process does: it loads the model and measures."""
    torch.set_num_threads(threads)
    model, tokenizer = load("reference", device=device)
    return measure(model, load_text("reference", tokenizer, samples=1, tokens=PROMPT).to(device), wanted)


def measure_elsewhere(device: torch.device, wanted: Collection[str] = NAMES) -> dict[str, float]:
    """The same in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_alone, str(device), torch.get_num_threads(), wanted).result()


@contextmanager
def slowed(model: PreTrainedModel, share: float) -> Iterator[None]:
    """Each step of decoding takes this share longer, by busy waiting: from one step's end to the next one's."""
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
    """``generate`` that takes this share longer for each token where a press is at work."""
    plain = generate

    def slow(model: PreTrainedModel, ids: Tensor, press: Press | None, *args: Any, **kwargs: Any) -> Generation:
        with nullcontext() if press is None else slowed(model, share):
            return plain(model, ids, press, *args, **kwargs)

    return slow
