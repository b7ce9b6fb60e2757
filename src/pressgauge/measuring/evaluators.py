"""Evaluators under audit: functions that compute perplexity or accuracy of a text, and how they are called."""

import copy
import inspect
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch

from pressgauge import KnormPress
from pressgauge.conformance.outcomes import DECLINES, Departure, Refused
from pressgauge.measuring.known import BOS, Text, tokenizer
from pressgauge.measuring.record import Record, recording
from pressgauge.measuring.subjects import Measurement, attributes_of, read_declares

CHOICES: dict[str, tuple[object, ...]] = {
    "compressor": ("inside", "argument"),
    "text": ("string", "ids", "list"),
    "bos": (True, False),
    "nll": ("mean", "sum"),
    "logarithm": ("e", "2"),
    "unit": ("token", "word", "byte"),
    "positions": ("seen", "rerotated"),
    "baseline": ("same", "one pass"),
    "keep_ratio": (None,),
    "prune_after": (None,),
}
FIGURES = ("ppl", "nll", "accuracy", "tokens", "kept")
"""Names of the figures that laws check."""
COUNTS = re.compile("vacuous|evict|affected|met", re.IGNORECASE)
CLAIMS = re.compile("chang|delta|increase|degrad|verdict|differ|worse|same|identical|equal", re.IGNORECASE)
"""Names in a result: of what says that nothing met an eviction, and of what claims something about a change."""
SAYS = re.compile("evict|vacuous|compress|prun", re.IGNORECASE)
"""Of a warning that can say so."""


