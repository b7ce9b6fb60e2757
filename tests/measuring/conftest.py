"""What the laws for measuring code are held to: one function that was named, or by default our own."""

from typing import Any

import pytest

from pressgauge.conformance.plugin import MEASUREMENTS, option

# Heavy modules are imported only in processes that run tests, see ``pressgauge.conformance.plugin``.


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where one kind of measuring function is named, only its laws run."""
    asked = {kind for kind in MEASUREMENTS if option(config, kind)}
    if asked:
        laws = [item for item in items if item.path.parent.name in ("measuring", "laws")]
        off = [item for item in laws if not asked & set(getattr(item, "fixturenames", ()))]
        items[:] = [item for item in items if item not in off]


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every law of a kind runs on every function of that kind."""
    from pressgauge.measuring.subjects import find

    from . import ours

    for kind in MEASUREMENTS:
        if kind in metafunc.fixturenames:
            reference = option(metafunc.config, kind)
            subjects = [find(kind, reference)] if reference else ours.SUBJECTS[kind]
            metafunc.parametrize(kind, subjects, ids=_name, scope="session")
