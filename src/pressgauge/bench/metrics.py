"""Metrics of one's own: functions of a run and its uncompressed run, ``--metric my_module:function``."""

import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pressgauge.bench.observed import Observed
from pressgauge.bench.quantities import Quantity
from pressgauge.formats import number, percent
from pressgauge.references import find
from pressgauge.uncompressed import Perplexity

DECLARED = ("name", "meaning", "unit", "better", "drawn")
"""Fields of a ``Quantity`` that a metric may set; its columns are made from them."""


@dataclass(frozen=True)
class Metric:
    """A function of two results, and its declaration.

    Attributes:
        reference: ``package.module:name``.
        function: called with the result under a press and the uncompressed one, returns a number.
        quantity: its declaration.
    """

    reference: str
    function: Callable[[Any, Any], Any]
    quantity: Quantity

    @property
    def source(self) -> str:
        """SHA-256 digest of the file that defines the function; empty if it has none."""
        module = sys.modules.get(getattr(self.function, "__module__", None) or "")
        path = getattr(module, "__file__", None)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""

    def measure(self, compressed: Perplexity | Observed, uncompressed: Perplexity | Observed) -> "Measured":
        """Its value for a run.

        Raises:
            ValueError: if the function fails, or returns something else than a number.
        """
        try:
            value = self.function(compressed, uncompressed)
        except Exception as error:
            raise ValueError(f"--metric {self.reference} failed ({type(error).__name__}: {error})") from error
        if isinstance(value, bool) or not isinstance(value, int | float):
            shown = repr(value) if len(repr(value)) < 80 else type(value).__name__
            raise ValueError(
                f"--metric {self.reference} must return a float, got {shown}: of a tensor with one number, return "
                "float(tensor)"
            )
        declared = {name: getattr(self.quantity, name) for name in DECLARED}
        return Measured(reference=self.reference, value=float(value), **declared)


def find_metric(reference: str) -> Metric:
    """The metric named ``package.module:name``.

    Raises:
        ValueError: if it is not found, is no function, or is not declared.
    """
    if ":" not in reference:
        raise ValueError(f"--metric must be package.module:function, got {reference!r}")
    function = find(reference)
    if not callable(function):
        raise ValueError(f"--metric must name a function, and {reference} is {type(function).__name__}")
    quantity = getattr(function, "quantity", None)
    if not isinstance(quantity, Quantity):
        raise ValueError(
            f"--metric {reference} must have a pressgauge.bench.quantities.Quantity as its attribute quantity, got "
            f"{'none' if quantity is None else type(quantity).__name__}: set {reference.partition(':')[2]}.quantity = "
            "Quantity('name', 'what it is')"
        )
    plain = Quantity("", "")
    more = [
        field.name
        for field in fields(Quantity)
        if field.name not in DECLARED and getattr(quantity, field.name) != getattr(plain, field.name)
    ]
    if more:
        raise ValueError(
            f"the quantity of --metric {reference} may have {', '.join(DECLARED)}, got {', '.join(more)}, too: its "
            "columns are made from these"
        )
    return Metric(reference, function, quantity)


def check_names(metrics: Sequence[Metric], taken: Mapping[str, Quantity]) -> None:
    """Raise ``ValueError`` if a metric has no name, or that of another metric or of a quantity in ``taken``."""
    names = {one.name for one in taken.values()} | {one.page.heading for one in taken.values() if one.page}
    for metric in metrics:
        name = metric.quantity.name
        if not name.strip() or not metric.quantity.meaning.strip():
            raise ValueError(
                f"the quantity of --metric {metric.reference} must have a name and a meaning, got {name!r}"
            )
        if name in names:
            raise ValueError(
                f"the quantity of --metric {metric.reference} must have a name of its own, got {name!r}, which another "
                "quantity has"
            )
        names.add(name)


@dataclass(frozen=True)
class Measured:
    """A metric's value in a row, with its declaration, so that files can be shown without the function."""

    reference: str
    name: str
    meaning: str
    value: float
    unit: str = ""
    better: Literal["less", "more", ""] = ""
    drawn: bool = False

    @property
    def text(self) -> str:
        """The value for readers."""
        return percent(self.value) if self.unit.startswith("share") else number(self.value, 4)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a value that is not finite is its name."""
        return asdict(self) | {"value": self.value if math.isfinite(self.value) else str(self.value)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Measured":
        """From the JSON of ``as_dict``."""
        return cls(**{**data, "value": float(data["value"])})
