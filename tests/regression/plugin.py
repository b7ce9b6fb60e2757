"""Table of all changes at the end of a run, and the order of tests."""

from typing import Any

import pytest

from regression.baseline import Change, table
from regression.explanations import explanations

PROPERTY = "baseline changes"
"""Name under which a test reports changes."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that workers finish together."""
    items.sort(key=lambda item: item.path.parts[-2:] != ("regression", "test_perplexity.py"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print all changes of a run in one table, with probable explanations."""
    reports = [one for reports in terminalreporter.stats.values() for one in reports]
    calls = [one for one in reports if isinstance(one, pytest.TestReport) and one.when == "call"]
    noted: list[Any] = [value for one in calls for name, value in one.user_properties if name == PROPERTY]
    found = [Change(**change) for changes in noted for change in changes]
    if not found:
        return
    terminalreporter.section("baselines")
    terminalreporter.write_line(table(found, most=40))
    for sentence in explanations(found):
        terminalreporter.write_line(sentence)
