"""kvq 0.1.0."""

import importlib
import sys

from peers.verify.plain import crashing


def test_it_cannot_be_imported() -> None:
    """hqq is imported, and not among the requirements."""
    sys.modules.pop("kvq", None)
    with crashing(ModuleNotFoundError, match="hqq"):
        importlib.import_module("kvq")
