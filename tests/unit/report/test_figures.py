"""Figures show the measurements, and their SVG can be embedded in any page."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text

from pressgauge.bench.metrics import Measured
from pressgauge.bench.row import Row
from pressgauge.history import NEVER
from pressgauge.report import figures

BASE = Row(
    press="knorm",
    schedule="budget",
    keep_ratio=1.0,
    prune_after=64,
    skip_layers=(),
    model="tiny",
    text="noise",
    dtype="float32",
    device="cpu",
    ppl=4.0,
    ppl_change=0.0,
    ppl_interval=(0.0, 0.0),
    ppl_interval_units="24 blocks of 3 samples",
    accuracy=0.5,
    scored_tokens=511,
    affected_tokens=0,
    evictions=0,
    held=(512, 512),
    kv_bytes=1 << 20,
    vacuous=False,
)
TIMES: dict[str, Any] = {
    "ttft_ratio": 1.0,
    "ttft_interval": (0.9, 1.25),
    "tpot_ratio": 0.5,
    "tpot_interval": (0.4, 0.8),
    "ttft": 0.03,
    "tpot": 0.002,
    "tokens_per_second": 400.0,
    "peak_memory_bytes": 3 << 20,
    "peak_memory_of": "cache",
}


def pressed(ratio: float, change: float, **changes: Any) -> Row:
    """A row that compresses."""
    numbers: dict[str, Any] = {"keep_ratio": ratio, "ppl": 4 * (1 + change), "kv_bytes": int(ratio * (1 << 20))}
    numbers |= {"ppl_change": change, "ppl_interval": (change - 0.05, change + 0.05)}
    return replace(BASE, **{**numbers, "affected_tokens": 400, "evictions": 100, **changes})


def rows(*presses: str, **changes: Any) -> list[Row]:
    """Three ratios of each press."""
    return [
        replace(row, press=press, **changes)
        for press in presses or ("knorm",)
        for row in (BASE, pressed(0.7, 0.1), pressed(0.3, 0.5))
    ]


def titles(figure: Figure) -> list[str]:
    """Titles of the visible panels."""
    return [title for axes in figure.axes if axes.axison and (title := axes.get_title(loc="left"))]


def legend(figure: Figure) -> list[str]:
    """Texts of the figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def panel(figure: Figure, title: str) -> Axes:
    """The panel with this title."""
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def path(line: Line2D) -> list[tuple[float, float]]:
    """Points of a line."""
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def points(axes: Axes, hollow: bool | None = None) -> list[tuple[float, float]]:
    """Markers of rows; all, or only hollow or filled ones."""
    found = []
    for line in axes.lines:
        if line.get_linestyle() == "None" and line.get_marker() != "_":
            empty = same_color(str(line.get_markerfacecolor()), "white")
            if hollow is None or hollow == empty:
                found += path(line)
    return found


