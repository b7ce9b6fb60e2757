"""The comparison of times, on made-up numbers."""

from collections.abc import Collection

import pytest
from scipy.stats import ttest_ind

from regression.timings import PROCESSES, SUSPECT, Measure, alike, from_row, level, longer, slower, to_row

WAS = [1.20, 1.21, 1.19, 1.22, 1.20, 1.18, 1.21, 1.20, 1.19, 1.20]


def test_a_level_is_the_geometric_mean_and_survives_a_file() -> None:
    """A level is the geometric mean of medians, and is read from a file as it was written."""
    found = level([1.0, 4.0])
    assert found.ratio == pytest.approx(2)
    row = to_row(level(WAS))
    assert row["low"] < row["ratio"] < row["high"]  # type: ignore[operator]
    back, was = from_row(row), level(WAS)
    assert (back.mean, back.deviation) == pytest.approx((was.mean, was.deviation), rel=0.02)
    assert back.processes == was.processes == len(WAS)


@pytest.mark.parametrize("factor", [1.0, 1.005, 1.01, 1.03, 1.15])
def test_slower_is_decided_by_welchs_test(factor: float) -> None:
    """Slower is decided by Welch's test of logarithms, as computed by scipy."""
    now = [factor * ratio for ratio in (1.19, 1.22, 1.20, 1.18, 1.21)]
    found = ttest_ind(_logs(now), _logs(WAS), equal_var=False, alternative="greater")
    assert slower(level(WAS), level(now)) == (found.pvalue < 0.005)
    assert not slower(level(now), level(WAS))
    assert alike(level(WAS), level(now)) == (factor < SUSPECT)


def _logs(ratios: list[float]) -> list[float]:
    return [level([ratio, ratio]).mean for ratio in ratios]


def asked(*answers: float) -> tuple[list[Measure], list[Collection[str]]]:
    """Measure functions that return these ratios in turn, and a record of the requested names."""
    calls: list[Collection[str]] = []

    def measure(answer: float) -> Measure:
        def give(names: Collection[str]) -> dict[str, float]:
            calls.append(list(names))
            return {"a": answer, "b": 1.0}

        return give

    return [measure(answer) for answer in answers], calls


def test_only_apparent_slowdowns_are_measured_again() -> None:
    """Apparent slowdowns are measured in all processes before they are reported."""
    measures, calls = asked(1.40, 1.41, 1.39, 1.40, 1.42)
    found = longer({"a": level(WAS), "b": level([1.0, 1.01])}, measures)
    assert list(found) == ["a"]
    assert found["a"].processes == PROCESSES
    assert calls == [["a", "b"], ["a"], ["a"], ["a"], ["a"]]


def test_one_slow_process_among_others_is_not_slower() -> None:
    """One slow process is not reported, since measuring goes on until the mean is normal."""
    measures, calls = asked(1.30, 1.19, 1.40, 1.40, 1.40)
    assert longer({"a": level(WAS)}, measures) == {}
    assert len(calls) == 2
    measures, calls = asked(1.20 * SUSPECT * 0.999, 2.0)
    assert longer({"a": level(WAS)}, measures) == {}
    assert len(calls) == 1


def test_processes_that_disagree_show_no_slowdown() -> None:
    """A higher mean with a wide spread is not reported."""
    measures, calls = asked(2.0, 1.25, 1.9, 1.2, 1.21)
    assert longer({"a": level(WAS)}, measures) == {}
    assert len(calls) == PROCESSES
