"""Every law runs on every subject."""

import pytest
from conformance.subjects import SUBJECTS, Subject


@pytest.fixture(scope="session", params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A compressor under test."""
    chosen: Subject = request.param
    return chosen
