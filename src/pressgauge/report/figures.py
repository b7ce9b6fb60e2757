"""Figures of a report. Each function returns a matplotlib ``Figure`` and does not change pyplot's state."""

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from pressgauge.bench.row import QUANTITIES, Row, band_names
from pressgauge.formats import scale

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    # Texts are measured with the first: it comes with matplotlib, and few fonts are wider.
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "text.parse_math": False,  # a model's name may contain dollar signs
    "figure.dpi": 72,  # a pixel is a point
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
}
_WIDTH = 12
_NARROW = 3.7
"""Width on a screen of 400 pixels."""
# Okabe and Ito's colour-blind-safe colours; further presses differ by markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^DvPX*p"
_GREY = "#767676"
_BETTER = "#e5f3e8"

CLEARLY = -0.3
"""Threshold of a clearly negative correlation."""
_NUMBERS = 100
"""Maximum number of cells of a heat map with numbers."""

Value = Callable[[Row], float | None]


def label(row: Row, rows: Sequence[Row]) -> str:
    """Press of a row, with settings that differ between rows."""
    names = ("schedule", "prune_after", "skip_layers", "dtype", "device")
    # Third-party compressors have no settings that they do not take.
    differ = [name for name in names if len({getattr(other, name) for other in rows} - {None}) > 1]
    own = [name for name in differ if getattr(row, name) is not None]
    return ", ".join([row.press, *(f"{name} {getattr(row, name)}" for name in own)])


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by label, in descending keep ratio, and last those without one."""
    lines: dict[str, list[Row]] = {label(row, rows): [] for row in rows}
    for row in sorted(rows, key=lambda row: -(row.keep_ratio or 0)):
        lines[label(row, rows)].append(row)
    return lines


def relative(row: Row, rows: Sequence[Row], value: Value) -> float | None:
    """A quantity of a row relative to the uncompressed row, of its own press if there is one."""
    bases = [one for one in rows if one.keep_ratio == 1 and (one.dtype, one.device) == (row.dtype, row.device)]
    bases.sort(key=lambda one: label(one, rows) != label(row, rows))
    mine, whole = value(row), value(bases[0]) if bases else None
    return mine / whole if mine is not None and whole else None


def memory_of(rows: Sequence[Row]) -> str | None:
    """Kind of the rows' peak memory, if all have one of the same kind."""
    kinds = {row.peak_memory_of if row.peak_memory_bytes is not None else None for row in rows}
    return kinds.pop() if len(kinds) == 1 else None


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]


@dataclass(frozen=True)
class _Panel:
    """A quantity for plotting: title, axis label, value and interval of a row, and the value of no change, if any."""

    title: str
    label: str
    value: Value
    interval: Callable[[Row], tuple[float, float] | None]
    level: float | None
    logarithmic: bool
    share: bool


def _scaled(name: str, one: float) -> Value:
    return lambda row: None if (value := getattr(row, name)) is None else value / one


def _panel(name: str, title: str, rows: Sequence[Row]) -> _Panel:
    """Panel of a quantity: relative to uncompressed if rows give that ratio, else in the unit in which its largest
    value is at least 1."""
    quantity = QUANTITIES[name]
    if quantity.ratio:
        interval = attrgetter(QUANTITIES[quantity.ratio].interval)
        label = f"relative to uncompressed\n{quantity.direction}"
        return _Panel(title, label, attrgetter(quantity.ratio), interval, 1.0, logarithmic=False, share=False)
    given: Value = attrgetter(name)
    share = quantity.unit.startswith("share")
    if quantity.comparable and not share:
        label = f"relative to uncompressed\n{quantity.direction}"
        ratio = partial(relative, rows=rows, value=given)
        of_ppl = _ppl_ratio if name == "ppl" else lambda row: None
        return _Panel(title, label, ratio, of_ppl, 1.0, logarithmic=name == "ppl", share=False)
    unit, one = scale(quantity.unit, max((x for x in _finite([given(row) for row in rows]) if x > 0), default=1.0))
    ends = attrgetter(quantity.interval) if quantity.interval else lambda row: None
    return _Panel(
        title,
        "\n".join(filter(None, (unit, quantity.direction))),
        _scaled(name, one),
        lambda row: None if (found := ends(row)) is None else (found[0] / one, found[1] / one),
        None,
        logarithmic=False,
        share=share,
    )


