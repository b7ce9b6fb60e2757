"""Provenance of results: versions of what they depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of Python, pressgauge, torch and transformers."""
    try:
        own = version("pressgauge")
    except PackageNotFoundError:
        # Run from a source tree.
        own = "not installed"
    return {
        "python": platform.python_version(),
        "pressgauge": own,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
