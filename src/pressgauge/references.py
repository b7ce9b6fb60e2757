"""Objects by name: ``package.module:name``, from the working directory, too."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any


def look_here() -> None:
    """Let modules in the working directory be imported, as ``python -m`` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def find(reference: str) -> Any:
    """Import the object named ``package.module:name``.

    Raises:
        ValueError: if it is not found, or its module fails.
    """
    module, _, path = reference.partition(":")
    if not module or not path:
        raise ValueError(f"must be package.module:name, got {reference!r}")
    look_here()
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except Exception as error:
        raise ValueError(f"{reference} was not found: {type(error).__name__}: {error}") from error
