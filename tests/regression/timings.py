"""How long things take beside the same without a press, and whether that is longer than it was.

A ratio is compared with the recorded one by a test: slower is said where the ratio of the two, by the lower bound of an
interval that holds but for one time in 200, is above ``MARGIN``, and where a second measurement says so too. How often
this is said where nothing is slower, and how often where something is, counts ``python -m benchmarks alarms``.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import NormalDist
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from pressgauge import Generation, KnormPress, Press, StreamingLLMPress, generate, perplexity
from pressgauge.timing import Ratio, interleave, ratio
from regression.baseline import Row

PAIRS = 16
PROMPT = 512
SHORT = 192
"""Tokens of the text that the one pass is timed on."""
NEW_TOKENS = 17
MARGIN = 1.05
"""What is slower by less than this is not called slower."""
BETWEEN = {"TTFT": 0.04, "TPOT": 0.01, "one-pass to plain": 0.06}
"""By how much a process differs from the next: the standard deviation of the logarithms of their medians, as seen in
five processes on two cores. What is in the same place of memory in all runs of a process is not in another."""
ERROR_RATE = 0.005
"""Of one measurement."""
PRESSES: dict[str, Press] = {
    "knorm budget": KnormPress(0.5, prune_after=64),
    "streaming-llm step": StreamingLLMPress(0.5, prune_after=64, schedule="step"),
}


def to_row(found: Ratio) -> Row:
    """A ratio, for a baseline."""
    low, high = found.interval
    return {"median": round(found.median, 4), "low": round(low, 4), "high": round(high, 4)}


def from_row(row: Row) -> Ratio:
    """The ratio that a baseline has."""
    return Ratio(float(row["median"]), (float(row["low"]), float(row["high"])))


def error(found: Ratio) -> float:
    """The standard error of the logarithm of the median."""
    low, high = found.interval
    return math.log(high / low) / (2 * NormalDist().inv_cdf(0.975))


def tolerance(name: str, was: Ratio, now: Ratio) -> float:
    """How much longer ``now`` may take without being called slower, relative to ``was``; ``name`` is the ratio's."""
    between = next(between for what, between in BETWEEN.items() if name.endswith(what))
    chance = math.hypot(error(was), error(now), between, between)
    return MARGIN * math.exp(NormalDist().inv_cdf(1 - ERROR_RATE) * chance) - 1


def slower(name: str, was: Ratio, now: Ratio) -> bool:
    """Whether ``now`` is above ``was`` by more than ``MARGIN`` and chance."""
    return now.median / was.median > 1 + tolerance(name, was, now)


def alike(name: str, was: Ratio, now: Ratio) -> bool:
    """Whether neither is slower than the other."""
    return not slower(name, was, now) and not slower(name, now, was)


Pairs = list[tuple[float, float]]


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


NAMES = tuple(f"{name} {what}" for name in PRESSES for what in ("TTFT", "TPOT", "one-pass to plain"))
"""All ratios that are recorded."""


def measure(model: PreTrainedModel, ids: Tensor, wanted: Collection[str] = NAMES) -> dict[str, Pairs]:
    """Pairs of times for these ratios, and for what is measured with them."""
    found: dict[str, Pairs] = {}
    for name, press in PRESSES.items():
        for work, whats in ((_decoding, ("TTFT", "TPOT")), (_onepass, ("one-pass to plain",))):
            if any(f"{name} {what}" in wanted for what in whats):
                found |= {f"{name} {what}": pairs for what, pairs in work(model, ids, press).items()}
    return found


def _slow(was: Mapping[str, Ratio], pairs: Mapping[str, Pairs]) -> dict[str, Ratio]:
    found = {name: ratio(pairs[name]) for name in was}
    return {name: now for name, now in found.items() if slower(name, was[name], now)}


def longer(was: Mapping[str, Ratio], again: Callable[[Collection[str]], Mapping[str, Pairs]]) -> dict[str, Ratio]:
    """The ratios that are slower than they were, by two measurements of which the second is of the slower ones only.

    Args:
        was: what was recorded.
        again: measures at least the ratios of these names.
    """
    slow = _slow(was, again(was))
    return _slow({name: was[name] for name in slow}, again(slow)) if slow else {}


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