def _ppl_ratio(row: Row) -> tuple[float, float] | None:
    """Interval of a perplexity relative to uncompressed; None in the uncompressed row."""
    if row.keep_ratio == 1 or row.ppl_interval is None:
        return None
    return 1 + row.ppl_interval[0], 1 + row.ppl_interval[1]


def _panels(rows: Sequence[Row]) -> Iterator[_Panel]:
    """Panels of the measured quantities. Memory of a run replaces that of keys and values if all rows have it."""
    kind = memory_of(rows)
    for name, quantity in QUANTITIES.items():
        if name == "kv_bytes" and kind:
            yield _panel("peak_memory_bytes", f"memory of the {kind}", rows)
        elif quantity.drawn and any(getattr(row, name) is not None for row in rows):
            yield _panel(name, quantity.name, rows)
    for own in {metric.reference: metric for row in rows for metric in row.metrics if metric.drawn}.values():
        label = "\n".join(filter(None, (own.unit, f"{own.better} is better" if own.better else "")))
        value = partial(_of_metric, reference=own.reference)
        yield _Panel(own.name, label, value, lambda row: None, None, logarithmic=False, share=True)


def _of_metric(row: Row, reference: str) -> float | None:
    return next((metric.value for metric in row.metrics if metric.reference == reference), None)


def _marks(axes: Axes, x: Sequence[float], y: Sequence[float], rows: Sequence[Row], number: int) -> None:
    """A line with a marker per row, hollow for vacuous rows."""
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    axes.plot(x, y, color=colour, linewidth=1.3)
    for vacuous, face in ((False, colour), (True, "white")):
        points = [(a, b) for a, b, row in zip(x, y, rows, strict=True) if row.vacuous == vacuous]
        if points:
            style: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": face, "markersize": 5.5}
            axes.plot(*zip(*points, strict=True), linestyle="", **style)


