"""Options for ``python -m pytest --pyargs pressgauge.conformance`` and ``pressgauge.measuring``, and none for other
runs.

Every run of pytest in an environment with pressgauge imports this module, so it must be small.
"""

from pathlib import Path

import pytest

PACKAGES = ("conformance", "measuring")


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load the plugin of the laws before the command line is parsed, if laws are run."""
    if any(_package(arg) for arg in args):
        early_config.pluginmanager.import_plugin("pressgauge.conformance.plugin")
        from pressgauge.conformance.running import folder

        # The laws of a package are one folder in every kind of installation.
        args[:] = [_path(folder(package), package, arg) if (package := _package(arg)) else arg for arg in args]


def _package(name: str) -> str | None:
    return next((package for package in PACKAGES if name.startswith(f"pressgauge.{package}")), None)


def _path(folder: Path, package: str, name: str) -> str:
    """Path of ``pressgauge.conformance``, or of ``pressgauge.conformance.test_counts::test_...``."""
    module, *inside = name.split("::")
    file = module.removeprefix(f"pressgauge.{package}").strip(".")
    return "::".join([str(folder / f"{file}.py" if file else folder), *inside])
