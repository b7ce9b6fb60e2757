"""Rows of tasks: verdicts by the interval, and none where the uncompressed model fails."""

import json
from dataclasses import replace
from typing import Any

import pytest

from pressgauge import KnormPress
from pressgauge.bench.answering import Answers
from pressgauge.bench.task_row import TASK_QUANTITIES, TaskInput, TaskRow, TaskSource, make_task_row
from pressgauge.formats import DASH

SOURCE = TaskSource("a-model", "float32", "cpu", "weights", 1000)
GIVEN = TaskInput("niah", 10, 512, (470,) * 10, 34, "prompts")


def row(before: list[float], after: list[float], ratio: float = 0.5, affected: int = 10) -> TaskRow:
    """A row whose uncompressed recalls are ``before``."""
    press = KnormPress(ratio, prune_after=16)

    def of(recalls: list[float], compressing: bool) -> Answers:
        return Answers(("",) * len(recalls), tuple(recalls), 100, affected, 7, 1024, compressing)

    base = make_task_row("knorm", press, SOURCE, GIVEN, of(before, False))
    return make_task_row("knorm", press, SOURCE, GIVEN, of(after, ratio < 1), base)


@pytest.mark.parametrize(
    ("before", "after", "options", "verdict"),
    [
        ([1.0] * 10, [0.0] * 10, {}, "recalls less"),
        ([1.0] * 8 + [0.0] * 2, [1.0] * 10, {}, "no difference can be told"),
        ([0.9] * 20, [1.0] * 20, {}, "no difference can be told"),
        ([1.0] * 10, [1.0] * 10, {}, "no difference can be told"),
        ([1.0] * 10, [1.0] * 9 + [0.0], {}, "no difference can be told"),
        ([1.0] * 80 + [0.0] * 20, [1.0] * 100, {}, "recalls more"),
        ([1.0] * 10, [1.0] * 10, {"affected": 0}, "vacuous"),
        ([1.0] * 10, [1.0] * 10, {"ratio": 1.0}, "uncompressed"),
        ([1.0] + [0.0] * 7, [0.0] * 8, {}, "cannot be told: the uncompressed model recalls 12 %"),
        ([0.79] * 10, [0.0] * 10, {}, "cannot be told: the uncompressed model recalls 79 %"),
        ([0.799] * 10, [0.0] * 10, {}, "cannot be told: the uncompressed model recalls 79 %"),
        ([0.8] * 10, [0.0] * 10, {}, "recalls less"),
        ([0.0] * 10, [0.0] * 10, {"ratio": 1.0}, "cannot be told: the uncompressed model recalls 0 %"),
        ([0.0] * 10, [0.0] * 10, {"affected": 0}, "cannot be told: the uncompressed model recalls 0 %"),
    ],
)
def test_verdicts(before: list[float], after: list[float], options: dict[str, Any], verdict: str) -> None:
    """A verdict needs a ceiling of 80 % and an eviction, and is that of the interval."""
    found = row(before, after, **options)
    assert found.verdict == verdict
    assert (found.change == DASH) == (not found.judged)
    assert found.judged == verdict.startswith(("recalls", "no difference"))


def test_a_sum_of_shares_that_is_80_percent_is_not_gated() -> None:
    """Recalls of a fifth each add up to 0.8 in spite of rounding."""
    assert not row([0.2] * 10 + [1.0] * 30, [0.0] * 40).gated
    assert not row([0.7, 0.9] * 5, [0.0] * 10).gated


def test_the_change_is_in_points_with_its_interval() -> None:
    found = row([1.0] * 20, [0.0] * 12 + [1.0] * 8)
    assert found.recall_change == pytest.approx(-0.6)
    assert found.change == "-60 [-80, -29]"


def test_a_row_survives_json() -> None:
    found = row([1.0] * 10, [0.5] * 10)
    data = json.loads(json.dumps(found.as_dict()))
    assert TaskRow.from_dict(data) == found
    assert data["verdict"] == found.verdict
    assert set(TASK_QUANTITIES) <= set(data)
    assert replace(found, recall=0.25) != found