def _legend(figure: Figure, rows: Sequence[Row], *more: Patch) -> None:
    """Legend above the figure: presses, vacuous rows, rows not drawn, warnings, and notes."""
    lines = series(rows)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)], label=name)
        for number, name in enumerate(lines)
    ]

    def named(chosen: Callable[[Row], bool]) -> str:
        ratios = {name: [row.ratio for row in line if chosen(row)] for name, line in lines.items()}
        return "; ".join(f"{name} {', '.join(found)}" for name, found in ratios.items() if found)

    letters = int(13.3 * figure.get_figwidth())

    def note(text: str, **style: Any) -> None:
        text = textwrap.fill(text, 110 * letters // 160)
        handles.append(Line2D([], [], color=_GREY, linestyle="", label=text, **style))

    if hollow := named(lambda row: row.vacuous):
        note(f"hollow: vacuous, says nothing ({hollow})", marker="o", markerfacecolor="white")
    if missing := named(lambda row: not math.isfinite(row.ppl)):
        note(f"perplexity not drawn: not a number or infinite ({missing})")
    for warning in dict.fromkeys(warning for row in rows for warning in row.warnings):
        note(f"no verdict: {warning}")
    handles += more
    widths = [8 + max(map(len, str(handle.get_label()).split("\n"))) for handle in handles]
    columns = len(handles) if sum(widths) < letters else max(1, letters // max(widths))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis if a linear one would hide most values."""
    found = [value for value in values if value > 0]
    if found and max(found) > 10 * min(found):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(found) < 300 * min(found) else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _alike(value: Value, rows: Sequence[Row]) -> dict[float, float]:
    """Values by keep ratio if all presses have the same ones and none is vacuous, otherwise empty."""
    found: dict[float, set[float | None]] = {}
    for row in rows:
        if row.keep_ratio is None:
            return {}
        found.setdefault(row.keep_ratio, set()).add(value(row))
    only = {ratio: next(iter(values)) for ratio, values in found.items() if len(values) == 1}
    known = {ratio: one for ratio, one in only.items() if one is not None and math.isfinite(one)}
    return known if len(known) == len(found) > 1 and not any(row.vacuous for row in rows) else {}


def _draw(panel: _Panel, axes: Axes, rows: Sequence[Row]) -> None:
    """Plot one quantity over the keep ratio, with its intervals."""
    lines = series(rows)
    ratios = sorted({row.keep_ratio for row in rows if row.keep_ratio is not None})
    span = ratios[-1] - ratios[0] or 1.0
    axes.set(title=panel.title, ylabel=panel.label, xlabel="keep ratio")
    crowded = any(after - before < 0.07 * span for before, after in pairwise(ratios))
    drawn: list[float] = []
    if len(lines) > 1 and (same := _alike(panel.value, rows)):
        axes.plot(*zip(*sorted(same.items()), strict=True), color=_GREY, marker="o", markersize=5.5, linewidth=1.3)
        axes.text(0.97, 0.05, "the same for all presses", color=_GREY, ha="right", transform=axes.transAxes)
        drawn, lines = list(same.values()), {}
    for number, line in enumerate(lines.values()):
        # Next to each other, since presses that hold equally many entries cost the same.
        aside = 0.018 * span * (number - (len(lines) - 1) / 2)
        colour = _COLOURS[number % len(_COLOURS)]
        for row in (row for row in line if row.keep_ratio is None):
            # It has no place on this axis.
            (level,) = _finite([panel.value(row)])
            axes.axhline(level, color=colour, linewidth=1.3, linestyle="--" if row.vacuous else "-.")
            drawn.append(level)
        line = [row for row in line if row.keep_ratio is not None]
        x, y = [(row.keep_ratio or 0) + aside for row in line], _finite([panel.value(row) for row in line])
        drawn += y
        for place, row in zip(x, line, strict=True):
            interval = panel.interval(row)
            if interval is not None and (row.keep_ratio != 1 or interval[0] < interval[1]):
                axes.plot([place] * 2, interval, color=colour, linewidth=1, marker="_", markersize=5)
                drawn += interval
        _marks(axes, x, y, line, number)
    axes.xaxis.set_major_locator(MaxNLocator(6) if crowded else FixedLocator(ratios))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
    axes.set_xlim(ratios[0] - 0.07 * span, ratios[-1] + 0.07 * span)
    finite = [value for value in drawn if math.isfinite(value)]
    if panel.logarithmic:
        _scale(axes, finite)
    if panel.level is not None:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.9), max(high, 1.1))  # so that noise alone looks like noise
        axes.axhline(panel.level, color=_GREY, linewidth=1, linestyle="--", zorder=1)
    elif panel.share:
        middle = (max(finite, default=1) + min(finite, default=0)) / 2
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, middle - 5), max(high, middle + 5))
    else:
        axes.set_ylim(0, 1.1 * max((number for number in finite if number > 0), default=1))


def overview(rows: Sequence[Row], columns: int = 3) -> Figure:
    """Measured quantities over the keep ratio: a panel each, a line per press, in this many columns."""
    with rc_context(_STYLE):
        panels = list(_panels(rows))
        lines = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(_WIDTH if columns > 1 else _NARROW, 3.0 * lines + (0.4 if columns > 1 else 1.2)))
        grid = figure.subplots(lines, columns, squeeze=False)
        for cell, axes in enumerate(grid.flat):
            if cell < len(panels):
                _draw(panels[cell], axes, rows)
            else:
                axes.set_axis_off()
        _legend(figure, rows)
    return figure


