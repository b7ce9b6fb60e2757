"""Factories of compressors: what they take, and where they come from."""

import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable
from typing import Any

from transformers import Cache


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


def parameters(factory: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a factory takes by name."""
    fixed = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}
    named = named_by(factory)
    return [one.name for one in _signature(factory) if one.name in named and one.kind not in fixed]


def needs(factory: Callable[..., Any]) -> list[str]:
    """Names of those of them that have no default."""
    named = parameters(factory)
    return [one.name for one in _signature(factory) if one.name in named and one.default is one.empty]


def _signature(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except ValueError:
        # Some builtins have no signature.
        return []


def takes(factory: Callable[..., Any], option: str) -> bool:
    """Whether a factory takes an option, by its name or as one of any."""
    if option in named_by(factory):
        return True
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return True
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


def takes_ratio(factory: Callable[..., Any]) -> bool:
    """Whether a factory takes ``keep_ratio``; caches of transformers take any option and ignore unknown ones."""
    return "keep_ratio" in named_by(factory) or (not is_cache(factory) and takes(factory, "keep_ratio"))


def is_cache(factory: Callable[..., Any]) -> bool:
    """Whether a factory is a class of transformers caches."""
    return isinstance(factory, type) and issubclass(factory, Cache)


def given(factory: Callable[..., Any], keep_ratio: float, **known: Any) -> dict[str, Any]:
    """Arguments for a factory: ``keep_ratio`` if it takes it, and those of ``known`` that it names, unless None.

    ``config`` may be another configuration, so only a cache, or a factory that needs one, is given that of the model.
    """
    named = named_by(factory)
    if not is_cache(factory) and "config" not in needs(factory):
        named.discard("config")
    found = {name: value for name, value in known.items() if value is not None and name in named}
    return found | ({"keep_ratio": keep_ratio} if takes_ratio(factory) else {})


def version_of(reference: str) -> str:
    """Package and version of the object named ``package.module:name``."""
    package = reference.partition(":")[0].partition(".")[0]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        own = next((one for one in importlib.metadata.distributions() if _contains(one, package)), None)
        return "version unknown" if own is None else f"{own.name} {own.version}"


def _contains(distribution: importlib.metadata.Distribution, package: str) -> bool:
    """Whether a distribution installed a package or module of this name.

    ``importlib.metadata.packages_distributions`` answers it for all packages, which takes a second.
    """
    if declared := distribution.read_text("top_level.txt"):
        return package in declared.split()
    record = distribution.read_text("RECORD") or ""
    return re.search(rf"^{re.escape(package)}(/.*)?\.py,", record, flags=re.MULTILINE) is not None
