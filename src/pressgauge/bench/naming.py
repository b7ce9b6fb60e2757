"""Presses as the command line names them: ``knorm``, ``snapkv(recent=32)``, ``my_package.my_module:MyPress``."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pressgauge.presses import PRESSES
from pressgauge.references import find

if TYPE_CHECKING:
    from pressgauge.bench.compressors import Compressor
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
        if ":" not in name and re.search(r"(^|,)\s*keep_ratio\s*=", part["options"] or ""):
            raise ValueError(f"ratios are given by --keep-ratios, got keep_ratio in {part[0].strip(' ,')!r}")
        found.append(Named(name, dict(_option(one) for one in (part["options"] or "").split(",") if one.strip())))
    return tuple({one.label: one for one in found}.values())


def with_options(named: Sequence[Named], options: Sequence[str]) -> tuple[Named, ...]:
    """The presses, with options of those that are named by their module, which their own come before.

    Raises:
        ValueError: if an option is not ``name=value``, or there is none that it can be for.
    """
    found = dict(_option(one) for one in options)
    if found and not any(":" in one.name for one in named):
        raise ValueError(
            f"--option {options[0]} is for compressors named by their module, and --press names none: write options of "
            "a press in its name, such as 'snapkv(recent=32)'"
        )
    return tuple(one.given(**found) if ":" in one.name else one for one in named)


def only_presses(
    made: "Mapping[str, tuple[Press, ...] | tuple[Compressor, ...]]", option: str
) -> "dict[str, tuple[Press, ...]]":
    """Presses at each ratio, by label.

    Raises:
        ValueError: if something else was made, for which ``option`` is not.
    """
    from pressgauge.presses.base import Press

    found = {label: tuple(one for one in several if isinstance(one, Press)) for label, several in made.items()}
    if other := next((label for label, presses in found.items() if not presses), None):
        raise ValueError(f"{option} is for presses, got {other}: leave one of them out")
    return found


def schedule_of(press: "Press | Compressor") -> str:
    """Schedule of a press, or that of most compressors of its kind."""
    return str(getattr(press, "usual_schedule", press.schedule))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name.isidentifier() or not equals or not value:
        raise ValueError(f"options of a press must be name=value, such as recent=32, got {text.strip()!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def make(
    press: Named, ratios: Sequence[float], options: Mapping[str, Any]
) -> "tuple[Press, ...] | tuple[Compressor, ...]":
    """The press, or the compressor of another kind, at each ratio.

    Args:
        press: its name and own options.
        ratios: keep ratios, the first of which is 1.
        options: options of all presses; its own ones come first.

    Raises:
        ValueError: if it is not found, takes other options, or is nothing that can be measured.
    """
    from pressgauge.bench.compressors import check_options, compressors
    from pressgauge.presses.base import Press

    factory = find(press.name) if ":" in press.name else PRESSES[press.name]
    if ":" in press.name and not (isinstance(factory, type) and issubclass(factory, Press)):
        others = compressors(press.label, press.name, factory, press.options, ratios, options)
        if others is not None:
            return others
    check_options(press.name, factory, press.options)
    given = {**options, **press.options}
    made = []
    for ratio in ratios:
        try:
            found = factory(ratio, **given)
        except TypeError as error:
            raise ValueError(f"{press.label} does not take these options ({error})") from error
        if not isinstance(found, Press):
            raise ValueError(
                f"{press.name} makes a press at a ratio of {ratios[-1]:g} and a {type(found).__name__} at {ratio:g}: "
                "it must make one at each"
            )
        made.append(found)
    return tuple(made)


_BUDGET = ("schedule", "prune_after", "skip_layers")
"""Options that a press and the random one that it is compared with share."""


def with_random(
    presses: "Mapping[str, tuple[Press, ...] | tuple[Compressor, ...]]",
    ratios: Sequence[float],
    options: Mapping[str, Any],
    **more: Any,
) -> "dict[str, tuple[Press, ...] | tuple[Compressor, ...]]":
    """Presses, and ``random`` under each schedule, prune_after and skip_layers of theirs that no ``random`` has.

    Third-party compressors, whose settings may be unknown, have the usual one beside them.

    Args:
        presses: by label, each at every ratio.
        ratios: keep ratios.
        options: options of all presses.
        more: further options of ``random``, unless they are None.
    """

    def budget(press: "Press | Compressor") -> dict[str, Any]:
        return {name: getattr(press, name) for name in _BUDGET}

    from pressgauge.presses.base import Press

    found = dict(presses)
    plain = make(Named("random"), ratios[:1], options)[0]
    own_kind = [several[0] for several in presses.values() if isinstance(several[0], Press)]
    there = [budget(press) for press in own_kind if type(press).__name__ == "RandomPress"]
    for wanted in [budget(press) for press in own_kind] or [budget(plain)]:
        if wanted not in there:
            there.append(wanted)
            usual = budget(plain)
            own = {name: value for name, value in wanted.items() if value != usual[name]}
            one = Named("random", own).given(**more)
            found[one.label] = make(one, ratios, options)
    return found