def _annotate(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str]) -> None:
    """Label each point where the text overlaps least, with a line if it is far."""
    places = axes.transData.transform(points)
    taken = [np.concatenate([places - 4, places + 4], axis=1)]
    for line in axes.lines:
        path = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
        for start, end in pairwise(path if line.get_transform() == axes.transData else []):
            dots = np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 3))
            taken.append(np.concatenate([dots - 0.5, dots + 0.5], axis=1))
    frame = axes.get_window_extent()
    turns = np.radians([60, 120, 300, 240, 90, 270, 30, 150, 330, 210, 0, 180])
    for place, point, text, colour in zip(places, points, texts, colours, strict=True):
        half = np.array([2.7 * len(text), 4.5])
        best, shift, far = math.inf, half, False
        for distance in (5, 10, 16, 24, 34, 46):
            for turn in turns:
                offset = np.array([math.cos(turn), math.sin(turn)]) * (half + distance)
                low, high = place + offset - half, place + offset + half
                boxes = np.concatenate(taken)
                sides = np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2])
                outside = (low < frame.min).any() or (high > frame.max).any()
                cost = sides.clip(min=0).prod(axis=1).sum() + 1e4 * outside + distance / 10
                if cost < best - 1e-9:
                    best, shift, far = cost, offset, distance > 10
        taken.append(np.concatenate([place + shift - half, place + shift + half])[None])
        axes.annotate(
            text,
            point,
            tuple(shift),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=tuple(0.65 * part for part in to_rgb(colour)),  # dark enough to be read
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 3} if far else None,
        ).set_in_layout(False)


