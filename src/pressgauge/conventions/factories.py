"""Factories of compressors: what they take, and where they come from."""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any


def named_by(factory: Callable[..., Any]) -> set[str]:
    """Names of the parameters of a factory, a class or a partial, without those that a partial has fixed."""
    try:
        names = set(inspect.signature(factory).parameters)
    except ValueError:
        # Some builtins have no signature.
        return set()
    while isinstance(factory, functools.partial):
        names -= set(factory.keywords)
        factory = factory.func
    return names


def takes(factory: Callable[..., Any], option: str) -> bool:
    """Whether a factory takes an option, by its name or as one of any."""
    if option in named_by(factory):
        return True
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return True
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


def given(factory: Callable[..., Any], keep_ratio: float, **known: Any) -> dict[str, Any]:
    """Arguments for a factory: ``keep_ratio`` if it takes it, and those of ``known`` that it names, unless None."""
    named = named_by(factory)
    found = {name: value for name, value in known.items() if value is not None and name in named}
    return found | ({"keep_ratio": keep_ratio} if takes(factory, "keep_ratio") else {})


def version_of(reference: str) -> str:
    """Package and version of the object named ``package.module:name``."""
    package = reference.partition(":")[0].partition(".")[0]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package)
        return f"{names[0]} {importlib.metadata.version(names[0])}" if names else "version unknown"
