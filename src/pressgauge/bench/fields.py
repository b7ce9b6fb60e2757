"""Values of a row from a file, checked against the types of its fields."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pressgauge.bench.row import Row
from pressgauge.bench.task_row import TaskRow

TYPES = typing.get_type_hints(Row)
"""Types of the fields of a row."""
NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def read_row(data: Any) -> Row:
    """A row from the JSON of its ``as_dict``.

    Raises:
        KeyError: if it has no such field.
        ValueError: if a value is not of its field's type, or not in its range.
    """
    _check_names(data, Row)
    strange = data["not_finite"]
    if not isinstance(strange, Mapping) or any(
        not fits(math.nan, TYPES.get(name)) or value not in NOT_FINITE for name, value in strange.items()
    ):
        raise ValueError(f"not_finite must have {', '.join(NOT_FINITE)} by the field, got {_shown(strange)}")
    sums = data["nll_sums"]
    if not isinstance(sums, list) or not all(isinstance(sample, list) for sample in sums):
        raise ValueError(f"nll_sums must be a list of lists, got {_shown(sums)}")
    row = Row.from_dict(data)
    _check_values(row, TYPES, data)
    if not row.bands or list(row.bands) != sorted(set(row.bands)):
        raise ValueError(f"bands must be ascending numbers, got {_shown(data['bands'])}")
    if [len(sample) for sample in row.nll_sums] != [len(sample) for sample in row.token_counts]:
        raise ValueError(f"token_counts must have a number for each of nll_sums, got {_shown(data['token_counts'])}")
    return row


def read_task_row(data: Any) -> TaskRow:
    """A row of a task from the JSON of its ``as_dict``.

    Raises:
        KeyError: if it has no such field.
        ValueError: if a value is not of its field's type, or not in its range.
    """
    _check_names(data, TaskRow)
    row = TaskRow.from_dict(data)
    _check_values(row, typing.get_type_hints(TaskRow), data)
    return row


def _check_names(data: Any, kind: type[Row | TaskRow]) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"a row must be an object, got {_shown(data)}")
    for field in fields(kind):
        if field.name not in data:
            raise KeyError(field.name)


def _check_values(row: Row | TaskRow, types_of: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    for name, kind in types_of.items():
        value = getattr(row, name)
        if not fits(value, kind):
            raise ValueError(f"{name} must be {_named(kind)}, got {_shown(data[name])}")
    if row.keep_ratio is not None and not 0 < row.keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1], got {row.keep_ratio}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type of a row's field; any is of a type that is not known here."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(fits(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(fits(one, parts[0]) for one in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, types.NoneType):
        return isinstance(value, kind)
    return kind is not None


def _named(kind: Any) -> str:
    return {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}.get(
        kind, str(kind).replace("tuple[", "[").replace("None", "null")
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
