"""Compressors under test: any, given by name, or by default all presses of the package."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge import references
from pressgauge.conformance import architectures, oracle
from pressgauge.conformance.declares import Declares, read_declares
from pressgauge.conformance.outcomes import DECLINES, Refused, refusals
from pressgauge.conformance.precision import in_dtype
from pressgauge.conventions.adapter import Adapter
from pressgauge.conventions.adapters import ADAPTERS, adapter_of
from pressgauge.conventions.factories import given, takes, takes_ratio, version_of
from pressgauge.models import interface

FARTHEST = 1 << 17
"""Tokens up to which a target is asked whether it evicts."""


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

    def __call__(self, keep_ratio: float, model: Any = None, prompt_length: int | None = None, **options: Any) -> Any:
        """Create a compressor, without the options that its factory does not take.

        Args:
            keep_ratio: ratio of retained entries.
            model: the model that it will compress; passed to a factory that names ``model``, ``dtype`` or ``device``,
                or needs its ``config``.
            prompt_length: tokens of the first pass; passed to a factory that names it.
            options: further options.

        Raises:
            Refused: if the factory declines these options.
        """
        for option in ("prune_after", "skip_layers"):
            if not getattr(self.declares, option):
                options.pop(option, None)
        known: dict[str, Any] = {"prompt_length": prompt_length}
        if model is not None:
            own = self.shown(model)
            known |= {"model": own, "config": own.config, "dtype": own.dtype, "device": own.device}
            layers = enumerate(interface.layer_classes(own.config))
            linear = {index for index, layer in layers if not interface.caches_keys(layer)}
            if linear and self.declares.skip_layers:
                # A layer without keys has nothing to evict.
                options["skip_layers"] = tuple(sorted(linear.union(options.get("skip_layers", ()))))
        with refusals(*DECLINES):
            arguments = given(self.factory, keep_ratio, **known)
            create = functools.partial(self.factory, **{**arguments, **self.options, **options})
            return create if self.adapter.made_anew else create()

    @functools.cached_property
    def evicts_from(self) -> int:
        """Number of tokens from which on the declared target evicts something; 0 without one, or if it never does."""
        target = self.declares.target
        return 0 if target is None else next((seen for seen in range(1, FARTHEST) if target(seen, seen) < seen), 0)

    @property
    def adapter(self) -> type[Adapter]:
        """Adapter of the convention that it follows."""
        return ADAPTERS[self.declares.kind]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the laws run."""
        return self.declares.dtypes[0] if self.declares.dtypes else torch.float64

    def shown(self, model: Any) -> Any:
        """The model, or a copy in the first declared dtype if its own is not declared."""
        declared = self.declares.dtypes
        return in_dtype(model, self.dtype) if declared and model.dtype not in declared else model

    def model_of(self, model: Any) -> Any:
        """The model that runs: ``shown`` for a subject that works on the model itself, else the model."""
        return self.shown(model) if self.adapter.sees_model else model

    @property
    def model_dtype(self) -> torch.dtype:
        """Dtype of the models that run."""
        return self.dtype if self.adapter.sees_model else torch.float64

    @property
    def entries_dtype(self) -> torch.dtype | None:
        """Dtype in which a float64 model passes its entries; None for float64."""
        return None if self.adapter.sees_model or not self.declares.dtypes else self.dtype

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


def _filled(given: Mapping[str, Any], factory: Callable[..., Any]) -> dict[str, Any]:
    """Declarations of quantised entries, with what the signature of the factory says: no eviction without an option of
    it."""
    found = dict(given)
    if found.get("entries") == "quantised":
        found |= {option: None for option in ("prune_after", "skip_layers") if not takes(factory, option)}
        if not takes_ratio(factory):
            found.setdefault("target", lambda seen, held: held)
    return found


