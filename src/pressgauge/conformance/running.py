"""Location of the laws, and running them on a compressor."""

import sys
from collections.abc import Sequence
from pathlib import Path


def folder() -> Path:
    """Folder of the laws: next to this file in an installed wheel, under ``tests`` in a clone.

    Raises:
        ValueError: if there is none, for example if only ``src`` was copied.
    """
    installed, cloned = Path(__file__).parent / "laws", Path(__file__).parents[3] / "tests" / "conformance"
    for place in (installed, cloned):
        if (place / "test_counts.py").is_file():
            return place
    raise ValueError(
        f"the laws are neither in {installed} nor in {cloned}: install pressgauge from a clone or a wheel, not from a "
        "copy of its src"
    )


def run(subject: str, options: Sequence[str] = ()) -> int:
    """Run the laws on a compressor with pytest, and return pytest's exit code.

    Args:
        subject: ``package.module:factory``.
        options: further arguments of pytest.

    Raises:
        ValueError: if the laws are not found.
    """
    import pytest

    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        # As with `python -m pytest`, modules in the working directory can be imported.
        sys.path.insert(0, str(Path.cwd()))
    plugins = ["-p", "pressgauge.conformance.plugin", "-p", "no:cacheprovider", "-rN"]
    return int(pytest.main([str(folder()), *plugins, "--pressgauge-subject", subject, *options]))
