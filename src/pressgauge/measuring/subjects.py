"""Measuring functions under audit, given by name, and their declarations."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

import pytest

from pressgauge.conformance.subjects import imported
from pressgauge.conventions.factories import version_of

D = TypeVar("D")

KINDS = {"evaluator": "evaluators:Evaluator", "benchmark": "benchmarks:Benchmark", "memory": "footprints:Footprint"}
"""Module and class of each kind of measuring function."""


@dataclass(frozen=True, repr=False, eq=False)
class Measurement:
    """A measuring function under audit.

    Attributes:
        name: name in reports.
        function: the function.
        declares: its validated declarations, of the class ``Declares`` of its kind.
        version: package and version.
    """

    kind: ClassVar[str]
    """One of ``KINDS``; the name under which its laws take it."""
    name: str
    function: Callable[..., Any]
    declares: Any
    version: str = "version unknown"

    @classmethod
    def declared(cls, given: Mapping[str, Any]) -> Any:
        """Validated declarations.

        Raises:
            ValueError: for an unknown name or value.
        """
        raise NotImplementedError

    @classmethod
    def of(
        cls,
        name: str,
        function: Callable[..., Any],
        declares: Mapping[str, Any] | None = None,
        version: str = "version unknown",
    ) -> Self:
        """The subject of a function.

        Args:
            name: name in reports.
            function: the function.
            declares: its declarations; by default its attribute ``declares``.
            version: package and version.

        Raises:
            ValueError: if a declaration is invalid.
        """
        given = getattr(function, "declares", {}) if declares is None else declares
        return cls(name, function, cls.declared(given), version)

    def taken(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``options`` that the function takes as keyword arguments."""
        parameters = inspect.signature(self.function).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return dict(options)
        names = {parameter.name for parameter in parameters}
        return {name: value for name, value in options.items() if name in names}

    def __repr__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return f"{self.name}, {self.version}"


def read_declares(declares: type[D], given: Mapping[str, Any], choices: Mapping[str, tuple[object, ...]]) -> D:
    """An instance of a dataclass of declarations.

    Args:
        declares: the dataclass.
        given: declarations by name.
        choices: the allowed values of declarations with a fixed choice.

    Raises:
        ValueError: for an unknown name or value.
    """
    known = [field.name for field in fields(declares)]  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"declares has no {name!r}: known are {', '.join(known)}")
        if name in choices and value not in choices[name]:
            allowed = ", ".join(map(repr, choices[name]))
            raise ValueError(f"declares {name} must be one of {allowed}, got {value!r}")
    return declares(**given)


def attributes_of(result: Any) -> Any:
    """The fields of a named tuple or the attributes of an object, as a mapping; else the result itself."""
    if isinstance(result, Mapping):
        return result
    return result._asdict() if hasattr(result, "_asdict") else getattr(result, "__dict__", result)


@functools.cache
def find(kind: str, reference: str) -> Measurement:
    """Import the measuring function named ``package.module:function``.

    Args:
        kind: one of ``KINDS``.
        reference: its name.

    Raises:
        pytest.UsageError: if it is not found, or cannot be used.
    """
    function = imported(reference, kind)
    module, _, name = KINDS[kind].partition(":")
    subject: type[Measurement] = getattr(importlib.import_module(f"pressgauge.measuring.{module}"), name)
    if not callable(function):
        raise pytest.UsageError(f"--{kind} {reference} must be a function, got {function!r}")
    try:
        return subject.of(reference, function, version=version_of(reference))
    except SystemExit as error:
        raise pytest.UsageError(f"--{kind} {reference} cannot be used: it exits with code {error.code!r}") from error
    except Exception as error:
        raise pytest.UsageError(f"--{kind} {reference} cannot be used: {error}") from error
