"""The page that ``pressgauge measure --report`` writes: all numbers, figures, and notes on their interpretation."""

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from pressgauge.bench.comparing import Contest, against_random, also_holds, contests
from pressgauge.bench.files import GENERATOR, check_page, write_files
from pressgauge.bench.quantities import BANDS
from pressgauge.bench.results import as_json
from pressgauge.bench.row import MEMORY, QUANTITIES, UNTOLD, Row, band_names, bands_in_words
from pressgauge.bench.task_row import TaskRow
from pressgauge.formats import DASH, percent, ratio
from pressgauge.report import figures
from pressgauge.report.conclusion import conclusion, short_names
from pressgauge.report.table import to_random
from pressgauge.report.tasks import READING, task_sections

_KINDS = ("overview", "trade-off", "eviction-map", "norm-attention")
_SETTINGS: dict[str, Callable[[Row], str]] = {
    "press": lambda row: row.press,
    "method": lambda row: row.method,
    "schedule": lambda row: row.schedule or DASH,
    "prune after": lambda row: DASH if row.prune_after is None else f"{row.prune_after:,}",
    "skip layers": lambda row: DASH if row.skip_layers is None else ", ".join(map(str, row.skip_layers)) or "none",
    "dtype": lambda row: row.dtype,
    "device": lambda row: row.device,
    "keep ratio": lambda row: row.ratio,
}
_SHARED = ("method", "prune after", "skip layers", "dtype", "device")
"""Columns that are omitted if all rows agree, with the common value given once."""


def _columns() -> Iterator[tuple[str, Callable[[Row], str]]]:
    yield from _SETTINGS.items()
    for name, quantity in QUANTITIES.items():
        if quantity.page:
            yield quantity.page.heading, quantity.page.text
        if name == "ppl_change":
            yield "verdict", lambda row: row.verdict


COLUMNS = dict(_columns())
"""Columns of the table, and their texts for a row."""
_TIMES = {quantity.page.heading for quantity in QUANTITIES.values() if quantity.page and quantity.timed}


TO_RANDOM = "change to random"


def summary(name: str, line: Sequence[Row], rows: Sequence[Row]) -> str:
    """Summary of a press's rows, ``line``."""
    at: dict[str, list[str]] = {}
    for row in line:
        at.setdefault(row.verdict, []).append(row.ratio)
    real = [row for row in line if row.judged]
    where = {verdict: "" if ratios == [DASH] else f" at {', '.join(ratios)}" for verdict, ratios in at.items()}
    rest = f" Vacuous{where['vacuous']}: no result there." if "vacuous" in at else ""
    if "not a number" in at:
        rest += f" {(where['not a number'] + ' the').strip().capitalize()} perplexity is not a number or infinite."
    if "no verdict" in at:
        return f"{name}: no verdict{where['no verdict']}, see the warning.{rest}"
    if not real:
        return f"{name}: {'only the uncompressed run was measured' if not rest else 'no result'}.{rest}"
    names = band_names(line[0].bands)
    verdicts = [f"{word}{where[word]}" for word in (*names, UNTOLD) if word in at]
    within = [row for row in real if row.band == 0]
    best = within[-1] if within else real[0]
    memory = figures.relative(best, rows, lambda row: row.kv_bytes)
    facts = [f"perplexity changes by {best.change}"]
    facts += [] if memory is None else [f"keys and values take {memory:.0%} of the memory"]
    if best.tpot_ratio is not None and best.tpot_interval is not None:
        times = f"{best.tpot_interval[0]:.2f} to {best.tpot_interval[1]:.2f}"
        facts.append(
            f"no difference in the time of a later token can be told ({times} times)"
            if best.tpot_interval[0] <= 1 <= best.tpot_interval[1]
            else f"a later token takes {best.tpot_ratio:.2f} times as long ({times})"
        )
    which = f"smallest ratio {names[0]}" if within else "largest ratio"
    if best.keep_ratio is None:
        return f"{name}: {'; '.join(verdicts)}. It takes no keep ratio; {', '.join(facts)}.{rest}"
    return f"{name}: {'; '.join(verdicts)}. At the {which}, {best.ratio}, {', '.join(facts)}.{rest}"


def _told(contest: Contest) -> str:
    """Sentence about two presses at the same ratio."""
    better, worse = contest.better.press, contest.worse.press
    where = "" if contest.better.keep_ratio is None else f" at {contest.better.ratio}"
    if not contest.told or contest.change.interval is None:
        return f"Between {better} and {worse}{where} no difference can be told."
    low, high = contest.change.interval
    higher = f"{percent(low)} to {percent(high)}"
    also = also_holds(contest.better, contest.worse, less=True)
    return f"{better} loses less than {worse}{where}{also}: perplexity under {worse} is higher by {higher}."


def _kind(row: Row) -> str:
    """CSS class of a verdict, for its colour."""
    if row.band is None:
        return {"not a number": "bad", UNTOLD: "between"}.get(row.verdict, "neutral")
    return "within" if row.band == 0 else "bad" if row.band == len(row.bands) else "between"


def _noise(rows: Sequence[Row]) -> list[tuple[bool, str]]:
    """For each timed pair of uncompressed arms: whether its intervals contain 1, and their text."""
    found = {}
    for row in rows:
        if row.keep_ratio == 1 and row.ttft_ratio is not None:
            text = f"TTFT {ratio(row.ttft_ratio, row.ttft_interval)}, TPOT {ratio(row.tpot_ratio, row.tpot_interval)}"
            found[text] = row.noise_is_even
    return [(even, text) for text, even in found.items()]


