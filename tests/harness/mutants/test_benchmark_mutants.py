"""Right benchmarks hold every law for benchmarks; each broken one is found out by its law, which names the mistake."""

from collections.abc import Callable
from typing import Any

import pytest
from measuring import test_benchmarks as laws

from harness.mutants.benchmarks import RIGHT
from pressgauge.measuring.benchmarks import Benchmark

LAWS: list[Callable[[Benchmark], None]] = [law for name, law in vars(laws).items() if name.startswith("test_")]
SUBJECTS = {function.__name__: Benchmark.of(function.__name__, function) for function in RIGHT}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_right_benchmark_holds_every_law_that_applies(name: str, law: Any) -> None:
    """Whatever its style."""
    try:
        law(SUBJECTS[name])
    except pytest.skip.Exception as reason:
        assert str(reason).startswith("not applicable: ")
