"""Presses as the command line names them: ``knorm``, ``snapkv(recent=32)``, ``my_package.my_module:MyPress``."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pressgauge.presses import PRESSES
from pressgauge.references import find

if TYPE_CHECKING:
    from pressgauge.presses import Press

_PART = re.compile(r"\s*(?P<name>[^\s(),]+)\s*(?:\((?P<options>[^()]*)\))?\s*(?:,|$)")


@dataclass(frozen=True)
class Named:
    """A press, or several variants of it, under one label.

    Attributes:
        name: name in the registry, or ``package.module:name`` of a class or function that makes a press.
        options: options in the name.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name with its options, as in tables."""
        given = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({given})" if given else self.name

    def given(self, **options: Any) -> "Named":
        """The press with further options, unless they are None or its own."""
        return replace(self, options={name: at for name, at in options.items() if at is not None} | dict(self.options))


def parse(text: str) -> tuple[Named, ...]:
    """Presses named in ``text``, separated by commas, without repetitions.

    Raises:
        ValueError: if a name is unknown, or an option is not ``name=value``.
    """
    found: list[Named] = []
    place = 0
    while not found or text[place - 1 : place] == ",":
        part = _PART.match(text, place)
        if part is None:
            raise ValueError(
                f"--press must be names with commas between them, such as knorm,snapkv(recent=32), got {text!r}"
            )
        place = part.end()
        name = part["name"]
        if ":" not in name and name not in PRESSES:
            raise ValueError(
                f"press must be one of {', '.join(PRESSES)}, or package.module:name of one of your own, got {name!r}"
            )
        found.append(Named(name, dict(_option(one) for one in (part["options"] or "").split(",") if one.strip())))
    return tuple({one.label: one for one in found}.values())


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name.isidentifier() or not equals or not value:
        raise ValueError(f"options of a press must be name=value, such as recent=32, got {text.strip()!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def make(press: Named, ratios: Sequence[float], options: Mapping[str, Any]) -> "tuple[Press, ...]":
    """The press at each ratio.

    Args:
        press: its name and own options.
        ratios: keep ratios.
        options: options of all presses; its own ones come first.

    Raises:
        ValueError: if it is not found, takes other options, or is no press.
    """
    from pressgauge.presses.base import Press

    factory = find(press.name) if ":" in press.name else PRESSES[press.name]
    given = {**options, **press.options}
    made = []
    for ratio in ratios:
        try:
            found = factory(ratio, **given)
        except TypeError as error:
            raise ValueError(f"{press.label} does not take these options ({error})") from error
        if not isinstance(found, Press):
            raise ValueError(
                f"{press.name} must make a pressgauge.Press, got {type(found).__name__}: other compressors are "
                "audited, by pressgauge audit compressor"
            )
        made.append(found)
    return tuple(made)


_BUDGET = ("schedule", "prune_after", "skip_layers")
"""Options that a press and the random one that it is compared with share."""


def with_random(
    presses: "Mapping[str, tuple[Press, ...]]", ratios: Sequence[float], options: Mapping[str, Any], **more: Any
) -> "dict[str, tuple[Press, ...]]":
    """Presses, and ``random`` under each schedule, prune_after and skip_layers of theirs that no ``random`` has.

    Args:
        presses: by label, each at every ratio.
        ratios: keep ratios.
        options: options of all presses.
        more: further options of ``random``, unless they are None.
    """

    def budget(press: "Press") -> dict[str, Any]:
        return {name: getattr(press, name) for name in _BUDGET}

    found = dict(presses)
    there = [budget(several[0]) for several in presses.values() if type(several[0]).__name__ == "RandomPress"]
    for several in presses.values():
        if (wanted := budget(several[0])) not in there:
            there.append(wanted)
            usual = budget(make(Named("random"), ratios[:1], options)[0])
            own = {name: value for name, value in wanted.items() if value != usual[name]}
            one = Named("random", own).given(**more)
            found[one.label] = make(one, ratios, options)
    return found