def eviction_tables(layers: int, heads: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random tables: about half of the tokens are evicted some time after they are fed."""
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for _ in range(layers):
        gone = torch.arange(tokens) + torch.randint(1, tokens + 1, (1, heads, tokens), generator=generator)
        tables.append(torch.where(gone > tokens, NEVER, gone).int())
    return tuple(tables)


MAKERS: dict[str, Callable[[], Figure]] = {
    "overview": lambda: figures.overview(rows("knorm", "random")),
    "trade-off": lambda: figures.trade_off(rows("knorm", "random", **TIMES)),
    "map": lambda: figures.eviction_map("tiny on noise", eviction_tables(3, 2, 40)),
    "heat": lambda: figures.norm_attention_map(torch.tensor([[0.5, -0.5], [math.nan, 0.1]])),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_input_gives_the_same_bytes(name: str) -> None:
    """Figures are deterministic, without dates or random ids."""
    assert figures.to_svg(MAKERS[name](), "same") == figures.to_svg(MAKERS[name](), "same")


@pytest.mark.parametrize("name", MAKERS)
def test_an_svg_is_self_contained_with_unique_ids(name: str) -> None:
    """All references are internal, and ids are unique and begin with the figure's name."""
    svg = figures.to_svg(MAKERS[name](), "mine")
    root = ElementTree.fromstring(svg)
    values = [value for element in root.iter() for value in element.attrib.values()]
    assert not [value for value in values if "//" in value.split("base64")[0]]
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert ids
    assert len(ids) == len(set(ids))
    assert all(identity.startswith("mine-") for identity in ids)
    references = re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", svg)
    assert {one or other for one, other in references} <= set(ids)
    assert "<metadata" not in svg
    assert "DOCTYPE" not in svg


@pytest.mark.parametrize("name", MAKERS)
def test_texts_of_an_svg_are_texts_in_a_generic_font(name: str) -> None:
    """Texts are searchable and accessible text elements, in a generic font."""
    root = ElementTree.fromstring(figures.to_svg(MAKERS[name](), "mine"))
    texts = [element for element in root.iter() if element.tag.endswith("}text")]
    assert len(texts) > 3
    assert all(re.search(r"sans-serif\s*(;|$)", element.attrib["style"]) for element in texts)


@pytest.mark.parametrize("name", MAKERS)
def test_matplotlib_settings_are_unchanged(name: str) -> None:
    """matplotlib's settings do not change."""
    before = dict(mpl.rcParams)
    figures.to_svg(MAKERS[name](), "mine")
    assert dict(mpl.rcParams) == before


def test_text_that_looks_like_an_id_is_unchanged() -> None:
    """A title may contain text that looks like an id."""
    svg = figures.to_svg(figures.eviction_map('x id="y" url(#z) <&$a_b$', eviction_tables(1, 1, 8)), "mine")
    root = ElementTree.fromstring(svg)
    assert 'x id="y" url(#z) <&$a_b$' in [element.text for element in root.iter()]


def test_an_overview_shows_six_quantities_and_without_times_three() -> None:
    """An overview has six panels, and three without times."""
    times = ["time to first token (TTFT)", "time per later token (TPOT)", "speed"]
    assert titles(figures.overview(rows(**TIMES))) == ["perplexity", "accuracy", "memory of the cache", *times]
    assert titles(figures.overview(rows())) == ["perplexity", "accuracy", "keys and values"]


@pytest.mark.parametrize(
    ("kinds", "title"),
    [(("device",) * 3, "memory of the device"), (("cache",) * 3, "memory of the cache")]
    + [(kinds, "keys and values") for kinds in (("device", "device", None), ("device", "cache", "cache"))],
)
def test_memory_of_different_kinds_is_never_in_one_panel(kinds: tuple[str | None, ...], title: str) -> None:
    """Panels of memory have rows of one kind only, by default keys and values."""
    mixed = [
        replace(row, peak_memory_of=kind, peak_memory_bytes=None if kind is None else 1 << 20)
        for row, kind in zip(rows(**TIMES), kinds, strict=True)
    ]
    assert title in titles(figures.overview(mixed))


def bars(axes: Axes) -> list[list[float]]:
    """Ends of the intervals."""
    return [[y for _, y in path(line)] for line in axes.lines if line.get_marker() == "_"]


def test_each_quantity_is_drawn_once_with_its_interval() -> None:
    """Times, sizes and perplexity are relative to uncompressed; others are in the unit of the axis."""
    figure = figures.overview([replace(row, **TIMES) for row in rows()])
    axes = panel(figure, "time to first token (TTFT)")
    assert axes.get_ylabel() == "relative to uncompressed\nless is better"
    assert [y for _, y in points(axes)] == pytest.approx([1.0] * 3)
    assert bars(axes) == [[0.9, 1.25]] * 3
    axes = panel(figures.overview(rows()), "keys and values")
    assert sum(points(axes), ()) == pytest.approx((1, 1, 0.7, 0.7, 0.3, 0.3), abs=1e-5)
    axes = panel(figures.overview(rows()), "perplexity")
    assert [y for _, y in points(axes)] == pytest.approx([1, 1.1, 1.5])
    assert bars(axes) == [pytest.approx([1.05, 1.15]), pytest.approx([1.45, 1.55])]
    axes = panel(figures.overview(rows(**TIMES)), "speed")
    assert axes.get_ylabel() == "tokens per second\nmore is better"
    assert [y for _, y in points(axes)] == pytest.approx([400] * 3)


def test_distances_are_drawn_with_their_intervals() -> None:
    """KL divergence in nats from 0, and agreement in percent of tokens over at least 10 of them."""
    distances: dict[str, Any] = {
        "kl_divergence": 0.2,
        "kl_interval": (0.1, 0.3),
        "agreement": 0.9,
        "agreement_interval": (0.89, 0.91),
    }
    found = [replace(row, **distances) if row.keep_ratio != 1 else row for row in rows()]
    whole: dict[str, Any] = {
        "kl_divergence": 0.0,
        "kl_interval": (0.0, 0.0),
        "agreement": 1.0,
        "agreement_interval": (1.0, 1.0),
    }
    figure = figures.overview([replace(found[0], **whole), *found[1:]])
    axes = panel(figure, "KL divergence")
    assert (axes.get_ylabel(), axes.get_ylim()[0]) == ("nats per token\nless is better", 0)
    assert [y for _, y in points(axes)] == [0, 0.2, 0.2]
    assert bars(axes) == [[0.1, 0.3]] * 2
    axes = panel(figure, "top-1 agreement")
    assert axes.get_ylabel() == "% of tokens\nmore is better"
    assert bars(axes) == [pytest.approx([89, 91])] * 2
    low, high = axes.get_ylim()
    assert high - low >= 10


def test_values_that_all_presses_have_are_one_line() -> None:
    """Presses that hold equally many entries are not drawn as if they differed."""
    axes = panel(figures.overview(rows("knorm", "random")), "keys and values")
    assert [text.get_text() for text in axes.texts] == ["the same for all presses"]
    assert [len(path(line)) for line in axes.lines if line.get_marker() == "o"] == [3]
    differing = [*rows("knorm"), *(replace(row, kv_bytes=(row.kv_bytes or 0) + 9) for row in rows("random"))]
    assert not panel(figures.overview(differing), "keys and values").texts


def test_a_declared_metric_has_a_panel() -> None:
    """A metric with ``drawn`` has a panel with its values, and another one has none."""
    own = [
        replace(row, metrics=(Measured("m:f", "own", "it", row.keep_ratio or 0.0, "nats", "less", drawn=drawn),))
        for drawn in (True,)
        for row in rows()
    ]
    axes = panel(figures.overview(own), "own")
    assert [y for _, y in points(axes)] == [1.0, 0.7, 0.3]
    plain = [replace(row, metrics=(replace(row.metrics[0], drawn=False),)) for row in own]
    assert "own" not in titles(figures.overview(plain))


def test_a_narrow_overview_has_one_column() -> None:
    """It fits a screen of 400 pixels without being scaled down."""
    figure = figures.overview(rows(), columns=1)
    assert figure.get_figwidth() * 96 < 400
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == 1
    assert figures.trade_off(rows(), narrow=True).get_figwidth() * 96 < 400


def test_vacuous_rows_are_hollow_and_named() -> None:
    """Vacuous rows have hollow markers and a legend entry."""
    empty = [*rows("knorm"), BASE, pressed(0.9, 0.0, vacuous=True, press="random")]
    for figure in (figures.overview(empty), figures.trade_off(empty)):
        axes = figure.axes[-1]
        assert len(points(axes, hollow=True)) == 1
        assert points(axes, hollow=False)
        assert "hollow: vacuous, says nothing (random 0.9)" in legend(figure)
    assert not any("vacuous" in text for text in legend(figures.overview(rows())))


def test_nan_is_listed_in_the_legend() -> None:
    """NaN is listed in the legend of both figures."""
    broken = [*rows(), pressed(0.3, math.nan, ppl=math.nan), pressed(0.2, math.inf, ppl=math.inf)]
    for figure in (figures.overview(broken), figures.trade_off(broken)):
        assert "perplexity not drawn: not a number or infinite (knorm 0.3, 0.2)" in legend(figure)
    assert not any("not drawn" in text for text in legend(figures.overview(rows())))


def test_without_a_verdict_there_is_no_good_corner() -> None:
    """Without verdicts, points are drawn, the legend gives the reason, and no corner is highlighted."""
    warned = [replace(row, warnings=("the model guesses",)) for row in rows()]
    for figure in (figures.overview(warned), figures.trade_off(warned)):
        assert "no verdict: the model guesses" in legend(figure)
    figure, usual = figures.trade_off(warned), figures.trade_off(rows())
    assert points(figure.axes[0]) == points(usual.axes[0])
    assert len(usual.axes[0].lines) - len(figure.axes[0].lines) == 1
    assert (len(figure.axes[0].collections), len(usual.axes[0].collections)) == (0, 1)
    assert any("within +20 %" in text for text in legend(usual))
    assert not any("within" in text for text in legend(figure))


def test_each_press_has_its_own_colour_and_marker() -> None:
    """Each press has its own colour and marker, and one legend entry."""
    names = ["a", "b", "c", "d", "e", "f", "g"]
    figure = figures.overview(rows(*names))
    assert legend(figure) == names
    handles = figure.legends[0].get_lines()
    assert len({line.get_color() for line in handles}) == len({line.get_marker() for line in handles}) == 7


def test_presses_that_differ_in_a_setting_are_separate_lines() -> None:
    """Presses with different settings are separate lines, labelled with the differing settings only."""
    both = [*rows(), *rows(schedule="step")]
    assert list(figures.series(both)) == ["knorm, schedule budget", "knorm, schedule step"]
    assert [row.keep_ratio for row in figures.series(both)["knorm, schedule step"]] == [1.0, 0.7, 0.3]
    assert list(figures.series(rows())) == ["knorm"]


def test_a_row_is_compared_with_the_uncompressed_row_of_its_own_dtype() -> None:
    """A row is relative to the uncompressed row of its own dtype."""
    half = rows(dtype="bfloat16")
    half = [replace(row, kv_bytes=(row.kv_bytes or 0) // 2) for row in half]
    every = [*rows(), *half]
    assert figures.relative(half[1], every, lambda row: row.kv_bytes) == pytest.approx(0.7, abs=1e-5)
    assert figures.relative(pressed(0.7, 0.1), [pressed(0.7, 0.1)], lambda row: row.kv_bytes) is None


def test_numbers_that_are_none_or_not_finite_are_left_out() -> None:
    """None and non-finite numbers are left out, and other points are drawn."""
    broken = [BASE, pressed(0.7, 0.1), pressed(0.5, math.inf), pressed(0.3, math.nan)]
    axes = panel(figures.overview(broken), "perplexity")
    assert [y for _, y in points(axes) if math.isfinite(y)] == [1.0, pytest.approx(1.1)]
    assert len(points(figures.trade_off(broken).axes[0])) == 1
    figures.to_svg(figures.trade_off([BASE]), "nothing")
    figures.to_svg(figures.overview([pressed(0.3, math.nan, ppl=math.nan, accuracy=math.nan)]), "nothing")


def test_a_trade_off_is_of_speed_where_every_row_has_times_and_of_memory_elsewhere() -> None:
    """A trade-off shows speed if all rows have times, otherwise memory, with a corner below a rise of 20 % on the side
    of the gain."""
    fast = figures.trade_off(rows(**TIMES)).axes[0]
    assert "speed" in fast.get_xlabel()
    assert sum(points(fast), ()) == pytest.approx((2, 10, 2, 50))
    bars = [path(line) for line in fast.lines if line.get_alpha()]
    assert [sorted(x for x, _ in bar) for bar in bars[::2]] == [[1.25, 2.5]] * 2
    assert [y for bar in bars[1::2] for _, y in bar] == pytest.approx([5, 15, 45, 55])
    small = figures.trade_off([*rows(), *rows("random", **TIMES)]).axes[0]
    assert "memory" in small.get_xlabel()
    for axes, inside in ((fast, (2.0, 10.0)), (small, (0.5, 10.0))):
        corner = axes.collections[0].get_paths()[0]
        assert corner.contains_point(inside)
        assert not corner.contains_point((inside[0], 25.0))
        assert not corner.contains_point((1 / inside[0], 10.0))


def test_the_corner_is_that_of_the_rows_bands() -> None:
    """Edge and label of the corner follow the rows' bands."""
    figure = figures.trade_off([replace(row, bands=(0.05, 0.4)) for row in rows()])
    (corner,) = figure.axes[0].collections[0].get_paths()
    assert "smaller, and perplexity within +5 %" in legend(figure)
    assert corner.contains_point((0.5, 4.9))
    assert not corner.contains_point((0.5, 5.1))


def test_the_first_band_remains_visible_beside_a_huge_change() -> None:
    """The first band keeps a fifth of the height next to +80,000 %."""
    changes = {0.9: 0.02, 0.7: 0.19, 0.5: 3.0, 0.3: 800.0}
    axes = figures.trade_off([BASE, *(pressed(ratio, change) for ratio, change in changes.items())]).axes[0]
    low, high = (axes.transAxes.inverted().transform(axes.transData.transform((0.5, y)))[1] for y in (0, 20))
    assert high - low > 0.15
    assert [y for _, y in points(axes)] == pytest.approx([2, 19, 300, 80_000])


def test_labels_of_close_points_do_not_overlap() -> None:
    """Labels of close points do not overlap and are inside the axes."""
    close = [
        pressed(round(0.9 - 0.05 * number, 2), 0.1 + 0.004 * number, press=press, kv_bytes=700_000 + 4000 * number)
        for press in ("knorm", "random", "keydiff")
        for number in range(5)
    ]
    figure = figures.trade_off([BASE, *close])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert sorted(label.get_text() for label in labels) == sorted(f"{row.keep_ratio:g}" for row in close)
    # Without the line to its point, which is part of an annotation's extent.
    boxes = [Text.get_window_extent(label) for label in labels]
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            width = min(one.x1, other.x1) - max(one.x0, other.x0)
            height = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(width, height) < 3


def shares(table: list[list[int]], step: int, line: int) -> list[float | None]:
    """A line of an eviction map: the last query of a step, averaged over the keys of each step and all heads."""
    tokens = len(table[0])
    query = min((line + 1) * step, tokens) - 1
    pixels: list[float | None] = []
    for first in range(0, tokens, step):
        fed = range(first, min(first + step, query + 1))
        held = [query < head[key] for head in table for key in fed]
        pixels.append(sum(held) / len(held) if held else None)
    return pixels


@pytest.mark.parametrize(("tokens", "step"), [(2, 1), (40, 1), (512, 1), (513, 2), (1200, 3)])
def test_an_eviction_map_shows_the_share_of_heads_that_hold_a_token(tokens: int, step: int) -> None:
    """A map has one pixel per query up to 512 tokens, and longer texts are averaged."""
    tables = eviction_tables(1, 2, tokens, seed=tokens)
    (image,) = figures.eviction_map("map", tables).axes[0].images
    drawn = np.ma.filled(np.ma.asarray(image.get_array()), math.nan).tolist()
    count = math.ceil(tokens / step)
    assert len(drawn) == count <= 512
    for line in {*range(0, count, 29), count - 1}:
        expected = shares(tables[0][0].tolist(), step, line)
        assert [None if math.isnan(value) else value for value in drawn[line]] == pytest.approx(expected)
    assert list(image.get_extent()) == [0, tokens, tokens, 0]
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_the_colours_of_an_eviction_map() -> None:
    """Evicted in all heads is black, held is light, and not yet fed is white."""
    axes = figures.eviction_map("map", eviction_tables(1, 2, 8)).axes[0]
    colours = axes.images[0].cmap
    assert same_color(colours(0.0), "black")
    assert 0.6 < min(colours(1.0)[:3]) < 0.8
    assert colours.get_bad()[3] == 0
    assert same_color(axes.get_facecolor(), "white")


def test_many_layers_are_a_grid_of_at_most_four_columns_in_a_small_file() -> None:
    """Panels are labelled with layers and missing evictions, in at most four columns and a small file."""
    tables = list(eviction_tables(10, 2, 600))
    tables[0] = torch.full_like(tables[0], NEVER)
    title = "an-organisation/a-model on wikitext-2: streaming-llm, keep ratio 0.5, schedule budget"
    figure = figures.eviction_map(title, tables)
    shown = [axes for axes in figure.axes if axes.images]
    expected = [f"layer {number}" for number in range(1, 10)]
    assert [axes.get_title(loc="left") for axes in shown] == expected
    assert len({round(axes.get_position().x0, 3) for axes in shown}) == 4
    svg = figures.to_svg(figure, "many")
    assert title in svg
    assert "nothing evicted in layer 0" in svg
    assert len(svg) < 500_000


@pytest.mark.parametrize(("shape", "numbers"), [((2, 3), 6), ((10, 10), 100), ((24, 8), 0)])
def test_a_heat_map_has_numbers_in_its_cells_while_these_can_be_read(shape: tuple[int, int], numbers: int) -> None:
    """Cells have numbers as long as they are legible, and colours are symmetric about 0."""
    figure = figures.norm_attention_map(torch.linspace(-0.5, 0.9, shape[0] * shape[1]).view(shape))
    axes = figure.axes[0]
    assert len(axes.texts) == numbers
    if numbers:
        assert axes.texts[0].get_text() == "-0.50"
    norm = axes.images[0].norm
    assert (norm.vmin, norm.vmax) == (-1, 1)


def test_an_undefined_correlation_is_marked() -> None:
    """An undefined correlation is marked in its cell and in the legend."""
    figure = figures.norm_attention_map(torch.tensor([[math.nan, 0.5]]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["not defined", "+0.50"]
    assert legend(figure) == ["not defined"]
    assert not figures.norm_attention_map(torch.tensor([[0.1, 0.5]])).legends


def test_the_sentence_counts_the_heads_for_which_the_assumption_holds() -> None:
    """The sentence counts heads with a correlation only."""
    table = torch.tensor([[-0.8, -0.31, -0.29], [0.2, math.nan, 0.4]])
    assert figures.sentence(table) == (
        "KnormPress assumes clearly negative numbers. Below -0.3 here: 2 of 5 heads; above 0: 2; median: -0.29."
    )
    assert "No correlation is defined" in figures.sentence(torch.full((2, 2), math.nan))
