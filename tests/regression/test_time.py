"""Nothing takes longer beside the same without a press than it did, on the machine where that was recorded."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from pressgauge.text import load_text
from pressgauge.timing import Ratio, ratio
from regression import timings
from regression.baseline import Baseline, Change, table, write
from regression.golden import Golden
from regression.provenance import machine, provenance
from regression.timings import PROMPT, Pairs, alike, from_row, longer, measure, to_row, tolerance

NAME = "time"
ALONE = pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="times are taken by one process alone")


@ALONE
def test_time_is_no_longer_than_recorded(golden: Golden, reference: Callable[..., Any]) -> None:
    """Ratios of times, where the machine is the recorded one; what seems slower is measured once more."""
    before = golden.recorded(NAME)
    here = machine(golden.device)
    same = before is not None and all(before.provenance[key] == value for key, value in here.items())
    model, tokenizer = reference("reference", "float32", str(golden.device))
    ids = load_text("reference", tokenizer, samples=1, tokens=PROMPT).to(golden.device)
    again = partial(measure, model, ids)
    if golden.recording:
        record(golden, before if same else None, again)
        return
    assert before is not None
    if not same:
        there = ", ".join(f"{before.provenance[key]} {key}" for key in here)
        pytest.skip(f"not comparable: times are recorded for {there}, and this is {here}")
    was = {name: from_row(row) for name, row in before.rows.items()}
    slow = longer(was, again)
    found = [change(name, was[name], now) for name, now in slow.items()]
    golden.note(found)
    assert not found, f"what takes longer than recorded, beside the same without a press:\n{table(found)}"


def record(golden: Golden, before: Baseline | None, again: Callable[[], Mapping[str, Pairs]]) -> None:
    """Two measurements, together, if they agree; what agrees with what was recorded stays as it is."""
    first, second = again(), again()
    one, other = ({name: ratio(pairs) for name, pairs in found.items()} for found in (first, second))
    if unsteady := [change(name, one[name], other[name]) for name in one if not alike(name, one[name], other[name])]:
        pytest.fail(f"times do not repeat themselves, so that they are not recorded:\n{table(unsteady)}", pytrace=False)
    now = {name: ratio([*first[name], *second[name]]) for name in first}
    was = {} if before is None else {name: from_row(row) for name, row in before.rows.items()}
    moved = [name for name in now if name not in was or not alike(name, was[name], now[name])]
    golden.note([change(name, was[name], now[name]) for name in moved if name in was])
    if moved or set(was) != set(now):
        rows = {name: to_row(now[name] if name in moved else was[name]) for name in now}
        write(Baseline(provenance(golden.device, "float32"), {}, rows), golden.path(NAME))


def change(name: str, was: Ratio, now: Ratio) -> Change:
    """For the table."""
    return Change(NAME, name, "median", round(was.median, 4), round(now.median, 4), tolerance(name, was, now))


@ALONE
def test_decoding_that_is_slower_by_three_tenths_is_caught(
    reference: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By time alone, in the ratio of the time per token."""
    model, tokenizer = reference("reference")
    ids = load_text("reference", tokenizer, samples=1, tokens=PROMPT)
    names = ["knorm budget TPOT"]
    was = ratio(timings.measure(model, ids, names)[names[0]])

    monkeypatch.setattr(timings, "generate", timings.slower_generate(0.3))
    slower = timings.longer({names[0]: was}, partial(timings.measure, model, ids))
    assert list(slower) == names
