"""Right benchmarks hold every law for benchmarks; each broken one is found out by its law, which names the mistake."""

from collections.abc import Callable
from typing import Any

import pytest
from measuring import test_benchmarks as laws

from harness.mutants.benchmarks import BROKEN, RIGHT, Broken
from pressgauge.conformance.session import Departure
from pressgauge.measuring.benchmarks import Benchmark, model_of_known_length

LAWS: list[Callable[[Benchmark], None]] = [law for name, law in vars(laws).items() if name.startswith("test_")]
SUBJECTS = {function.__name__: Benchmark.of(function.__name__, function) for function in RIGHT}


def held(law: Callable[[Benchmark], None], benchmark: Benchmark) -> bool:
    """Whether a law applies, and holds."""
    try:
        law(benchmark)
    except pytest.skip.Exception:
        return False
    return True


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_right_benchmark_holds_every_law_that_applies(name: str, law: Any) -> None:
    """Whatever its style."""
    held(law, SUBJECTS[name])


@pytest.mark.parametrize("mutant", BROKEN, ids=lambda mutant: mutant.function.__name__)
def test_the_law_kills_the_mutant_by_name_and_spares_its_twin(mutant: Broken) -> None:
    """The finding names the mistake, and a right benchmark in the same style holds the law."""
    law: Any = getattr(laws, f"test_{mutant.law}")
    hooks = dict(model_of_known_length()._forward_hooks)
    try:
        with pytest.raises(Departure) as found:
            law(Benchmark.of(mutant.function.__name__, mutant.function, mutant.declares))
    finally:
        model_of_known_length()._forward_hooks.clear()
        model_of_known_length()._forward_hooks.update(hooks)
    assert mutant.names in str(found.value)
    assert held(law, SUBJECTS[mutant.twin.__name__]), "the law does not apply to the twin"


def test_every_law_kills_a_mutant() -> None:
    """A law that no broken benchmark breaks has not shown that it can fail."""
    assert {f"test_{mutant.law}" for mutant in BROKEN} == {law.__name__ for law in LAWS}
