"""The compressors under test: any, given by name, or by default all presses of the package under all schedules."""

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
    """A compressor, and what the laws have to know about it."""

    name: str
    factory: Callable[..., Any]
    declares: Declares
    version: str = "version unknown"
    options: dict[str, Any] = field(default_factory=dict)
    """Given to the factory unless something else is."""

    def __call__(self, keep_ratio: float, **options: Any) -> Any:
        """A compressor with these options; those that it does not take are left out."""
        for option in ("prune_after", "skip_layers"):
            if not getattr(self.declares, option):
                options.pop(option, None)
        return self.factory(keep_ratio=keep_ratio, **{**self.options, **options})

    @property
    def adapter(self) -> type[Adapter]:
        """The convention that it follows."""
        return ADAPTERS[self.declares.kind]

    @property
    def schedule(self) -> str:
        """The schedule that it is held to."""
        return self.declares.schedule

    def once(self, tokens: int) -> list[int]:
        """Passes of so many tokens in which it prunes once, after the last."""
        return [tokens - 1, 1] if self.schedule == "decoding" else [tokens]

    def rules(self, options: dict[str, Any], layer: int = 0) -> oracle.Rules:
        """The rules that a layer must follow under these options."""
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
        """What the oracle says of keys ``[B, K, T, D]`` under these options, whatever the subject makes of them:
        ``evicted_at`` as nested lists, and the number held after each pass."""
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
    """The subject that a factory makes.

    Args:
        name: what it is called in reports.
        factory: ``keep_ratio`` and further options to a compressor.
        declares: what it does otherwise than the rules; what the factory carries as ``declares``, if not given.
        version: of the package that it is from.
        options: given to the factory every time, unless something else is.

    Raises:
        ValueError: if what it declares or returns makes no sense here.
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


@functools.cache
def find(reference: str) -> Subject:
    """The subject named ``package.module:factory``.

    Raises:
        pytest.UsageError: if there is none, or it makes no sense here.
    """
    module_name, _, path = reference.partition(":")
    if not module_name or not path:
        raise pytest.UsageError(f"--subject must be package.module:factory, got {reference!r}")
    try:
        factory: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--subject {reference} was not found: {error}") from None
    try:
        return subject_of(reference, factory, version=_version(module_name))
    except Exception as error:
        raise pytest.UsageError(f"--subject {reference} cannot be used: {error}") from error


def _version(module_name: str) -> str:
    package = module_name.partition(".")[0]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package)
        return f"{names[0]} {importlib.metadata.version(names[0])}" if names else "version unknown"
