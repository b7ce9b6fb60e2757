"""The compressors under test: any, given by name, or by default all presses of the package under all schedules."""

import functools
import importlib
import importlib.metadata
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from torch import Tensor

from pressgauge import (
    H2OPress,
    KeyDiffPress,
    KnormPress,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)

from . import oracle
from .declares import Declares, read_declares


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
        what = {
            "cache": "a transformers cache",
            "context": "a context manager around a model",
            "function": "a function over the whole cache",
        }[declares.kind]
        rule = "a rule of its own" if declares.target else f"schedule {declares.schedule}"
        return f"{self.name}, {self.version}: {what}, held to {rule}"


def kind_of(compressor: object) -> str:
    """Which of the three conventions an object follows.

    Raises:
        ValueError: if it follows none.
    """
    if isinstance(compressor, types.FunctionType | types.MethodType | types.BuiltinFunctionType | functools.partial):
        return "function"
    if callable(getattr(compressor, "cache", None)):
        return "cache"
    if callable(compressor):
        return "context"
    raise ValueError(
        f"the factory returned a {type(compressor).__name__}: it has to return an object with .cache(config), one that "
        "is used as `with obj(model):`, or a function compress(layers) -> layers"
    )


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
        kind = given.get("kind") or kind_of(first(0.5, prune_after=8, skip_layers=()))
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


NAMES: dict[Any, str] = {
    KnormPress: "knorm",
    StreamingLLMPress: "streaming-llm",
    RandomPress: "random",
    KeyDiffPress: "keydiff",
    H2OPress: "h2o",
    SnapKVPress: "snapkv",
    TOVAPress: "tova",
}


def ours(
    kind: Callable[..., Any], schedule: str, score: Any, exact: bool = False, sinks: int = 0, **options: Any
) -> Subject:
    """A press of the package under a schedule, with these options unless others are given."""
    declares = {
        "kind": "context",
        "schedule": schedule,
        "takes": ("sinks", "recent") if schedule == "prefill" else ("sinks", "recent", "interval"),
        "score": score,
        "exact": exact,
        "sinks": sinks,
        "recent": options.get("recent", 0),
        "recent_share": getattr(kind, "recent_share", 0.0),
        "trends": score in ("knorm", "position") and schedule != "step",
    }
    return subject_of(f"{NAMES.get(kind, kind.__name__)}-{schedule}", kind, declares, schedule=schedule, **options)


SUBJECTS = [
    subject
    for schedule in ("budget", "step", "prefill")
    for subject in (
        ours(KnormPress, schedule, "knorm"),
        ours(StreamingLLMPress, schedule, "position", exact=True, sinks=4),
        ours(RandomPress, schedule, lambda keys, layer, head: oracle.random_scores(0, layer, head), exact=True),
        ours(KeyDiffPress, schedule, "keydiff"),
    )
]
"""Those whose scores are of keys and positions alone."""

_ALL = not settings().derandomize
"""Whether examples are drawn at random, as in nightly runs, which take their time."""

VOTING = [
    subject
    for schedule in ("budget", "prefill", "step")
    for subject in (
        ours(H2OPress, schedule, "h2o"),
        ours(SnapKVPress, schedule, "snapkv", recent=2),
        ours(TOVAPress, schedule, "tova"),
    )
]
"""Those whose scores come from attention."""


def _plain(kind: Callable[..., Any], schedule: str, score: Any, sinks: int = 0) -> Subject:
    """A press as a plain cache."""
    declares = {"schedule": schedule, "score": score, "sinks": sinks}
    return subject_of(f"plain-{kind.__name__}-{schedule}", kind, declares, schedule=schedule)


def compress_each(keep_ratio: float, **options: Any) -> Callable[..., Any]:
    """``KnormPress.compress`` as a function over the whole cache."""
    press = KnormPress(keep_ratio, schedule="step", **options)

    def compress(layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [press.compress(keys, values, layer=layer) for layer, (keys, values) in enumerate(layers)]

    return compress


@functools.cache
def ours_by_default() -> list[Subject]:
    """All presses, attached, under all schedules (those that go by attention under their own, unless examples are drawn
    at random); and one or two in each of the other conventions."""
    return [
        *SUBJECTS,
        # What a schedule does with scores is the same for all.
        *(subject for subject in VOTING if _ALL or subject.name in ("h2o-budget", "snapkv-prefill", "tova-budget")),
        _plain(KnormPress, "budget", "knorm"),
        _plain(KnormPress, "step", "knorm"),
        _plain(StreamingLLMPress, "prefill", "position", sinks=4),
        subject_of("compress-function", compress_each, {"score": "knorm"}),
    ]