def trade_off(rows: Sequence[Row], narrow: bool = False) -> Figure:
    """Gain of a press against its change in perplexity: speed if all rows have times, otherwise memory."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(_NARROW, 5.2) if narrow else (_WIDTH, 5.8))
        axes = figure.subplots()
        fast = all(row.tpot_ratio for row in rows)
        points, texts, colours = [], [], []
        for number, line in enumerate(series(rows).values()):
            colour = _COLOURS[number % len(_COLOURS)]
            shown = []
            for row in line:
                gain = 1 / row.tpot_ratio if fast and row.tpot_ratio else relative(row, rows, lambda one: one.kv_bytes)
                if gain is None or not math.isfinite(row.ppl_change) or row.keep_ratio == 1:
                    continue
                if fast and row.tpot_interval:
                    ends = [1 / end for end in row.tpot_interval]
                    axes.plot(ends, [100 * row.ppl_change] * 2, color=colour, linewidth=0.8, alpha=0.6)
                if row.ppl_interval:
                    ends = [100 * end for end in row.ppl_interval]
                    axes.plot([gain] * 2, ends, color=colour, linewidth=0.8, alpha=0.6)
                shown.append((row, gain, 100 * row.ppl_change))
            _marks(axes, [x for _, x, _ in shown], [y for _, _, y in shown], [row for row, _, _ in shown], number)
            points += [(x, y) for _, x, y in shown]
            texts += [row.ratio for row, _, _ in shown]
            colours += [colour] * len(shown)
        judged, band = not any(row.warnings for row in rows), rows[0].bands[0]
        if judged:
            axes.axhline(100 * band, color="#5a9a68", linewidth=1, zorder=1)
        axes.axhline(0, color=_GREY, linewidth=1, linestyle="--", zorder=1)
        axes.axvline(1, color=_GREY, linewidth=1, linestyle="--", zorder=1)
        if max((abs(y) for _, y in points), default=0) > 100:
            # Linear in the usual bands and near them, logarithmic beyond.
            axes.set_yscale("symlog", linthresh=30, linscale=2)
            powers = [factor * 10**power for power in range(2, 9) for factor in (1, 3)]
            axes.yaxis.set_major_locator(FixedLocator([-20, -10, 0, 10, 20, 30, *powers]))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+,.6g} %" if y else "0 %"))
        axes.margins(0.07)
        x_limits, y_limits = axes.get_xlim(), axes.get_ylim()
        if judged:
            better = (1, x_limits[1]) if fast else (x_limits[0], 1)
            axes.fill_between(better, y_limits[0], 100 * band, color=_BETTER, zorder=0)
        rise, memory = QUANTITIES["ppl_change"], QUANTITIES["kv_bytes"]
        bent = "\n(linear to 30 %, logarithmic beyond)" if axes.get_yscale() == "symlog" else ""
        axes.set(xlim=x_limits, ylim=y_limits, ylabel=f"{rise.name}, {rise.direction}{bent}")
        axes.set_xlabel(
            textwrap.fill(
                f"speed relative to uncompressed (1 / {QUANTITIES['tpot_ratio'].name}), more is better"
                if fast
                else f"memory of {memory.name} relative to uncompressed, {memory.direction}",
                40 if narrow else 110,
            )
        )
        corner = f"{'faster' if fast else 'smaller'}, and perplexity {band_names(rows[0].bands)[0]}"
        corners = [Patch(facecolor=_BETTER, edgecolor="#5a9a68", label=corner)] if judged else []
        _legend(figure, rows, *corners)
        if points:
            figure.draw_without_rendering()  # only now is it known where the points are
            _annotate(axes, points, texts, colours)
    return figure


def _shares(evicted_at: Tensor, pixels: int) -> np.ndarray[Any, Any]:
    """Share of heads that hold a key, ``[queries, keys]``, at most ``pixels`` each; NaN before the key is fed.

    Queries are sampled and keys averaged, from ``evicted_at`` ``[K, T]``.
    """
    heads, tokens = evicted_at.shape
    step = math.ceil(tokens / pixels)
    queries = torch.arange(step - 1, tokens + step - 1, step).clamp(max=tokens - 1)[:, None]
    keys = torch.arange(tokens)
    held = torch.zeros(len(queries), tokens)
    for head in evicted_at:
        held += (keys <= queries) & (queries < head)
    fed = (keys <= queries).float()
    held, fed = (
        torch.nn.functional.pad(part, (0, -tokens % step)).view(len(queries), -1, step).sum(dim=-1)
        for part in (held, fed)
    )
    return (held / (heads * fed)).numpy()


def evicting(evicted_at: Sequence[Tensor]) -> list[int]:
    """Layers that evicted something."""
    return [layer for layer, table in enumerate(evicted_at) if int(table.min()) < table.shape[-1]]


def eviction_map(title: str, evicted_at: Sequence[Tensor]) -> Figure:
    """Map of the tokens held over time, from one ``[1, K, T]`` per layer, see ``pressgauge.history``.

    Layers that evicted something, of which there must be one, have a panel; the title names the others.
    """
    layers = evicting(evicted_at)
    idle = [str(layer) for layer in range(len(evicted_at)) if layer not in layers]
    if idle:
        title += f"; nothing evicted in layer{'s' * (len(idle) > 1)} {', '.join(idle)}"
    evicted_at = [evicted_at[layer] for layer in layers]
    with rc_context({**_STYLE, "axes.grid": False, "axes.titleweight": "normal"}):
        columns = min(4, len(evicted_at))
        lines = math.ceil(len(evicted_at) / columns)
        side = min(3.2, (_WIDTH - 2.1) / columns)
        figure = Figure(figsize=(side * columns + 2.1, (side + 0.2) * lines + 0.75), layout="compressed")
        grid = figure.subplots(lines, columns, squeeze=False)
        colours = LinearSegmentedColormap.from_list("held", ["#000000", "#b8d4ee"])
        image = None
        for number, axes in enumerate(grid.flat):
            if number >= len(evicted_at):
                axes.set_axis_off()
                continue
            table = evicted_at[number][0].cpu()
            tokens = table.shape[-1]
            shares = _shares(table, 512 if len(evicted_at) <= 4 else 192)
            image = axes.imshow(
                shares,
                cmap=colours,
                vmin=0,
                vmax=1,
                extent=(0, tokens, tokens, 0),
                interpolation="none",
            )
            axes.set_title(f"layer {layers[number]}", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.label_outer()
            if number % columns == 0:
                axes.set_ylabel("time (query)")
            if number + columns >= len(evicted_at):
                axes.set_xlabel("token (key)")
                axes.tick_params(labelbottom=True)
        figure.suptitle(textwrap.fill(title, int(13 * figure.get_figwidth())), ha="left", x=0.01, fontsize=10)
        assert image is not None
        bar = figure.colorbar(
            image, ax=list(grid.flat), ticks=[0, 0.5, 1], aspect=30, shrink=min(1, 2 / lines), anchor=(0, 1)
        )
        bar.ax.set_yticklabels(["evicted in\nall heads", "in half", "held by\nall heads"])
        bar.set_label("white: not yet fed")
    return figure


def sentence(correlation: Tensor) -> str:
    """Summary of ``[layers, K]`` correlations with respect to KnormPress's assumption."""
    known = correlation[~correlation.isnan()]
    if not known.numel():
        return "No correlation is defined: in each head, all counted keys have the same norm, or too few are counted."
    below, above, median = int((known < CLEARLY).sum()), int((known > 0).sum()), float(known.quantile(0.5))
    return (
        f"KnormPress assumes clearly negative numbers. Below {CLEARLY:g} here: {below} of {known.numel()} heads; "
        f"above 0: {above}; median: {median:+.2f}."
    )


