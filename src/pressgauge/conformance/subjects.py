"""Compressors under test: any, given by name, or by default all presses of the package."""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from pressgauge.conformance import oracle
from pressgauge.conformance.adapters import ADAPTERS, Adapter, adapter_of
from pressgauge.conformance.declares import Declares, read_declares


@dataclass(frozen=True, repr=False, eq=False)
class Subject:
    """A compressor under test, with its declarations.

    Attributes:
        name: name in reports.
        factory: function of ``keep_ratio`` and further options that returns a compressor.
        declares: declared deviations from the rules.
        version: package and version.
        options: default options of the factory.
    """

    name: str
    factory: Callable[..., Any]
    declares: Declares
    version: str = "version unknown"
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to the factory unless overridden."""

    def __call__(self, keep_ratio: float, **options: Any) -> Any:
        """Create a compressor, without the options that its factory does not take."""
        for option in ("prune_after", "skip_layers"):
            if not getattr(self.declares, option):
                options.pop(option, None)
        return self.factory(keep_ratio=keep_ratio, **{**self.options, **options})

    @property
    def adapter(self) -> type[Adapter]:
        """Adapter of the convention that it follows."""
        return ADAPTERS[self.declares.kind]

    @property
    def schedule(self) -> str:
        """Schedule that the laws expect of it."""
        return self.declares.schedule

    def once(self, tokens: int) -> list[int]:
        """Lengths of passes over ``tokens`` tokens in which it evicts once, after the last pass."""
        return [tokens - 1, 1] if self.schedule == "decoding" else [tokens]

    def rules(self, options: dict[str, Any], layer: int = 0) -> oracle.Rules:
        """Rules that a layer must follow under these options."""
        declares = self.declares
        given: dict[str, Any] = {"sinks": declares.sinks, "recent": declares.recent, **options}
        skipped = given.pop("skip_layers", ())
        if declares.skip_layers and layer in skipped:
            return oracle.Rules(keep_ratio=1)
        if not declares.prune_after:
            given["prune_after"] = 0
        return oracle.Rules(
            schedule=declares.schedule,
            boundary=declares.boundary,
            rounding=declares.rounding,
            recent_share=declares.recent_share,
            size=declares.target,
            **given,
        )

    def history(
        self,
        options: dict[str, Any],
        keys: Tensor,
        passes: list[int],
        layer: int,
        prompt_length: int | None = None,
    ) -> tuple[list[list[list[int]]], list[int]]:
        """Expected history of keys ``[B, K, T, D]`` under these options, from the oracle.

        Returns:
            ``evicted_at`` as nested lists, and the number of retained entries after each pass.
        """
        assert self.declares.score is not None
        rules = self.rules(options, layer)
        after: list[int] = []
        tables = []
        for row in keys.tolist():
            heads = []
            for index, head in enumerate(row):
                scores = self.declares.score(head, layer, index)
                table, after = oracle.history(
                    rules, scores, passes, prompt_length=prompt_length, exact=self.declares.exact
                )
                heads.append(table)
            tables.append(heads)
        return tables, after

    def __repr__(self) -> str:
        return self.name

    def __str__(self) -> str:
        declares = self.declares
        rule = "a rule of its own" if declares.target else f"schedule {declares.schedule}"
        return f"{self.name}, {self.version}: {self.adapter.words}, held to {rule}"


def subject_of(
    name: str,
    factory: Callable[..., Any],
    declares: Mapping[str, Any] | None = None,
    version: str = "version unknown",
    **options: Any,
) -> Subject:
    """Create the subject of a factory.

    Args:
        name: name in reports.
        factory: function of ``keep_ratio`` and further options that returns a compressor.
        declares: deviations from the rules; by default the factory's attribute ``declares``.
        version: package and version.
        options: default options of the factory.

    Raises:
        ValueError: if a declaration is invalid, or the factory returns no known kind of compressor.
    """
    given = dict(getattr(factory, "declares", {}) if declares is None else declares)
    first = Subject(name, factory, read_declares(given, given.get("kind", "cache")), version, options)
    try:
        kind = given.get("kind") or adapter_of(first(0.5, prune_after=8, skip_layers=())).kind
    except TypeError as error:
        raise ValueError(
            "the factory has to take keep_ratio, prune_after and skip_layers, or declare those that it does not take "
            f"as None ({error})"
        ) from error
    return Subject(name, factory, read_declares(given, kind), version, options)


def imported(reference: str, option: str) -> Any:
    """Import the object named ``package.module:name``.

    Args:
        reference: its name.
        option: the option of pytest that names it, for errors.

    Raises:
        pytest.UsageError: if it is not found.
    """
    module_name, _, path = reference.partition(":")
    if not module_name or not path:
        raise pytest.UsageError(f"--{option} must be package.module:name, got {reference!r}")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--{option} {reference} was not found: {error}") from None


@functools.cache
def find(reference: str) -> Subject:
    """Import the subject named ``package.module:factory``.

    Raises:
        pytest.UsageError: if it is not found, or cannot be used.
    """
    factory = imported(reference, "subject")
    try:
        return subject_of(reference, factory, version=version_of(reference))
    except Exception as error:
        raise pytest.UsageError(f"--subject {reference} cannot be used: {error}") from error


def version_of(reference: str) -> str:
    """Package and version of the object named ``package.module:name``."""
    package = reference.partition(":")[0].partition(".")[0]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package)
        return f"{names[0]} {importlib.metadata.version(names[0])}" if names else "version unknown"
