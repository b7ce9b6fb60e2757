"""pytest plugin for mutation runs, in which nearly every run fails, so failures should come early.

Failing examples are not shrunk, and unit tests run before tests of whole caches.
"""

import pytest
from hypothesis import Phase, settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    settings.register_profile("fast_first", settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("fast_first")
    items.sort(key=lambda item: ("properties" in item.path.parts, is_drawn(item)))


def is_drawn(item: pytest.Item) -> bool:
    """Whether a test uses Hypothesis."""
    return hasattr(getattr(item, "obj", None), "hypothesis")
