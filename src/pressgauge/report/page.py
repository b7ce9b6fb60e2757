"""HTML report of ``pressgauge measure --report``: numbers, figures, and how to read them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from pressgauge.bench.row import BANDS, CHANGELESS, Row, band_names, bands_in_words
from pressgauge.report import figures

DASH = "\N{EN DASH}"
"""Placeholder for values that were not measured."""
_KINDS = ("overview", "trade-off", "eviction-map", "norm-attention")


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with ``digits`` significant digits, but all digits of its integer part."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not defined" if math.isnan(value) else "infinite"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0}f}"


def percent(value: float | None, sign: str = "") -> str:
    """Format a share or, with sign ``+``, a change, in percent; one decimal below 100 %."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:{sign},.{1 if abs(value) < 1 else 0}%}"


def size(value: float | None) -> str:
    """Format bytes, in the largest unit that gives at least 1."""
    power = min(max((int(value or 1).bit_length() - 1) // 10, 0), 4)
    return DASH if value is None else f"{number(value / 1024**power)} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def ratio(median: float | None, interval: tuple[float, float] | None) -> str:
    """Format a ratio and its confidence interval."""
    return DASH if median is None or interval is None else f"{median:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def change(row: Row) -> str:
    """Format the change in perplexity, if it is meaningful."""
    return DASH if row.verdict in CHANGELESS else percent(row.ppl_change, "+")


def _held(row: Row) -> str:
    ends = sorted({min(row.held), max(row.held)}) if row.held else []
    return DASH.join(f"{end:,}" for end in ends) or DASH


COLUMNS: dict[str, Callable[[Row], str]] = {
    "press": lambda row: row.press,
    "schedule": lambda row: row.schedule,
    "prune after": lambda row: f"{row.prune_after:,}",
    "skip layers": lambda row: ", ".join(map(str, row.skip_layers)) or "none",
    "dtype": lambda row: row.dtype,
    "device": lambda row: row.device,
    "keep ratio": lambda row: f"{row.keep_ratio:g}",
    "perplexity": lambda row: number(row.ppl, 4),
    "change": change,
    "verdict": lambda row: row.verdict,
    "accuracy": lambda row: percent(row.accuracy),
    "affected / scored": lambda row: f"{row.affected_tokens:,} / {row.scored_tokens:,}",
    "evictions": lambda row: f"{row.evictions:,}",
    "held": _held,
    "keys and values": lambda row: size(row.kv_bytes),
    "TTFT ratio": lambda row: ratio(row.ttft_ratio, row.ttft_interval),
    "TPOT ratio": lambda row: ratio(row.tpot_ratio, row.tpot_interval),
    "tokens/s": lambda row: number(row.tokens_per_second),
    "memory": lambda row: (
        "not available" if row.peak_memory_of and row.peak_memory_bytes is None else size(row.peak_memory_bytes)
    ),
}
"""Columns of the table, and their formatting of a row."""
_SHARED = ("prune after", "skip layers", "dtype", "device")
"""Columns replaced by a single note if all rows have the same value."""
_TIMES = ("TTFT ratio", "TPOT ratio", "tokens/s", "memory")


def summary(name: str, line: Sequence[Row], rows: Sequence[Row]) -> str:
    """One-paragraph summary of a press.

    Args:
        name: label of the press.
        line: rows of the press, in descending order of keep ratio.
        rows: all rows of the section.
    """
    at: dict[str, list[str]] = {}
    for row in line:
        at.setdefault(row.verdict, []).append(f"{row.keep_ratio:g}")
    real = [row for row in line if row.band is not None]
    rest = f" Vacuous at {', '.join(at['vacuous'])}: nothing can be said there." if "vacuous" in at else ""
    if "not a number" in at:
        rest += f" At {', '.join(at['not a number'])} the perplexity is not a number or infinite."
    if "no verdict" in at:
        return f"{name}: no verdict at {', '.join(at['no verdict'])}, see the warning.{rest}"
    if not real:
        return f"{name}: {'only the uncompressed run was measured' if not rest else 'nothing can be said'}.{rest}"
    names = band_names(line[0].bands)
    verdicts = [f"{word} at {', '.join(at[word])}" for word in names if word in at]
    within = [row for row in real if row.band == 0]
    best = within[-1] if within else real[0]
    memory = figures.relative(best, rows, lambda row: row.kv_bytes)
    facts = [f"perplexity changes by {change(best)}"]
    facts += [] if memory is None else [f"keys and values take {memory:.0%} of the memory"]
    if best.tpot_ratio is not None:
        facts.append(f"a later token takes {best.tpot_ratio:.2f} times as long")
    which = f"smallest ratio {names[0]}" if within else "largest ratio"
    return f"{name}: {'; '.join(verdicts)}. At the {which}, {best.keep_ratio:g}, {', '.join(facts)}.{rest}"


def _kind(row: Row) -> str:
    """CSS class of a verdict, which sets its colour."""
    if row.band is None:
        return "bad" if row.verdict == "not a number" else "neutral"
    return "within" if row.band == 0 else "bad" if row.band == len(row.bands) else "between"


def _noise(rows: Sequence[Row]) -> list[tuple[bool, str]]:
    """Per timed pair of uncompressed arms: whether the intervals contain 1, and their text."""
    found = {}
    for row in rows:
        if row.keep_ratio == 1 and row.ttft_ratio is not None:
            text = f"TTFT {ratio(row.ttft_ratio, row.ttft_interval)}, TPOT {ratio(row.tpot_ratio, row.tpot_interval)}"
            found[text] = row.noise_is_even
    return [(even, text) for text, even in found.items()]


def write_report(
    folder: Path,
    rows: Sequence[Row],
    *,
    maps: Mapping[str, tuple[Tensor, ...]],
    correlations: Mapping[str, Tensor],
    provenance: Mapping[str, str],
) -> Path:
    """Write a self-contained ``report.html``, with each figure as an SVG file next to it.

    The folder is not changed until the whole report is ready. Figures of an older report that are not replaced are
    deleted.

    Args:
        folder: output folder, whose parent exists.
        rows: rows of any number of models and texts.
        maps: ``evicted_at`` of one sample, ``[1, K, T]`` per layer, by a title that begins with "model on text: ".
        correlations: results of ``pressgauge.norm_attention``, by "model on text".
        provenance: provenance of the numbers, by label.

    Returns:
        Path of the page.
    """
    files: dict[str, str] = {}

    def draw(kind: str, figure: Figure) -> dict[str, Any]:
        name = f"{kind}-{sum(file.startswith(kind) for file in files) + 1}"
        files[f"{name}.svg"] = figures.to_svg(figure, name)
        return {"file": f"{name}.svg", "svg": Markup(files[f"{name}.svg"])}

    places = list(dict.fromkeys(f"{row.model} on {row.text}" for row in rows))
    # Figures without rows get sections of their own, at the end.
    places += [where for where in correlations if where not in places]
    places += [title for title in maps if maps[title] and not any(title.startswith(f"{where}: ") for where in places)]
    sections = []
    for where in places:
        own = [row for row in rows if f"{row.model} on {row.text}" == where]
        timed = any(row.ttft_ratio is not None for row in own)
        names = [name for name in COLUMNS if timed or name not in _TIMES]
        shared = {name: COLUMNS[name](own[0]) for name in _SHARED if len({COLUMNS[name](row) for row in own}) == 1}
        section: dict[str, Any] = {
            "where": where,
            "shared": shared,
            "columns": [name for name in names if name not in shared],
            "rows": [{name: COLUMNS[name](row) for name in names} for row in own],
            "kinds": [_kind(row) for row in own],
            "summaries": [summary(name, line, own) for name, line in figures.series(own).items()],
            "timed": timed,
            "noise": _noise(own),
            "memories": sorted({row.peak_memory_of for row in own if row.peak_memory_of}),
            "vacuous": any(row.vacuous for row in own),
            "warnings": list(dict.fromkeys(warning for row in own for warning in row.warnings)),
            "maps": [],
        }
        if own:
            section["overview"] = draw("overview", figures.overview(own))
            section["trade_off"] = draw("trade-off", figures.trade_off(own))
        for title, evicted_at in maps.items():
            if evicted_at and (title == where or title.startswith(f"{where}: ")):
                of = [row for row in own if title == f"{where}: {row.press}, keep ratio {row.keep_ratio:g}"]
                whole = f"{title}, schedule {of[0].schedule}" if of else title
                section["maps"].append(draw("eviction-map", figures.eviction_map(whole, evicted_at)) | {"title": whole})
        if where in correlations:
            section["correlation"] = draw("norm-attention", figures.norm_attention_map(correlations[where]))
        sections.append(section)
    loader = PackageLoader("pressgauge", "report")
    page = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.jinja")
    files["report.html"] = page.render(
        sections=sections, provenance=provenance, bands=bands_in_words(rows[0].bands if rows else BANDS)
    )
    return _replace(folder.resolve(), files)


def _replace(folder: Path, files: Mapping[str, str]) -> Path:
    """Move files, the page last, to a folder once all are written; delete outdated figures."""
    # An existing folder may be a mount point, and files cannot be moved across file systems.
    beside = folder if folder.exists() else folder.parent
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=beside) as unfinished:
        for name, text in files.items():
            (Path(unfinished) / name).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in files:
            (Path(unfinished) / name).replace(folder / name)
    for old in folder.glob("*.svg"):
        if old.name not in files and re.fullmatch(rf"({'|'.join(_KINDS)})-\d+\.svg", old.name):
            old.unlink()
    return folder / "report.html"
