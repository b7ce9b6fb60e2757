"""Objects by name: ``package.module:name``."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any


def look_here() -> None:
    """Let modules in the working directory be imported, as ``python -m`` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def parts(reference: str) -> tuple[str, str]:
    """Module and path within it of the object named ``package.module:name``.

    Raises:
        ValueError: if it is not such a name.
    """
    module, _, path = reference.partition(":")
    if not module or not path:
        raise ValueError(f"must be package.module:name, got {reference!r}")
    return module, path


def imported(module: str, path: str) -> Any:
    """Import the object at a path within a module; errors are those of the import and of the attributes.

    Raises:
        ImportError: also if the module exits, or raises another exception that is no ``Exception``.
    """
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ImportError(
            f"{module} must be importable without an exit, got {type(error).__name__}: {error}"
        ) from error


def why(error: BaseException) -> str:
    """Class and message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def find(reference: str) -> Any:
    """Import the object named ``package.module:name``, from the working directory, too.

    Raises:
        ValueError: if it is not found, or its module fails.
    """
    named = parts(reference)
    look_here()
    try:
        return imported(*named)
    except Exception as error:
        raise ValueError(f"{reference} was not found: {why(error)}") from error
