"""Parametrisation of the properties: presses and schedules."""

from itertools import cycle

import pytest

from conformance.ours import SUBJECTS
from pressgauge.conformance.subjects import Subject
from pressgauge.presses import PRESSES

# One press under all schedules, and each other press under one; the laws cover all combinations.
OTHERS = [name for name, press in PRESSES.items() if name != "knorm" and not press.needs_queries]
SOME = [
    *(f"knorm-{schedule}" for schedule in ("budget", "step", "prefill")),
    *(f"{name}-{schedule}" for name, schedule in zip(OTHERS, cycle(("step", "prefill", "budget")))),
]


@pytest.fixture(scope="session", params=[s for s in SUBJECTS if s.name in SOME], ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A press under a schedule."""
    chosen: Subject = request.param
    return chosen
