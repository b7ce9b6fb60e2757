"""What a report says first: a conclusion for each model and text, and short names of both."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from pressgauge.bench.comparing import against_random, is_random
from pressgauge.bench.row import Row, band_names
from pressgauge.report.figures import series


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def conclusion(rows: Sequence[Row]) -> str:
    """Which presses are within the first band at the smallest ratio, and which lose less than ``random``.

    Both are said only as far as intervals tell. The rows are of one text under one model.
    """
    judged = [row for row in rows if row.judged and not is_random(row)]
    if not judged:
        return "No press has a verdict here."
    first = band_names(rows[0].bands)[0]
    smallest: dict[str, float] = {}
    for name, line in series(rows).items():
        within = [row.keep_ratio for row in line if row.band == 0 and row.keep_ratio and not is_random(row)]
        smallest |= {name: min(within)} if within else {}
    if smallest:
        ratio = min(smallest.values())
        best = [name for name, at in smallest.items() if at == ratio]
        alone = len(best) == 1 and len({row.press for row in judged}) > 1
        said = f"{_listed(best)} {'are' if len(best) > 1 else 'is'} {first} at a keep ratio of {ratio:g}"
        said += ", the smallest of any press." if alone else "."
    else:
        said = f"No press is known to be {first} at any ratio."
    told: dict[str, dict[str, list[str]]] = {}
    for index, found in against_random(rows).items():
        at = told.setdefault(found.words, {}).setdefault(rows[index].press, [])
        at.append(rows[index].ratio)
    if not told:
        return said
    if not any(words.startswith("loses less") for words in told):
        said += " No press is known to lose less than random."
    for words in sorted(words for words in told if words.startswith("loses")):
        found_at = [f"{press} (at {', '.join(ratios)})" for press, ratios in told[words].items()]
        verbs = words.replace("loses", "lose").replace("holds", "hold") if len(found_at) > 1 else words
        said += f" {_listed(found_at)} {verbs}."
    return said


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names to be shown: the last part of a path, and the whole path where two have the same one."""
    shown = {name: PurePath(name).name if _is_path(name) else name for name in dict.fromkeys(names)}
    several = [name for name in shown.values() if list(shown.values()).count(name) > 1]
    return {name: name if short in several else short for name, short in shown.items()}


def _is_path(name: str) -> bool:
    return PurePath(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