def norm_attention_map(correlation: Tensor) -> Figure:
    """Heat map of the ``[layers, K]`` rank correlations of key norm and attention received."""
    with rc_context({**_STYLE, "axes.grid": False}):
        layers, heads = correlation.shape
        numbers = correlation.numel() <= _NUMBERS
        figure = Figure(figsize=(min(_WIDTH, max(7.0, 0.6 * heads + 2)), (0.4 if numbers else 0.22) * layers + 1.4))
        axes = figure.subplots()
        shown = np.ma.masked_invalid(correlation.numpy())
        image = axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="none")
        axes.set(xlabel="KV head", ylabel="layer", facecolor="#dddddd")
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(16, integer=True))
        for (layer, head), number in np.ndenumerate(correlation.numpy() if numbers else np.empty((0, 0))):
            text = "not defined" if math.isnan(number) else f"{number:+.2f}"
            axes.text(head, layer, text, ha="center", va="center", color="white" if abs(number) > 0.6 else "black")
        if correlation.isnan().any():
            figure.legend(handles=[Patch(facecolor="#dddddd", label="not defined")], loc="outside lower right")
        figure.colorbar(
            image, ax=axes, label="Spearman correlation", ticks=[-1, -0.5, 0, 0.5, 1], fraction=0.05, aspect=25
        )
        text = textwrap.fill(sentence(correlation), int(11.5 * figure.get_figwidth()))
        figure.suptitle(text, ha="left", x=0.01, fontsize=10)
    return figure


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element whose ids begin with ``name``; the same figure gives the same text.

    Its layout is that of this file from now on, since a layout takes as long as a drawing.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=144, metadata=nothing)
    figure.set_layout_engine("none")
    text = buffer.getvalue()
    found: Counter[str] = Counter()

    def own(tag: re.Match[str]) -> str:
        def numbered(identity: re.Match[str]) -> str:
            found[identity[1]] += 1  # images that are equal have equal ids
            return f' id="{name}-{identity[1]}{f"-{found[identity[1]]}" if found[identity[1]] > 1 else ""}"'

        return re.sub(r'((?<=href="#)|(?<=url\(#))', f"{name}-", re.sub(r'\sid="([^"]*)"', numbered, tag[0]))

    return re.sub(r"<[^>]*>", own, text[text.index("<svg") :])


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()
