"""Declared deviations of a subject from the rules. Undeclared deviations are findings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from pressgauge.conformance import oracle
from pressgauge.conformance.precision import DTYPES
from pressgauge.conformance.quantisation import check_quantisation
from pressgauge.conformance.reading import Reader, reader_of
from pressgauge.conventions.adapters import ADAPTERS

CHOICES: dict[str, tuple[object, ...]] = {
    "kind": tuple(ADAPTERS),
    "schedule": ("budget", "step", "prefill", "decoding"),
    "prune_after": (None,),
    "skip_layers": (None,),
    "order": ("any",),
    "boundary": (">", ">="),
    "ties": ("earlier", "any"),
    "held": ("per-head",),
    "layers": ("joint",),
    "entries": ("altered", "quantised"),
    "positions": ("rerotated", "caller"),
    "padding": (None,),
    "storage": ("any",),
    "nan": ("any",),
    "trends": (True, False),
    "attends": ("after eviction",),
    "simulated": (True, False),
    "unbiased": (True, False),
}
"""Allowed values of declarations with a fixed choice."""

SCORES: dict[str, Callable[[list[list[float]]], oracle.Scores]] = {
    "knorm": oracle.norm_scores,
    "position": oracle.position_scores,
    "keydiff": oracle.keydiff_scores,
}


REPORTS = ("bytes", "ratio", "saved")
"""Figures of memory that a package may report."""

VOTES: dict[str, type[oracle.Voter]] = {
    "h2o": oracle.Accumulated,
    "snapkv": oracle.Window,
    "tova": oracle.Last,
}
"""Oracles of attention-based scores."""


@dataclass(frozen=True)
class Declares:
    """Declarations of a subject.

    Attributes:
        kind: ``cache`` for an object with ``.cache(config)``; ``context`` for use as ``with obj(model):``; ``function``
            for ``compress(layers) -> layers``. By default inferred from the factory's result.
        schedule: ``budget``, ``step`` or ``prefill``; or ``decoding``, which is ``budget`` without eviction from the
            prompt's pass.
        target: ``(seen, held) -> held`` after a pass, for a rule other than these schedules.
        prune_after, skip_layers: False if the factory takes no such option (declared as None).
        takes: further options of the factory, of ``sinks``, ``recent`` and ``interval``.
        sinks, recent: number of first and last tokens protected by default.
        recent_share: minimum share of the newest tokens among retained entries, rounded down.
        boundary: ``>``, or ``>=`` if a layer with exactly ``prune_after`` entries may evict.
        rounding: ``ceil``, ``floor``, ``float-ceil``, or a function of ratio and count.
        order: ``positions``, or ``any`` if entries may be stored in any order.
        ties: ``earlier``, or ``any`` if equal scores may be ranked in any order.
        held: ``per-layer``, or ``per-head`` if the heads of a layer may retain different numbers of entries, padded
            with zeros.
        layers: ``own``, or ``joint`` if what a layer evicts depends on the keys of other layers.
        entries: ``kept``; ``quantised`` if they are read back with a quantisation error; or ``altered`` if stored
            entries differ from those passed in otherwise: merged, re-rotated.
        positions: ``kept``; ``caller`` if the caller must supply true positions; ``rerotated`` if keys get new
            positions after evictions.
        score: ``knorm``, ``position``, ``keydiff``, or a function ``(keys, layer, head)`` that returns a function from
            retained positions to their scores; or ``h2o``, ``snapkv`` or ``tova``, which score by attention; None if
            the subject does not declare which entries it retains.
        votes: oracle of an attention-based score.
        exact: whether scores are integers.
        padding: False if padded rows are not supported (declared as None).
        storage: ``held``, or ``any`` if storage of evicted entries may be freed later.
        nan: ``worst``, or ``any`` if keys with NaN may be ranked anywhere.
        reports: what the package reports about its memory: ``bytes`` kept; ``ratio``, the uncompressed size over it;
            ``saved``, the saved share of the uncompressed size; each a function ``(cache, compressor)``.
        trends: whether perplexity must not fall with the keep ratio, on a reference model.
        bits: bits of a code, of quantised entries; here and below, a pair for keys and values, or one for both.
        group: number of numbers that share a scale, along the axis.
        axis: ``token`` if a scale is one of channels of a token, ``channel`` if it is one of tokens of a channel.
        residual: number of newest tokens that are exact at every moment.
        ratio: bytes of 16-bit entries to bytes held.
        error: root mean square of an entry's relative error, for normally distributed entries.
        simulated: whether entries are quantised and dequantised on their way in, and stored at full size.
        unbiased: whether inner products with entries are unbiased.
        read: ``(cache, index) -> keys, values``, the entries of a layer ``[B, K, N, D]``, dequantised; may be declared
            as ``(layer) -> keys, values``. By default they are the layer's attributes ``keys`` and ``values``.
        after_pass: function of the cache, called after every pass.
        dtypes: the supported dtypes, by name; all by default. The laws run in the first.
        attends: ``before eviction``, or ``after eviction`` if a pass attends to the entries held after it; a prompt may
            attend to all.
    """

    kind: str
    schedule: str
    target: Callable[[int, int], int] | None = None
    prune_after: bool = True
    skip_layers: bool = True
    takes: tuple[str, ...] = ()
    sinks: int = 0
    recent: int = 0
    recent_share: float = 0.0
    boundary: str = ">"
    rounding: oracle.Rounding = oracle.ceil_of
    order: str = "positions"
    ties: str = "earlier"
    held: str = "per-layer"
    layers: str = "own"
    entries: str = "kept"
    positions: str = "kept"
    score: Callable[[list[list[float]], int, int], oracle.Scores] | None = None
    votes: type[oracle.Voter] | None = None
    exact: bool = False
    padding: bool = True
    storage: str = "held"
    nan: str = "worst"
    trends: bool = False
    bits: Any = None
    group: Any = None
    axis: Any = None
    residual: int | None = None
    ratio: float | None = None
    error: float | None = None
    simulated: bool = False
    unbiased: bool = False
    reports: Mapping[str, Callable[[Any, Any], float]] = field(default_factory=dict)
    read: Reader | None = None
    after_pass: Callable[[Any], object] | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    attends: str = "before eviction"

    @property
    def scored(self) -> bool:
        """Whether it declares which entries it retains."""
        return self.score is not None or self.votes is not None

    @property
    def matchable(self) -> bool:
        """Whether stored entries can be matched with those passed in."""
        return self.entries in ("kept", "quantised") and self.positions != "rerotated"

    @property
    def quantised(self) -> bool:
        """Whether entries are quantised."""
        return self.entries == "quantised"


def read_declares(given: Mapping[str, Any], kind: str) -> Declares:
    """Validate declarations, and fill in the defaults of the rules.

    Args:
        given: attribute ``declares`` of the factory.
        kind: the convention, if not declared.

    Raises:
        ValueError: for an unknown name or value.
    """
    values = dict(given)
    known = [one.name for one in fields(Declares) if one.name != "votes"]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"declares has no {name!r}: known are {', '.join(known)}")
        if name in CHOICES and value not in CHOICES[name]:
            choices = ", ".join(map(repr, CHOICES[name]))
            raise ValueError(f"declares {name} must be one of {choices}, got {value!r}")
    kind = values.setdefault("kind", kind)
    values.setdefault("schedule", ADAPTERS[kind].schedule)
    for option in ("prune_after", "skip_layers", "padding"):
        values[option] = option not in values
    if isinstance(values.get("takes"), str):
        raise ValueError(f"declares takes must be a tuple of names, got {values['takes']!r}")
    values["takes"] = tuple(values.get("takes", ()))
    if unknown := set(values["takes"]) - {"sinks", "recent", "interval"}:
        raise ValueError(f"declares takes must name sinks, recent or interval, got {unknown.pop()!r}")
    reports = values.get("reports", {})
    if not isinstance(reports, Mapping) or set(reports) - set(REPORTS) or not all(map(callable, reports.values())):
        raise ValueError(
            f"declares reports must map {', '.join(REPORTS)} to functions (cache, compressor), got {reports!r}"
        )
    values["rounding"] = _named("rounding", values.get("rounding", "ceil"), oracle.ROUNDINGS)
    score = values.get("score")
    if score == "snapkv" and not values.get("recent"):
        raise ValueError(
            "declares score 'snapkv' needs an observation window of at least one token: declare it as recent"
        )
    if score in VOTES:
        values["votes"] = VOTES[values.pop("score")]
    elif score in SCORES:
        of_keys = SCORES[score]
        values["score"] = lambda keys, layer, head: of_keys(keys)
        values.setdefault("exact", score == "position")
    elif score is not None:
        _check_score(_named("score", score, {**SCORES, **VOTES}))
    if "read" in values:
        values["read"] = reader_of(values["read"])
    dtypes = values.get("dtypes", ())
    if isinstance(dtypes, str) or not set(dtypes) <= set(DTYPES):
        raise ValueError(f"declares dtypes must be a tuple of {', '.join(DTYPES)}, got {dtypes!r}")
    values["dtypes"] = tuple(DTYPES[name] for name in dtypes)
    if not callable(values.get("after_pass", print)):
        raise ValueError(f"declares after_pass must be a function of the cache, got {values['after_pass']!r}")
    if (target := values.get("target")) is not None:
        _check_target(target)
    check_quantisation(values)
    return Declares(**values)


def _check_score(score: Callable[..., Any]) -> None:
    """Raise ``ValueError`` unless ``score`` returns a number for each of two positions."""
    try:
        found = score([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]], 0, 0)([0, 2])
        right = len(found) == 2 and all(isinstance(value, int | float) for value in found)
    except Exception as error:
        raise ValueError(
            "declares score must be a function score(keys, layer, head), keys being a head's vectors as lists, that "
            "returns a function from a list of positions to the list of their scores, higher for retained entries; for "
            f"three keys and the positions [0, 2] it raises {type(error).__name__}: {error}"
        ) from error
    if not right:
        raise ValueError(f"declares score must give a list of two numbers for the positions [0, 2], got {found!r}")


def _check_target(target: Callable[..., Any]) -> None:
    """Raise ``ValueError`` unless ``target`` returns an integer."""
    try:
        found = target(9, 8)
    except Exception as error:
        raise ValueError(
            "declares target must be a function target(seen, held) that returns how many entries are held after a "
            f"pass; for 9 and 8 it raises {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, int):
        raise ValueError(f"declares target must give a whole number for 9 seen and 8 held, got {found!r}")


def _named(name: str, value: Any, names: Mapping[str, Any]) -> Any:
    """``value``, or the object that it names."""
    if callable(value):
        return value
    if value not in names:
        raise ValueError(f"declares {name} must be one of {', '.join(names)} or a function, got {value!r}")
    return names[value]
