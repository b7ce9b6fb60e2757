"""What these tests are held to."""

import pytest
from conformance.ours import SUBJECTS

from pressgauge.conformance.subjects import Subject

# Each press and each schedule, twice: all twelve are held to the laws of the conformance suite.
SOME = ["knorm-budget", "knorm-step", "knorm-prefill", "streaming-llm-step", "random-prefill", "keydiff-budget"]


@pytest.fixture(scope="session", params=[s for s in SUBJECTS if s.name in SOME], ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A press under a schedule."""
    chosen: Subject = request.param
    return chosen
