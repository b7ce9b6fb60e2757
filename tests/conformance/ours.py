"""All presses of the package as subjects, used unless another compressor is named."""

import functools
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from torch import Tensor

from pressgauge import KnormPress, Press
from pressgauge.conformance import oracle
from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.presses import PRESSES

SCORES: dict[str, dict[str, Any]] = {
    "knorm": {"score": "knorm"},
    "streaming-llm": {"score": "position", "exact": True},
    "random": {"score": lambda keys, layer, head: oracle.random_scores(0, layer, head), "exact": True},
    "keydiff": {"score": "keydiff"},
    "h2o": {"score": "h2o"},
    "snapkv": {"score": "snapkv"},
    "tova": {"score": "tova"},
}
"""Scores that the oracle uses for each press."""

OPTIONS: dict[str, dict[str, Any]] = {"snapkv": {"recent": 2}}
"""Default options of a press in tests: a window that fits short texts."""


def ours(name: str, schedule: str, kind: Callable[..., Any] | None = None, **options: Any) -> Subject:
    """Subject of a press under a schedule.

    Args:
        name: name in the registry.
        schedule: the schedule.
        kind: class used instead of the press, such as a broken one.
        options: options of the press.
    """
    press: Any = PRESSES[name]
    options = {**OPTIONS.get(name, {}), **options}
    score = SCORES[name]["score"]
    declares = {
        "kind": "context",
        "schedule": schedule,
        "takes": ("sinks", "recent") if schedule == "prefill" else ("sinks", "recent", "interval"),
        "sinks": press.sinks,
        "recent": options.get("recent", 0),
        "recent_share": getattr(kind or press, "recent_share", 0.0),
        "trends": score in ("knorm", "position") and schedule != "step",
        **SCORES[name],
    }
    shown = name if kind in (None, press) else getattr(kind, "__name__", name)
    return subject_of(f"{shown}-{schedule}", kind or press, declares, schedule=schedule, **options)


def _all(needs_queries: bool, *schedules: str) -> list[Subject]:
    names = [name for name, press in PRESSES.items() if press.needs_queries == needs_queries]
    return [ours(name, schedule) for schedule in schedules for name in names]


SUBJECTS = _all(False, "budget", "step", "prefill")
"""Presses that score by keys and positions only."""

SCORED_BY_ATTENTION = _all(True, "budget", "prefill", "step")
"""Presses that score by attention."""

_ALL = not settings().derandomize
"""Whether examples are random, as in the long nightly runs."""


def _own_schedule(subject: Subject) -> bool:
    press: type[Press] = PRESSES[subject.name.rpartition("-")[0]]
    return subject.schedule == press.schedule


def _plain(name: str, schedule: str) -> Subject:
    """A press as a plain cache."""
    kind = PRESSES[name]
    declares = {
        "schedule": schedule,
        "sinks": kind.sinks,
        "reports": {"bytes": lambda cache, press: cache.nbytes + cache.overhead_nbytes},
        **SCORES[name],
    }
    return subject_of(f"plain-{kind.__name__}-{schedule}", kind, declares, schedule=schedule)


def compress_each(keep_ratio: float, **options: Any) -> Callable[..., Any]:
    """``KnormPress.compress`` as a function over the whole cache."""
    press = KnormPress(keep_ratio, schedule="step", **options)

    def compress(layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [press.compress(keys, values, layer=layer) for layer, (keys, values) in enumerate(layers)]

    return compress


@functools.cache
def ours_by_default() -> list[Subject]:
    """All presses attached, under all schedules, and a few in the other conventions.

    Presses that score by attention run under their default schedule only, unless examples are random.
    """
    return [
        *SUBJECTS,
        # Schedules treat all scores alike.
        *(subject for subject in SCORED_BY_ATTENTION if _ALL or _own_schedule(subject)),
        _plain("knorm", "budget"),
        _plain("knorm", "step"),
        _plain("streaming-llm", "prefill"),
        subject_of("compress-function", compress_each, {"score": "knorm"}),
    ]


def one_per_press() -> list[Subject]:
    """All subjects by default, but each attached press under its own schedule only, unless examples are random."""
    attached = [*SUBJECTS, *SCORED_BY_ATTENTION]
    return [one for one in ours_by_default() if _ALL or one not in attached or _own_schedule(one)]
