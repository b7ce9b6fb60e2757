"""Calls of an evaluator that several laws look at, made once."""

import math
import weakref
from typing import Any

from pressgauge.conformance.outcomes import Departure
from pressgauge.measuring.diagnosis import Diagnosis, right, same
from pressgauge.measuring.evaluators import Call, Declares, Evaluator
from pressgauge.measuring.known import Text, bag, text_of
from pressgauge.measuring.scoring import Scoring

PRUNE_AFTER = 8
COMPRESSED = 0.5
"""Keep ratio at which most laws look."""
_MADE: "weakref.WeakKeyDictionary[Evaluator, dict[Any, Call]]" = weakref.WeakKeyDictionary()


def texts_for(evaluator: Evaluator, seed: int = 0, length: int = 48) -> tuple[Text, ...]:
    """Texts of an evaluator: several of different lengths if it takes a list, else one."""
    if evaluator.declares.text == "list":
        # The first is neither the longest nor the shortest.
        return tuple(text_of(length - less, seed + number) for number, less in enumerate((15, 0, 27)))
    return (text_of(length, seed),)


def measured(evaluator: Evaluator, keep_ratio: float = 1, skip_layers: tuple[int, ...] = (), length: int = 48) -> Call:
    """The call of an evaluator on a new bag with ``prune_after`` 8; made once.

    Raises:
        Refused: if it declines.
    """
    calls = _MADE.setdefault(evaluator, {})
    key = keep_ratio, skip_layers, length
    if key not in calls:
        texts = texts_for(evaluator, length=length)
        calls[key] = evaluator.call(bag(), texts, keep_ratio, PRUNE_AFTER, skip_layers)
    return calls[key]


def check_figure(evaluator: Evaluator, call: Call, name: str, *, uncompressed: bool) -> None:
    """Check a figure of a call on a bag against the formula.

    Args:
        evaluator: the evaluator.
        call: the call.
        name: ``ppl``, ``nll``, ``accuracy`` or ``tokens``.
        uncompressed: whether the right figure is that of the text without evictions, else of what its queries read.

    Raises:
        Departure: if it is another one, with the mistake that explains it.
    """
    declares: Declares = evaluator.declares
    reported = call.number(name)
    if reported is None:
        return
    scoring = Scoring(call, declares)
    tokens = scoring.plain if uncompressed else scoring.run
    expected = right(name, tokens, call, declares)
    if same(reported, expected):
        return
    mistake = "is no number"
    if not math.isnan(reported):
        others = [one for one in _MADE.get(evaluator, {}).values() if one is not call]
        mistake = Diagnosis(call, declares, others).of(name, reported) or "is no known mistake"
    lost = [token.at for token in tokens if token.reads is None]
    if lost:
        known = f"no pass predicted token {lost[0]} from all tokens before it ({len(lost)} of {len(tokens)} tokens)"
    else:
        known = f"right is {shown(expected)}"
    raise Departure(
        f"keep_ratio {call.keep_ratio:g}: reported {name} {shown(reported)} {mistake}; {known} "
        f"({call.record.evidence()})"
    )


def shown(value: float) -> str:
    """A figure with six digits."""
    return f"{value:.6g}"


def headline(call: Call) -> tuple[str, float]:
    """Name and value of the first figure of a call that depends on what the model predicts.

    Raises:
        Departure: if there is none.
    """
    for name in ("ppl", "nll", "accuracy"):
        if (value := call.number(name)) is not None:
            return name, value
    raise Departure(f"a result has to have ppl, nll or accuracy, got {', '.join(call.figures)}")
