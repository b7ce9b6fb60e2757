"""Location of the laws, and running them on a compressor."""

from collections.abc import Sequence
from pathlib import Path

from pressgauge.references import look_here

FOLDERS = {"conformance": "test_counts.py", "measuring": "test_evaluators.py"}
"""Packages whose laws are tests, and one file of each."""


def folder(package: str = "conformance") -> Path:
    """Folder of a package's laws: next to the package in an installed wheel, under ``tests`` in a clone.

    Raises:
        ValueError: if there is none, for example if only ``src`` was copied.
    """
    installed = Path(__file__).parents[1] / package / "laws"
    cloned = Path(__file__).parents[3] / "tests" / package
    for place in (installed, cloned):
        if (place / FOLDERS[package]).is_file():
            return place
    raise ValueError(
        f"the laws are neither in {installed} nor in {cloned}: install pressgauge from a clone or a wheel, not from a "
        "copy of its src"
    )


def run(kind: str, subject: str, options: Sequence[str] = ()) -> int:
    """Run the laws on a subject with pytest, and return pytest's exit code.

    Args:
        kind: ``subject`` for a compressor, or a kind of measuring function: ``evaluator``, ``benchmark``, ``memory``.
        subject: ``package.module:name``.
        options: further arguments of pytest.

    Raises:
        ValueError: if the laws are not found.
    """
    import pytest

    look_here()
    plugins = ["-p", "pressgauge.conformance.plugin", "-p", "no:cacheprovider", "-rN"]
    laws = folder("conformance" if kind == "subject" else "measuring")
    return int(pytest.main([str(laws), *plugins, f"--pressgauge-{kind}", subject, *options]))