@dataclass(frozen=True)
class Declares:
    """Declarations of an evaluator.

    Attributes:
        compressor: ``inside`` if the evaluator has one of its own; ``argument`` if it takes one as ``compressor``: then
            it is given a press, for ``with compressor(model):`` or ``compressor.cache(model.config)``.
        text: the third argument: a ``string``, token ``ids`` ``[1, T]``, or a ``list`` of strings.
        bos: whether the beginning-of-text token is put before each text, so that its first word is scored, too.
        prompt: number of tokens at the beginning that are not scored, at least 1; that of the token bos included.
            Negative: the number of tokens at the end that are scored, as -1 for the last one.
        window, stride: size and step of the windows of a strided perplexity; None for the whole text.
        nll: whether ``nll`` is the mean over the scored tokens or their sum.
        logarithm: base of ``nll``.
        unit: what perplexity and a mean NLL are divided by: scored tokens, or words or bytes of the text.
        positions: ``rerotated`` if keys get new positions after evictions.
        baseline: ``one pass`` if the uncompressed arm is fed in another way than the compressed one.
        keep_ratio, prune_after: False if the evaluator takes no such option (declared as None).
        same_for: values of options that must not change a result, by option, such as ``{"chunk": (1, 5, 16)}``.
        options: further keyword arguments of every call.
    """

    compressor: str = "inside"
    text: str = "string"
    bos: bool = False
    prompt: int = 1
    window: int | None = None
    stride: int | None = None
    nll: str = "mean"
    logarithm: str = "e"
    unit: str = "token"
    positions: str = "seen"
    baseline: str = "same"
    keep_ratio: bool = True
    prune_after: bool = True
    same_for: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call of an evaluator.

    Attributes:
        keep_ratio: the ratio that was asked for.
        label: what was measured, in words.
        figures: what it reported, by name.
        record: the passes that it made the model compute.
        texts: token ids of the texts, with the beginning-of-text token if it is declared.
        bytes_of: number of bytes of each text.
        spoke: whether a warning about evictions was issued.
    """

    keep_ratio: float
    label: str
    figures: dict[str, Any]
    record: Record
    texts: tuple[tuple[int, ...], ...]
    bytes_of: tuple[int, ...]
    spoke: bool = False

    def number(self, name: str) -> float | None:
        """A figure as a number, NaN for None; None if it was not reported."""
        if name not in self.figures:
            return None
        value = self.figures[name]
        return math.nan if value is None else float(value)


class Evaluator(Measurement):
    """A function ``f(model, tokenizer, text, *, keep_ratio, prune_after, skip_layers, ...)`` that returns a perplexity,
    or a mapping with some of ``ppl``, ``nll``, ``accuracy``, ``tokens`` and ``kept``."""

    kind = "evaluator"

    @classmethod
    def declared(cls, given: Mapping[str, Any]) -> Declares:
        """Validated declarations.

        Raises:
            ValueError: for an unknown name or value.
        """
        declares = read_declares(Declares, given, CHOICES)
        if not isinstance(declares.prompt, int) or not declares.prompt:
            raise ValueError(
                "declares prompt must be a number of tokens at the beginning, or a negative number of tokens at the "
                f"end that are scored, got {declares.prompt!r}"
            )
        for name in ("window", "stride"):
            value = getattr(declares, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"declares {name} must be a whole number of at least 1, got {value!r}")
        if (declares.window is None) is not (declares.stride is None):
            raise ValueError("declares window and stride go together: give both, or neither for the whole text")
        return replace(declares, keep_ratio="keep_ratio" not in given, prune_after="prune_after" not in given)

    def __post_init__(self) -> None:
        for name in ("keep_ratio", "prune_after"):
            needed = getattr(self.declares, name) and self.declares.compressor == "inside"
            if needed and name not in self.taken({name: None}):
                own = ", ".join(list(inspect.signature(self.function).parameters)[3:]) or "no option"
                raise ValueError(
                    f"the function must take {name}, got {own}: rename the option, or declare {name} as None"
                )

    def call(
        self,
        model: Any,
        texts: Sequence[Text],
        keep_ratio: float = 1,
        prune_after: int = 8,
        skip_layers: tuple[int, ...] = (),
        **options: Any,
    ) -> Call:
        """Call it on texts: on all of them if it takes a list, else on the only one.

        Raises:
            Refused: if it declines, with one of ``DECLINES``.
            Departure: if it returns something other than a number or a mapping of numbers.
        """
        declares: Declares = self.declares
        given: dict[str, Any] = {"prune_after": prune_after, "skip_layers": skip_layers, "keep_ratio": keep_ratio}
        if not declares.keep_ratio:
            del given["keep_ratio"]
        if not declares.prune_after:
            del given["prune_after"]
        if declares.compressor == "argument":
            given["compressor"] = KnormPress(keep_ratio, prune_after=prune_after, skip_layers=skip_layers)
        given |= {**declares.options, **options}
        first = [BOS] if declares.bos else []
        if declares.text == "list":
            argument: Any = [text.text for text in texts]
        else:
            (one,) = texts
            argument = torch.tensor([[*first, *one.ids]]) if declares.text == "ids" else one.text
        label = f"keep_ratio {keep_ratio}, prune_after {prune_after}, {sum(len(text.ids) for text in texts)} tokens"
        with recording() as record, warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                result = self.function(model, copy.deepcopy(tokenizer()), argument, **self.taken(given))
            except DECLINES as error:
                if not str(error):
                    raise
                raise Refused(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        return Call(
            keep_ratio,
            label,
            _figures(result),
            record,
            tuple((*first, *text.ids) for text in texts),
            tuple(len(text.text.encode()) for text in texts),
            any(SAYS.search(str(warning.message)) for warning in heard),
        )


def _figures(result: Any) -> dict[str, Any]:
    """Figures by name, of a number, a mapping, or an object with figures as attributes.

    Raises:
        Departure: for another type of result, or a figure that is no number.
    """
    result = _unwrapped(result)
    if result is None or (isinstance(result, Real) and not isinstance(result, bool)):
        return {"ppl": result}
    result = attributes_of(result)
    if not isinstance(result, Mapping):
        raise Departure(f"an evaluator returns a perplexity or a mapping of figures, and this one {result!r}")
    found = {str(name): value for name, value in result.items()}
    for name in FIGURES:
        value = _unwrapped(found.get(name))
        if name in found:
            found[name] = value
        if value is not None and not isinstance(value, Real):
            raise Departure(f"{name} has to be a number, got {value!r}")
    if not set(found) & set(FIGURES):
        raise Departure(f"a result has to have one of {', '.join(FIGURES)}, got {', '.join(map(str, result))}")
    return found


def _unwrapped(value: Any) -> Any:
    """The number in a tensor or an array of one element."""
    return value.item() if getattr(value, "shape", None) is not None and math.prod(value.shape) == 1 else value
