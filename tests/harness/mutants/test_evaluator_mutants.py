"""Right evaluators hold every law; each broken one is killed by its law, which names the mistake."""

import inspect
from collections.abc import Callable

import pytest
from measuring import test_evaluators

from harness.mutants.evaluators import EVALUATORS, EvaluatorMutant
from harness.mutants.right_evaluators import RIGHT
from pressgauge.conformance.session import Refused
from pressgauge.measuring.evaluators import Evaluator

LAWS = {
    name: law for name, law in vars(test_evaluators).items() if name.startswith("test_") and inspect.isfunction(law)
}


def judged(law: Callable[[Evaluator], None], evaluator: Evaluator) -> tuple[str, str]:
    """``held``, ``broken`` or ``not applicable``, with the finding or the reason."""
    try:
        law(evaluator)
    except (pytest.skip.Exception, Refused) as reason:
        return "not applicable", str(reason)
    except AssertionError as finding:
        return "broken", str(finding)
    return "held", ""


@pytest.mark.parametrize("evaluator", RIGHT, ids=str)
def test_a_right_evaluator_holds_every_law(evaluator: Evaluator) -> None:
    """Whatever its style, it breaks none, and several apply."""
    found = {name: judged(law, evaluator) for name, law in LAWS.items()}
    assert {name: what for name, what in found.items() if what[0] == "broken"} == {}
    assert sum(what == "held" for what, _ in found.values()) >= 6


@pytest.mark.parametrize("mutant", EVALUATORS, ids=lambda mutant: mutant.id)
def test_the_law_kills_the_evaluator_and_names_the_mistake(mutant: EvaluatorMutant) -> None:
    """By its own finding, which says what was done."""
    outcome, finding = judged(mutant.law, mutant.evaluator)
    assert outcome == "broken", finding
    assert mutant.says in finding
    assert "\n" not in finding


@pytest.mark.parametrize("mutant", EVALUATORS, ids=lambda mutant: mutant.id)
def test_its_sound_twin_holds_that_law(mutant: EvaluatorMutant) -> None:
    """So that the law finds the mistake and not the style."""
    assert judged(mutant.law, mutant.twin)[0] == "held"
