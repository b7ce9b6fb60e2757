"""Options for ``python -m pytest --pyargs pressgauge.conformance``, and nothing at all for any other run of pytest.

Every run in an environment that has pressgauge imports this module, so that it must stay next to nothing.
"""

import pytest


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load the plugin of the conformance suite before the command line is read, if that is what is to be run."""
    if any(arg.startswith("pressgauge.conformance") for arg in args):
        early_config.pluginmanager.import_plugin("pressgauge.conformance.plugin")