def _download(content: str) -> str:
    """A file of rows in an address."""
    return f"data:application/json;base64,{base64.b64encode(content.encode()).decode()}"


def write_report(
    folder: Path,
    rows: Sequence[Row],
    *,
    maps: Mapping[str, tuple[Tensor, ...]],
    correlations: Mapping[str, Tensor],
    provenance: Mapping[str, str],
    tasks: Sequence[TaskRow] = (),
) -> Path:
    """Write the self-contained ``report.html``, and each of its figures as SVG and PNG files next to it.

    The folder does not change until the report is complete. Files of an older report are then replaced or removed.

    Args:
        folder: target folder; its parent must exist.
        rows: rows of any number of models and texts.
        maps: ``evicted_at`` of one sample, a ``[1, K, T]`` per layer, by a title that begins with "model on text: ".
        correlations: results of ``pressgauge.norm_attention``, by "model on text".
        provenance: origin of the numbers, by name.
        tasks: rows of tasks.

    Returns:
        The page.

    Raises:
        ValueError: if it would replace files of another origin.
        OSError: if it cannot be written.
    """
    files: dict[str, str | bytes] = {}
    models, texts = short_names(row.model for row in rows), short_names(row.text for row in rows)

    def draw(kind: str, figure: Figure, narrow: Figure | None = None) -> dict[str, Any]:
        name = f"{kind}-{sum(file.startswith(kind) and file.endswith('.svg') for file in files) + 1}"
        svg = files[f"{name}.svg"] = figures.to_svg(figure, name)
        files[f"{name}.png"] = figures.to_png(figure)
        small = None if narrow is None else Markup(figures.to_svg(narrow, f"{name}-narrow"))
        return {"file": name, "svg": Markup(svg), "narrow": small}

    places = list(dict.fromkeys(f"{row.model} on {row.text}" for row in rows))
    # Figures without rows have sections at the end.
    places += [where for where in correlations if where not in places]
    places += [title for title in maps if maps[title] and not any(title.startswith(f"{where}: ") for where in places)]
    sections = []
    for where in places:
        own = [row for row in rows if f"{row.model} on {row.text}" == where]
        timed = any(row.ttft_ratio is not None for row in own)
        names = [name for name in COLUMNS if timed or name not in _TIMES]
        random = against_random(own)
        own_metrics = {metric.name: metric for row in own for metric in row.metrics}
        shared = {name: COLUMNS[name](own[0]) for name in _SHARED if len({COLUMNS[name](row) for row in own}) == 1}
        short = f"{models[own[0].model]} on {texts[own[0].text]}" if own else where
        section: dict[str, Any] = {
            "where": short,
            "conclusion": conclusion(own) if own else "",
            "shared": shared,
            "columns": [
                *(name for name in names if name not in shared),
                *([TO_RANDOM] if random else []),
                *own_metrics,
            ],
            "rows": [
                {name: COLUMNS[name](row) for name in names}
                | ({TO_RANDOM: to_random(random.get(index))} if random else {})
                | dict.fromkeys(own_metrics, DASH)
                | {metric.name: metric.text for metric in row.metrics}
                for index, row in enumerate(own)
            ],
            "kinds": [_kind(row) for row in own],
            "contests": [_told(one) for one in contests(own)],
            "summaries": [summary(name, line, own) for name, line in figures.series(own).items()],
            "timed": timed,
            "noise": _noise(own),
            "memories": sorted(
                {MEMORY.get(row.peak_memory_of, row.peak_memory_of) for row in own if row.peak_memory_of}
            ),
            "vacuous": any(row.vacuous for row in own),
            "warnings": list(dict.fromkeys(warning for row in own for warning in row.warnings)),
            "maps": [],
        }
        if own:
            section["overview"] = draw("overview", figures.overview(own), figures.overview(own, columns=1))
            section["trade_off"] = draw("trade-off", figures.trade_off(own), figures.trade_off(own, narrow=True))
        for title, evicted_at in maps.items():
            if figures.evicting(evicted_at) and (title == where or title.startswith(f"{where}: ")):
                of = [row for row in own if title == f"{where}: {row.press}, keep ratio {row.ratio}"]
                shown = short + title.removeprefix(where)
                whole = f"{shown}, schedule {of[0].schedule}" if of else shown
                section["maps"].append(draw("eviction-map", figures.eviction_map(whole, evicted_at)) | {"title": whole})
        if where in correlations:
            section["correlation"] = draw("norm-attention", figures.norm_attention_map(correlations[where]))
        sections.append(section)
    loader = PackageLoader("pressgauge", "report")
    page = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.jinja")
    files["report.html"] = page.render(
        generator=GENERATOR,
        sections=sections,
        provenance={
            **{f"model {short}": name for name, short in models.items() if short != name},
            **{f"text {short}": name for name, short in texts.items() if short != name},
            **provenance,
        },
        download=_download(as_json(rows, provenance, tasks)),
        task_sections=task_sections(tasks),
        task_reading=READING,
        quantities=[quantity for quantity in QUANTITIES.values() if quantity.page],
        metrics={metric.reference: metric for row in rows for metric in row.metrics}.values(),
        bands=bands_in_words(rows[0].bands if rows else BANDS),
    )
    folder = folder.resolve()
    check_page(folder, files)
    write_files(folder, files)
    for old in folder.iterdir():
        if old.name not in files and re.fullmatch(rf"({'|'.join(_KINDS)})-\d+\.(svg|png)", old.name):
            old.unlink()
    return folder / "report.html"
