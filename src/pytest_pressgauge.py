"""Options for ``python -m pytest --pyargs pressgauge.conformance``, and nothing at all for any other run of pytest.

Every run in an environment that has pressgauge imports this module, so that it must stay next to nothing.
"""

from pathlib import Path

import pytest


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load the plugin of the conformance suite before the command line is read, if that is what is to be run."""
    if any(arg.startswith("pressgauge.conformance") for arg in args):
        early_config.pluginmanager.import_plugin("pressgauge.conformance.plugin")
        from pressgauge.conformance.running import folder

        # Wherever they are installed, the laws are one folder.
        args[:] = [_path(folder(), arg) if arg.startswith("pressgauge.conformance") else arg for arg in args]


def _path(folder: Path, name: str) -> str:
    """Where ``pressgauge.conformance``, or ``pressgauge.conformance.test_counts::test_...``, is."""
    module, *inside = name.split("::")
    file = module.removeprefix("pressgauge.conformance").strip(".")
    return "::".join([str(folder / f"{file}.py" if file else folder), *inside])
