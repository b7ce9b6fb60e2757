"""Declarations of measured quantities, and the bands of the change. Without torch."""

from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin

BANDS = (0.2, 0.3)
"""Changes in perplexity that separate the verdicts, as in the reports."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and the text of a row's quantity."""

    heading: str
    text: Callable[[Any], str]


@dataclass(frozen=True)
class Quantity:
    """A measured quantity. A field of ``Row`` is annotated with it; whatever shows the field reads it from there.

    Attributes:
        name: its name in titles, on axes and in the docs.
        meaning: what it is, for the docs.
        unit: of the value in a row; empty if it has none.
        better: which values are; empty if it depends.
        page: its column in the table of a report, None if it has none.
        terminal: its column in the table of a terminal, which has 80 characters for all; None if it has none.
        drawn: whether the overview of a report has a panel of it.
        compared: whether it is in the terminal's table of comparisons with other runs, instead of the first table.
        timed: whether it is measured only when times are taken.
        ratio: the field that has its ratio to uncompressed, of runs side by side; empty if two rows give it.
        comparable: whether two rows give that ratio.
        interval: the field that has its 95 % interval; empty if it has none.
    """

    name: str
    meaning: str
    unit: str = ""
    better: Literal["less", "more", ""] = ""
    page: Column | None = None
    terminal: Column | None = None
    drawn: bool = False
    compared: bool = False
    timed: bool = False
    ratio: str = ""
    comparable: bool = True
    interval: str = ""

    @property
    def direction(self) -> str:
        """Which values are better, in words; empty if it depends."""
        return f"{self.better} is better" if self.better else ""


def _quantity(field: Field[Any]) -> Quantity | None:
    given = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
    return next((one for one in given if isinstance(one, Quantity)), None)


def declared(kind: type[Any]) -> dict[str, Quantity]:
    """Quantities of a dataclass, by the fields annotated with them."""
    return {field.name: found for field in fields(kind) if (found := _quantity(field)) is not None}
