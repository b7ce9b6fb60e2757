"""Options for ``python -m pytest --pyargs pressgauge.conformance`` and ``pressgauge.measuring``, and nothing at all for
any other run of pytest.

Every run in an environment that has pressgauge imports this module, so that it must stay next to nothing.
"""

from pathlib import Path

import pytest

PACKAGES = ("conformance", "measuring")


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load the plugin of the laws before the command line is read, if that is what is to be run."""
    if any(_package(arg) for arg in args):
        early_config.pluginmanager.import_plugin("pressgauge.conformance.plugin")
        from pressgauge.conformance.running import folder

        # Wherever they are installed, the laws of a package are one folder.
        args[:] = [_path(folder(package), package, arg) if (package := _package(arg)) else arg for arg in args]


def _package(name: str) -> str | None:
    return next((package for package in PACKAGES if name.startswith(f"pressgauge.{package}")), None)


def _path(folder: Path, package: str, name: str) -> str:
    """Where ``pressgauge.conformance``, or ``pressgauge.conformance.test_counts::test_...``, is."""
    module, *inside = name.split("::")
    file = module.removeprefix(f"pressgauge.{package}").strip(".")
    return "::".join([str(folder / f"{file}.py" if file else folder), *inside])
