"""A pytest plugin for mutation runs, in which nearly every run of the tests is to fail: the sooner the better.

What fails is not shrunk to a simple example, and the tests of single files come before those of whole caches.
"""

import pytest
from hypothesis import Phase, settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    settings.register_profile("fast_first", settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("fast_first")
    items.sort(key=lambda item: ("properties" in item.path.parts, is_drawn(item)))


def is_drawn(item: pytest.Item) -> bool:
    """Whether Hypothesis draws what the test is given."""
    return hasattr(getattr(item, "obj", None), "hypothesis")
