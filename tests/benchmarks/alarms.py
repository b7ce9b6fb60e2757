"""How often the comparison of times with a baseline says that something is slower, where nothing is and where it is."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from unittest.mock import patch

import torch
from regression import timings
from regression.timings import Pairs

from pressgauge.models import load
from pressgauge.text import load_text
from pressgauge.timing import Ratio, ratio

NAMES = [name for name in timings.NAMES if name.startswith("knorm")]
TPOT = "knorm budget TPOT"
PROCESSES = 50
LATER = {0.0: 4, 0.15: 2}
"""By how much decoding takes longer: how many other processes each baseline is compared with."""
LIMITS = {0.0: "at most 4", 0.15: "at least 95"}


@dataclass(frozen=True)
class Run:
    """What one process measured: a baseline, and two measurements for each share by which decoding is slower."""

    was: Mapping[str, Ratio]
    now: Mapping[float, list[dict[str, Pairs]]]


def run(number: int) -> Run:
    """In a process of its own, since what a process has in which place of memory makes a difference."""
    torch.set_num_threads(1)
    model, tokenizer = load("reference")
    ids = load_text("reference", tokenizer, samples=1, tokens=timings.PROMPT)
    first, second = (timings.measure(model, ids, NAMES) for _ in range(2))
    now = {}
    for share in LATER:
        with patch.object(timings, "generate", timings.slower_generate(share)):
            now[share] = [timings.measure(model, ids, NAMES if share == 0 else [TPOT]) for _ in range(2)]
    return Run({name: ratio([*first[name], *second[name]]) for name in NAMES}, now)


def slower(name: str, before: Run, now: list[dict[str, Pairs]]) -> bool:
    """Whether one process's measurements are called slower than another's baseline."""
    later = iter(now)
    return bool(timings.longer({name: before.was[name]}, lambda names: next(later)))


def alarms() -> Iterator[str]:
    """200 comparisons of each kind of time in which nothing is slower, and 100 in which decoding takes 15 % longer,
    each of the baseline of one process with two measurements of another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = list(pool.map(run, range(PROCESSES)))
    for share, others in LATER.items():
        for name in NAMES if share == 0 else [TPOT]:
            said = []
            for number, before in enumerate(runs):
                for other in range(1, others + 1):
                    said.append(slower(name, before, runs[(number + other) % PROCESSES].now[share]))
            yield f"{name}, slower by {share:.0%}: called slower in {sum(said)} of {len(said)} ({LIMITS[share]})"
    for name in NAMES:
        medians = sorted(one.was[name].median for one in runs)
        error = median(timings.error(one.was[name]) for one in runs)
        yield f"{name}: baselines from {medians[0]:.3f} to {medians[-1]:.3f}, standard error {error:.1%}"
