"""What a subject declares to do differently from the rules. What it does not declare is held against them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pressgauge.conformance import oracle
from pressgauge.conformance.adapters import ADAPTERS

CHOICES: dict[str, tuple[object, ...]] = {
    "kind": tuple(ADAPTERS),
    "schedule": ("budget", "step", "prefill", "decoding"),
    "prune_after": (None,),
    "skip_layers": (None,),
    "order": ("any",),
    "boundary": (">", ">="),
    "ties": ("earlier", "any"),
    "held": ("per-head",),
    "entries": ("altered",),
    "positions": ("rerotated", "caller"),
    "padding": (None,),
    "storage": ("any",),
    "nan": ("any",),
    "trends": (True, False),
}
"""What may be declared where there is a choice."""

SCORES: dict[str, Callable[[list[list[float]]], oracle.Scores]] = {
    "knorm": oracle.norm_scores,
    "position": oracle.position_scores,
    "keydiff": oracle.keydiff_scores,
}


VOTES: dict[str, type[oracle.Voter]] = {
    "h2o": oracle.Accumulated,
    "snapkv": oracle.Window,
    "tova": oracle.Last,
}
"""Scores that come from attention."""


@dataclass(frozen=True)
class Declares:
    """What a subject says of itself.

    Attributes:
        kind: ``cache`` for an object with ``.cache(config)``; ``context`` for one that is used as ``with obj(model):``;
            ``function`` for ``compress(layers) -> layers``. Told apart by what the factory returns, if not declared.
        schedule: ``budget``, ``step`` or ``prefill``; or ``decoding``, which is ``budget`` but for the prompt, which
            it leaves alone.
        target: ``(seen, held) -> held`` after a pass, for what follows another rule than these three.
        prune_after, skip_layers: False if the factory takes no such option (declared as None).
        takes: further options that the factory takes, of ``sinks``, ``recent`` and ``interval``.
        sinks, recent: the first and last tokens that it protects unless it is told otherwise.
        recent_share: the share of what stays that is the newest tokens in any case, rounded down.
        boundary: ``>`` or ``>=``: whether a layer that holds exactly ``prune_after`` entries may be pruned.
        rounding: ``ceil``, ``floor``, ``float-ceil``, or a function of ratio and count.
        order: ``positions``, or ``any`` if entries may be stored in any order.
        ties: ``earlier``, or ``any`` if equal scores may be ranked either way.
        held: ``per-layer``, or ``per-head`` if the heads of a layer may hold different numbers; the entries that are
            then missing are zeros.
        entries: ``kept``, or ``altered`` if what is held is not what came in: merged, quantised, rotated anew.
        positions: ``kept``; ``caller`` if whoever drives the model has to supply true positions; ``rerotated`` if keys
            get new positions as entries go.
        score: ``knorm``, ``position``, ``keydiff``, or a function ``(keys, layer, head)`` that gives a function from
            the positions held to their scores; or ``h2o``, ``snapkv`` or ``tova``, scores that come from attention;
            None if it is not said which entries stay.
        votes: what a score that comes from attention is.
        exact: whether scores are integers.
        padding: False if padded rows are beyond it (declared as None).
        storage: ``held``, or ``any`` if what is evicted need not be freed at once.
        nan: ``worst``, or ``any`` if keys with NaN may be ranked anywhere.
        trends: whether perplexity must not fall as less is kept, on a reference model.
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
    entries: str = "kept"
    positions: str = "kept"
    score: Callable[[list[list[float]], int, int], oracle.Scores] | None = None
    votes: type[oracle.Voter] | None = None
    exact: bool = False
    padding: bool = True
    storage: str = "held"
    nan: str = "worst"
    trends: bool = False

    @property
    def scored(self) -> bool:
        """Whether it is said which entries stay."""
        return self.score is not None or self.votes is not None

    @property
    def matchable(self) -> bool:
        """Whether what is held can be compared with what came in."""
        return self.entries == "kept" and self.positions != "rerotated"


def read_declares(given: Mapping[str, Any], kind: str) -> Declares:
    """What was declared, with the rules for the rest.

    Args:
        given: what the factory carries as ``declares``.
        kind: the convention, if it is not declared.

    Raises:
        ValueError: for a name or a value that means nothing here.
    """
    values = dict(given)
    known = [field.name for field in fields(Declares) if field.name != "votes"]
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
    values["rounding"] = _named("rounding", values.get("rounding", "ceil"), oracle.ROUNDINGS)
    score = values.get("score")
    if score == "snapkv" and not values.get("recent"):
        raise ValueError(
            "declares score 'snapkv' needs the window that votes, at least one token: declare it as recent"
        )
    if score in VOTES:
        values["votes"] = VOTES[values.pop("score")]
    elif score in SCORES:
        of_keys = SCORES[score]
        values["score"] = lambda keys, layer, head: of_keys(keys)
        values.setdefault("exact", score == "position")
    elif score is not None:
        _check_score(_named("score", score, {**SCORES, **VOTES}))
    if (target := values.get("target")) is not None:
        _check_target(target)
    return Declares(**values)


def _check_score(score: Callable[..., Any]) -> None:
    """Raise a ``ValueError`` unless it gives a number for each of two positions."""
    try:
        found = score([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]], 0, 0)([0, 2])
        right = len(found) == 2 and all(isinstance(value, int | float) for value in found)
    except Exception as error:
        raise ValueError(
            "declares score must be a function score(keys, layer, head), keys being a head's vectors as lists, that "
            "returns a function from a list of positions to the list of their scores, higher for what stays; for three "
            f"keys and the positions [0, 2] it raises {type(error).__name__}: {error}"
        ) from error
    if not right:
        raise ValueError(f"declares score must give a list of two numbers for the positions [0, 2], got {found!r}")


def _check_target(target: Callable[..., Any]) -> None:
    """Raise a ``ValueError`` unless it gives a whole number for numbers seen and held."""
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
    """``value``, or what it names."""
    if callable(value):
        return value
    if value not in names:
        raise ValueError(f"declares {name} must be one of {', '.join(names)} or a function, got {value!r}")
    return names[value]