def subject_of(
    name: str,
    factory: Callable[..., Any],
    declares: Mapping[str, Any] | Callable[..., Mapping[str, Any]] | None = None,
    version: str = "version unknown",
    **options: Any,
) -> Subject:
    """Create the subject of a factory.

    Args:
        name: name in reports.
        factory: function of ``keep_ratio`` and further options that returns a compressor.
        declares: deviations from the rules, or a function of ``options`` that returns them; by default the factory's
            attribute ``declares``.
        version: package and version.
        options: default options of the factory.

    Raises:
        ValueError: if a declaration is invalid, or the factory returns no known kind of compressor.
    """
    declared: Any = getattr(factory, "declares", {}) if declares is None else declares
    given = _filled(declared(**options) if callable(declared) else declared, factory)
    first = Subject(name, factory, read_declares(given, given.get("kind", "cache")), version, options)
    try:
        kind = given.get("kind") or adapter_of(_example(first)).kind
    except TypeError as error:
        raise ValueError(
            "the factory has to take keep_ratio, prune_after and skip_layers, or declare those that it does not take "
            f"as None ({error})"
        ) from error
    return Subject(name, factory, read_declares(given, kind), version, options)


def _example(subject: Subject) -> Any:
    """A compressor, to look at its kind; at a ratio of 1 if the factory declines others."""
    options: dict[str, Any] = {"model": architectures.shared("llama"), "prompt_length": 16}
    try:
        return subject(0.5, prune_after=8, skip_layers=(), **options)
    except Refused:
        return subject(1.0, prune_after=8, skip_layers=(), **options)


def varied(options: Any) -> list[dict[str, Any]]:
    """All first values, and each further value of one option with the first values of the others.

    Args:
        options: values of each option, such as ``{"bits": [2, 4, 8]}``.

    Raises:
        ValueError: if it is no mapping to values, or an option has none.
    """
    right = isinstance(options, Mapping) and all(isinstance(some, list | tuple) and some for some in options.values())
    if not right:
        raise ValueError(f"options must map each option of the factory to a list of its values, got {options!r}")
    first = {name: some[0] for name, some in options.items()}
    return [first, *({**first, name: one} for name, some in options.items() for one in some[1:])]


def subjects_of(name: str, factory: Callable[..., Any], version: str = "version unknown") -> list[Subject]:
    """Subjects of a factory: one, or one for each value in its attribute ``options``, with that value in its name.

    Raises:
        ValueError: if a declaration or an option is invalid, or the factory returns no known kind of compressor.
    """
    if not (options := getattr(factory, "options", None)):
        return [subject_of(name, factory, version=version)]
    return [
        subject_of(
            f"{name}({', '.join(f'{option}={value}' for option, value in one.items())})",
            factory,
            version=version,
            **one,
        )
        for one in varied(options)
    ]


def imported(reference: str, option: str) -> Any:
    """Import the object named ``package.module:name``.

    Args:
        reference: its name.
        option: the option of pytest that names it, for errors.

    Raises:
        pytest.UsageError: if it is not found.
    """
    try:
        named = references.parts(reference)
    except ValueError as error:
        raise pytest.UsageError(f"--{option} {error}") from None
    try:
        return references.imported(*named)
    except (ModuleNotFoundError, AttributeError) as error:
        raise pytest.UsageError(f"--{option} {reference} was not found: {error}") from None
    except Exception as error:
        # The module is the user's, and so is what it raises.
        raise pytest.UsageError(f"--{option} {reference} could not be imported: {references.why(error)}") from error


@functools.cache
def find(reference: str) -> list[Subject]:
    """Import the factory named ``package.module:factory``: its subjects, one for each variant of its options.

    Raises:
        pytest.UsageError: if it is not found, or cannot be used.
    """
    factory = imported(reference, "subject")
    try:
        return subjects_of(reference, factory, version=version_of(reference))
    except SystemExit as error:
        raise pytest.UsageError(f"--subject {reference} cannot be used: it exits with code {error.code!r}") from error
    except Exception as error:
        raise pytest.UsageError(f"--subject {reference} cannot be used: {error}") from error
