"""False-alarm rate and power of the comparison of times with a baseline."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from unittest.mock import patch

from regression import timings
from regression.timings import PROCESSES, Level, Measure, level, longer

NAMES = [name for name in timings.NAMES if name.startswith("knorm")]
TPOT = "knorm budget TPOT"
RECORDED = 2 * PROCESSES
"""Processes of a baseline."""
RUNS = 6 * RECORDED
COMPARISONS = {0.0: 200, 0.15: 100}
"""Number of comparisons, by slowdown of decoding."""
LIMITS = {0.0: "at most 4", 0.15: "at least 95"}

Run = Mapping[float, Mapping[str, float]]
"""Medians measured by one process, by slowdown and name."""


def run(number: int) -> Run:
    """Measure in a separate process."""
    found = {}
    for share in COMPARISONS:
        with patch.object(timings, "generate", timings.slower_generate(share)):
            found[share] = timings.measure_alone("cpu", 1, NAMES if share == 0 else [TPOT])
    return found


def compared(runs: Sequence[Run], name: str, share: float) -> Iterator[bool]:
    """Whether each comparison reports a slowdown, over all starting processes and baselines of other processes.

    Both a baseline and its comparison consist of consecutive processes.
    """

    def measure(number: int) -> Measure:
        return lambda names: runs[number][share]

    for first in range(len(runs)):
        for start in range(0, len(runs), RECORDED):
            recorded = range(start, start + RECORDED)
            later = [(first + step) % len(runs) for step in range(PROCESSES)]
            if not set(later) & set(recorded):
                was: Level = level([runs[number][0.0][name] for number in recorded])
                yield bool(longer({name: was}, map(measure, later)))


def false_alarms() -> Iterator[str]:
    """Run 200 comparisons of each time without a slowdown, and 100 with decoding slowed by 15 %."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = []
        for found in pool.map(run, range(RUNS)):
            runs.append(found)
            yield json.dumps(found)
    for share, count in COMPARISONS.items():
        for name in NAMES if share == 0 else [TPOT]:
            said = list(islice(compared(runs, name, share), count))
            yield f"{name}, slower by {share:.0%}: called slower in {sum(said)} of {len(said)} ({LIMITS[share]})"
    for name in NAMES:
        all_of_them = level([one[0.0][name] for one in runs])
        yield f"{name}: {all_of_them.ratio:.3f}, standard deviation of a process {all_of_them.deviation:.1%}"
