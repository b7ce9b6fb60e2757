"""Times relative to the uncompressed model are not longer than recorded on the same machine."""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from pressgauge.texts import load_text
from regression import timings
from regression.baseline import Baseline, Change, table, write
from regression.golden import Golden
from regression.provenance import machine, provenance
from regression.timings import (
    NAMES,
    PROCESSES,
    PROMPT,
    SUSPECT,
    Level,
    alike,
    from_row,
    level,
    longer,
    margin,
    measure,
    measure_elsewhere,
    to_row,
)

NAME = "time"
RUNNER = "CI"
"""Environment variables of CI services."""
ALONE = pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="times are taken by one process alone")


@ALONE
def test_time_is_no_longer_than_recorded(golden: Golden, reference: Callable[..., Any]) -> None:
    """Ratios of times are not longer than recorded on this machine, with apparent slowdowns measured again in other
    processes."""
    before = golden.recorded(NAME)
    here = machine(golden.device)
    same = before is not None and all(before.provenance[key] == value for key, value in here.items())
    elsewhere = partial(measure_elsewhere, golden.device)
    if golden.recording:
        record(golden, before if same else None, [[elsewhere() for _ in range(PROCESSES)] for _ in range(2)])
        return
    assert before is not None
    if os.environ.get(RUNNER):
        pytest.skip(f"not comparable: {RUNNER} is set, and its runners are other machines each time, of whatever name")
    if not same:
        there = ", ".join(f"{before.provenance[key]} {key}" for key in here)
        pytest.skip(f"not comparable: times are recorded for {there}, and this is {here}")
    was = {name: from_row(row) for name, row in before.rows.items()}
    model, tokenizer = reference("reference", "float32", str(golden.device))
    ids = load_text("reference", tokenizer, samples=1, tokens=PROMPT).to(golden.device)
    slow = longer(was, [partial(measure, model, ids), *[elsewhere] * (PROCESSES - 1)])
    found = [change(name, was[name], now) for name, now in slow.items()]
    golden.note(found)
    assert not found, f"what takes longer than recorded, beside the same without a press:\n{table(found)}"


def record(golden: Golden, before: Baseline | None, sides: list[list[dict[str, float]]]) -> None:
    """Record two measurements together if they agree; ratios that agree with the recorded ones are kept."""
    one, other = ({name: level([run[name] for run in side]) for name in NAMES} for side in sides)
    if unsteady := [change(name, one[name], other[name]) for name in NAMES if not alike(one[name], other[name])]:
        pytest.fail(f"times do not repeat themselves, so that they are not recorded:\n{table(unsteady)}", pytrace=False)
    now = {name: level([run[name] for side in sides for run in side]) for name in NAMES}
    was = {} if before is None else {name: from_row(row) for name, row in before.rows.items()}
    moved = [name for name in now if name not in was or not alike(was[name], now[name])]
    golden.note([change(name, was[name], now[name]) for name in moved if name in was])
    if moved or set(was) != set(now):
        rows = {name: to_row(now[name] if name in moved else was[name]) for name in now}
        write(Baseline(provenance(golden.device, "float32", golden.by), {}, rows), golden.path(NAME))


def change(name: str, was: Level, now: Level) -> Change:
    """A change for the table, with the threshold of significance."""
    tolerance = max(math.expm1(margin(was, now)), SUSPECT - 1)
    return Change(NAME, name, "ratio", round(was.ratio, 4), round(now.ratio, 4), tolerance)


class Operations(TorchDispatchMode):
    """A clock that counts operations and its own readings, so that no other load of the machine moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.now += 1
        return func(*args, **(kwargs or {}))

    def read(self) -> float:
        """Operations so far."""
        self.now += 1
        return self.now


def test_slower_decoding_is_detected(reference: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A slowdown of decoding by 30 % is detected in the times per token, and in no other baseline."""
    model, tokenizer = reference("reference")
    ids = load_text("reference", tokenizer, samples=1, tokens=PROMPT)
    monkeypatch.setattr(timings, "PAIRS", 1)
    with Operations() as clock, monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", clock.read)
        runs = [measure(model, ids) for _ in range(2)]
        was = {name: level([run[name] for run in runs]) for name in NAMES}
        assert longer(was, [partial(measure, model, ids)] * 2) == {}

        patch.setattr(timings, "generate", timings.slower_generate(0.3))
        found = longer(was, [partial(measure, model, ids)] * 2)
    assert list(found) == [name for name in NAMES if name.endswith("TPOT")]
    for name, now in found.items():
        assert now.ratio == pytest.approx(1.3 * was[name].ratio, rel=0.02)
