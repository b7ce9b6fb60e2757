"""kvq 0.1.0."""

import importlib
import sys

import pytest


def test_it_cannot_be_imported() -> None:
    """hqq is imported, and not among the requirements."""
    sys.modules.pop("kvq", None)
    with pytest.raises(ModuleNotFoundError, match="hqq"):
        importlib.import_module("kvq")
