"""Where numbers come from: the releases of what a result depends on."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Of everything that a result depends on."""
    try:
        own = version("pressgauge")
    except PackageNotFoundError:
        # It is used from where its source lies.
        own = "not installed"
    return {
        "python": platform.python_version(),
        "pressgauge": own,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
