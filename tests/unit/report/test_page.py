"""The page of a report: self-contained and complete, with notes on the interpretation of its numbers."""

import base64
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from pressgauge import KnormPress, perplexity
from pressgauge.bench.results import read_results
from pressgauge.bench.row import Row, Source, make_row
from pressgauge.conformance import architectures
from pressgauge.formats import DASH
from pressgauge.history import NEVER
from pressgauge.norm_attention import norm_attention
from pressgauge.report import figures
from pressgauge.report.conclusion import conclusion, short_names
from pressgauge.report.page import summary, write_report

PROVENANCE = {"torch": "2.13.0", "command": "pressgauge measure --report out"}
UNCOMPRESSED = Row(
    press="knorm",
    schedule="budget",
    keep_ratio=1.0,
    prune_after=64,
    skip_layers=(0,),
    model="tiny",
    text="noise",
    dtype="float32",
    device="cpu",
    ppl=4.0,
    ppl_change=0.0,
    ppl_interval=(0.0, 0.0),
    ppl_interval_units="24 blocks of 3 samples",
    accuracy=0.5,
    scored_tokens=3069,
    affected_tokens=0,
    evictions=0,
    held=(1024, 1024),
    kv_bytes=1 << 20,
    vacuous=False,
    kl_divergence=0.0,
    kl_interval=(0.0, 0.0),
    agreement=1.0,
    agreement_interval=(1.0, 1.0),
)
GOOD = replace(
    UNCOMPRESSED,
    keep_ratio=0.7,
    ppl=4.4,
    ppl_change=0.1,
    ppl_interval=(0.05, 0.15),
    affected_tokens=2874,
    evictions=12_345,
    held=(1024, 717),
    kv_bytes=734_003,
    kl_divergence=0.0512,
    kl_interval=(0.04, 0.06),
    agreement=0.905,
    agreement_interval=(0.88, 0.93),
)
BAD = replace(
    GOOD, keep_ratio=0.3, ppl=4000.0, ppl_change=999.0, ppl_interval=(900.0, 1100.0), accuracy=0.123, kv_bytes=314_573
)
VACUOUS = replace(UNCOMPRESSED, keep_ratio=0.9, vacuous=True)
TIMES: dict[str, Any] = {
    "ttft_ratio": 1.01,
    "ttft_interval": (0.98, 1.03),
    "tpot_ratio": 0.912,
    "tpot_interval": (0.9, 1.02),
    "ttft": 0.03,
    "tpot": 0.002,
    "tokens_per_second": 1234.5,
    "peak_memory_bytes": 5 << 20,
    "peak_memory_of": "device",
}
VOID = {"meta", "link", "img", "br", "hr", "input", "source", "base"}


@dataclass
class Page(HTMLParser):
    """Parser of a page's elements and texts."""

    source: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    _open: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()
        assert not self._open, "tags that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the element, and begin a table, row or cell."""
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")
        elif ("class", "warning") in attrs:
            self.warnings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an SVG element without content."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Check that the element is the last one opened."""
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        """Add a text to the open elements."""
        names = [tag for tag, _ in self._open]
        if "style" in names:
            self.styles.append(data)
            return
        self.texts.append(data)
        if {"td", "th"} & set(names):
            self.tables[-1][-1][-1] += data
        if "h2" in names:
            self.headings[-1] += data
        if any(attributes.get("class") == "warning" for _, attributes in self._open):
            self.warnings[-1] += data

    @property
    def text(self) -> str:
        """All texts in one line."""
        return " ".join(" ".join(self.texts).split())

    @property
    def cells(self) -> list[dict[str, str]]:
        """Rows of all tables, by the headings of their columns."""
        return [dict(zip(table[0], row, strict=True)) for table in self.tables for row in table[1:]]


def write(folder: Path, rows: Sequence[Row], **changes: Any) -> Page:
    """Write and parse a report of these rows."""
    arguments: dict[str, Any] = {"maps": {}, "correlations": {}, "provenance": PROVENANCE, **changes}
    return Page(write_report(folder / "out", rows, **arguments).read_text(encoding="utf-8"))


@pytest.fixture
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, for tests of texts."""
    for name in ("overview", "trade_off"):
        monkeypatch.setattr(figures, name, lambda rows, **options: Figure())
    monkeypatch.setattr(figures, "to_svg", lambda figure, name: f'<svg id="{name}"></svg>')
    monkeypatch.setattr(figures, "to_png", lambda figure: b"PNG")


def eviction_tables(layers: int = 2) -> tuple[torch.Tensor, ...]:
    """Arbitrary tables."""
    return (torch.tensor([[[5, NEVER, 4, NEVER, NEVER, NEVER]]], dtype=torch.int32),) * layers


EVERYTHING: dict[str, Any] = {
    "maps": {"tiny on noise: knorm, keep ratio 0.7": eviction_tables()},
    "correlations": {"tiny on noise": torch.tensor([[0.5, -0.25]])},
}


def test_a_page_is_self_contained(tmp_path: Path) -> None:
    """A page has no script and no external address, and a policy that forbids both."""
    page = write(tmp_path, [UNCOMPRESSED, GOOD], **EVERYTHING)
    assert not {"script", "link", "iframe", "base", "img", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "xlink:href", "src", "srcset", "action", "style", "fill", "clip-path"):
                assert value is not None
                assert (
                    value.startswith(("#", "data:image/png;base64,", "data:application/json;base64,"))
                    or "//" not in value
                ), (tag, name, value[:80])
            assert not name.startswith("on")
    assert not re.search(r"@import|url\((?!#)", " ".join(page.styles))
    policy = [attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_ids_are_unique_on_the_page_and_references_find_them(tmp_path: Path) -> None:
    """Ids are unique, so clip paths of sections with the same figures do not affect each other."""
    other = [replace(row, text="else") for row in (UNCOMPRESSED, GOOD)]
    page = write(tmp_path, [UNCOMPRESSED, GOOD, *other], **EVERYTHING)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", page.source)
    assert len(references) > 50
    assert {one or two for one, two in references} <= set(ids)


def test_every_figure_is_in_the_page_and_in_its_own_file(tmp_path: Path) -> None:
    """A figure has the same bytes in the page and in its file, which the caption names."""
    page = write(tmp_path, [UNCOMPRESSED, GOOD], **EVERYTHING)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.svg"))
    assert files == ["eviction-map-1.svg", "norm-attention-1.svg", "overview-1.svg", "trade-off-1.svg"]
    for name in files:
        svg = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert svg in page.source
        assert name in page.text
        assert (tmp_path / "out" / name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """A page is deterministic, except for its provenance."""
    pages = [write(tmp_path, [UNCOMPRESSED, GOOD], **EVERYTHING) for _ in range(2)]
    assert pages[0].source == pages[1].source


def test_names_are_escaped(tmp_path: Path) -> None:
    """Names and provenance are text, not markup."""
    name = "<b>&\"'$x_1$</script>"
    rows = [replace(row, model=name, press=name) for row in (UNCOMPRESSED, GOOD)]
    maps = {f"{name} on noise: {name}, keep ratio 0.7": eviction_tables()}
    page = write(tmp_path, rows, maps=maps, provenance={name: name})
    assert page.headings[0] == f"{name} on noise"
    assert page.cells[1]["press"] == name
    assert f"{name} on noise: {name}, keep ratio 0.7, schedule budget" in page.texts
    assert not {"b", "script"} & {tag for tag, _ in page.tags}


@pytest.mark.usefixtures("plain_pictures")
def test_the_table_has_every_number_of_every_row(tmp_path: Path) -> None:
    """The table has all numbers, with confidence intervals and meaningful digits."""
    rows = [replace(UNCOMPRESSED, **TIMES), replace(GOOD, **TIMES), replace(BAD, **TIMES)]
    page = write(tmp_path, rows)
    assert page.cells[1] == {
        "press": "knorm",
        "schedule": "budget",
        "keep ratio": "0.7",
        "perplexity": "4.400",
        "change": "+10.0% [+5.0, +15.0]",
        "verdict": "within +20 %",
        "accuracy": "50.0%",
        "affected / scored": "2,874 / 3,069",
        "evictions": "12,345",
        "held": "717–1,024",  # noqa: RUF001
        "keys and values": "717 KiB",
        "KL divergence": "0.051 [0.040, 0.060]",
        "agreement": "90.5% [88.0, 93.0]",
        "TTFT ratio": "1.010 [0.980, 1.030]",
        "TPOT ratio": "0.912 [0.900, 1.020]",
        "tokens/s": "1,234",
        "memory": "5.00 MiB",
    }
    assert [(row["perplexity"], row["change"], row["verdict"]) for row in page.cells] == [
        ("4.000", DASH, "uncompressed"),
        ("4.400", "+10.0% [+5.0, +15.0]", "within +20 %"),
        ("4,000", "+99,900% [+90,000, +110,000]", "above"),
    ]
    assert "prune after 64, skip layers 0, dtype float32, device cpu" in page.text
    assert all(name in page.text and value in page.text for name, value in PROVENANCE.items())


@pytest.mark.usefixtures("plain_pictures")
def test_settings_that_differ_are_columns(tmp_path: Path) -> None:
    """Common settings are given once, and different ones in columns."""
    page = write(tmp_path, [UNCOMPRESSED, replace(GOOD, prune_after=128)])
    assert [row["prune after"] for row in page.cells] == ["64", "128"]
    assert "skip layers" not in page.cells[0]


@pytest.mark.usefixtures("plain_pictures")
def test_a_verdict_is_a_word_and_a_colour(tmp_path: Path) -> None:
    """A verdict has a colour by its class and a word in its cell."""
    between = replace(GOOD, ppl_change=0.25, ppl_interval=(0.22, 0.28))
    untold = replace(GOOD, ppl_interval=(0.1, 0.22))
    broken = replace(BAD, ppl=math.nan, ppl_change=math.nan)
    page = write(tmp_path, [UNCOMPRESSED, VACUOUS, GOOD, between, untold, BAD, broken])
    words = ["uncompressed", "vacuous", "within +20 %", "within +30 %", "cannot be told", "above", "not a number"]
    assert [row["verdict"] for row in page.cells] == words
    classes = [str(attributes.get("class")) for tag, attributes in page.tags if tag == "td" and attributes]
    assert classes == [
        f"verdict {kind}" for kind in ("neutral", "neutral", "within", "between", "between", "bad", "bad")
    ]
    colours = "".join(page.styles)
    assert all(re.search(rf"^{name} {{ color: var", colours, re.M) for name in (".within", ".between", ".bad"))


@pytest.mark.usefixtures("plain_pictures")
def test_vacuous_rows_are_explained_if_present(tmp_path: Path) -> None:
    """Vacuous rows are explained if present, and have no change."""
    explanation = "Vacuous rows say nothing about their press"
    page = write(tmp_path, [UNCOMPRESSED, VACUOUS])
    assert explanation in page.text
    assert page.cells[1]["change"] == DASH
    assert explanation not in write(tmp_path, [UNCOMPRESSED, GOOD]).text


@pytest.mark.usefixtures("plain_pictures")
@pytest.mark.parametrize(
    ("ttft", "tpot", "trusted"),
    [
        ((0.9, 1.1), (0.99, 1.01), True),
        ((1.0, 1.1), (0.9, 1.0), True),
        ((1.01, 1.1), (0.99, 1.01), False),
        ((0.9, 1.1), (0.8, 0.999), False),
    ],
)
def test_differing_uncompressed_arms_give_a_warning(
    tmp_path: Path, ttft: tuple[float, float], tpot: tuple[float, float], trusted: bool
) -> None:
    """A box warns if two uncompressed arms differ, whatever the times of presses."""
    rows = [replace(UNCOMPRESSED, **{**TIMES, "ttft_interval": ttft, "tpot_interval": tpot}), replace(GOOD, **TIMES)]
    rows[1] = replace(rows[1], tpot_interval=(0.4, 0.5))
    page = write(tmp_path, rows)
    noise = f"TTFT 1.010 [{ttft[0]:.3f}, {ttft[1]:.3f}], TPOT 0.912 [{tpot[0]:.3f}, {tpot[1]:.3f}]"
    assert f"uncompressed / uncompressed: {noise}" in page.text
    assert len(page.warnings) == (not trusted)
    if not trusted:
        assert "The times of this run are unreliable." in " ".join(page.warnings[0].split())
        assert noise in " ".join(page.warnings[0].split())


@pytest.mark.usefixtures("plain_pictures")
def test_without_an_uncompressed_arm_noise_is_unknown(tmp_path: Path) -> None:
    """Without an uncompressed arm, the page states that the noise is unknown."""
    assert "the noise of the times is unknown" in write(tmp_path, [replace(GOOD, **TIMES)]).text


@pytest.mark.usefixtures("plain_pictures")
def test_missing_measurements_have_no_columns(tmp_path: Path) -> None:
    """Missing measurements have a sentence instead of columns, and a row without times next to others has dashes."""
    page = write(tmp_path, [UNCOMPRESSED, GOOD])
    assert "Times and memory while generating were not measured." in page.text
    assert not {"TTFT ratio", "TPOT ratio", "tokens/s", "memory"} & set(page.cells[0])
    page = write(tmp_path, [replace(UNCOMPRESSED, **TIMES), GOOD])
    assert [page.cells[1][name] for name in ("TTFT ratio", "TPOT ratio", "tokens/s", "memory")] == [DASH] * 4


def test_missing_and_non_finite_values_are_words(tmp_path: Path) -> None:
    """Missing and non-finite values are shown in words, never as Python values."""
    broken = [
        replace(UNCOMPRESSED, **{**TIMES, "peak_memory_bytes": None, "peak_memory_of": "not available on this device"}),
        replace(GOOD, ppl=math.inf, ppl_change=math.inf),
        replace(GOOD, keep_ratio=0.5, ppl=math.nan, ppl_change=math.nan, accuracy=math.nan, held=(), **TIMES),
    ]
    page = write(tmp_path, broken, correlations={"tiny on noise": torch.tensor([[math.nan, -0.5]])})
    assert not re.search(r"\b(None|NaN|nan|inf|True|False)\b", page.text)
    assert [row["perplexity"] for row in page.cells] == ["4.000", "infinite", "not defined"]
    assert [row["memory"] for row in page.cells] == ["not available", DASH, "5.00 MiB"]
    assert page.cells[2]["held"] == DASH
    assert "not defined" in page.texts


@pytest.mark.usefixtures("plain_pictures")
def test_warnings_are_shown_once_and_replace_verdicts(tmp_path: Path) -> None:
    """Warnings are shown in a box at the top of the section and replace verdicts, but not numbers."""
    warned = [replace(row, warnings=("the model <guesses>",)) for row in (UNCOMPRESSED, GOOD, BAD)]
    page = write(tmp_path, [*warned, *(replace(row, press="random") for row in warned)])
    assert len(page.warnings) == 1
    assert "There is no verdict on this text." in page.warnings[0]
    assert "the model <guesses>" in page.warnings[0]
    assert [row["verdict"] for row in page.cells] == ["uncompressed", "no verdict", "no verdict"] * 2
    assert page.cells[1]["change"] == "+10.0% [+5.0, +15.0]"
    assert not write(tmp_path, [UNCOMPRESSED, GOOD]).warnings


@pytest.mark.usefixtures("plain_pictures")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("device", "peak memory allocated on the device in a run"),
        ("cache", "the bytes of the cache's storage at the end"),
        ("not available on this device", "Memory: not available on this device."),
    ],
)
def test_memory_is_labelled_with_its_kind(tmp_path: Path, kind: str, words: str) -> None:
    """The three kinds of memory are labelled, since they are not comparable."""
    assert words in write(tmp_path, [replace(UNCOMPRESSED, **{**TIMES, "peak_memory_of": kind})]).text


@pytest.mark.usefixtures("plain_pictures")
def test_models_and_texts_have_sections_with_their_own_rows_and_pictures(tmp_path: Path) -> None:
    """Models and texts have sections in the order of the rows, with other figures at the end."""
    small, large = [UNCOMPRESSED, GOOD], [replace(row, model="large", ppl=9.0) for row in (UNCOMPRESSED, GOOD)]
    page = write(
        tmp_path,
        [*large, *small],
        maps={
            "tiny on noise: knorm, keep ratio 0.7": eviction_tables(),
            "odd on noise: x": eviction_tables(),
            "tiny on noise: empty": (),
        },
        correlations={"large on noise": torch.tensor([[0.5]])},
    )
    assert page.headings == ["large on noise", "tiny on noise", "odd on noise: x", "Provenance", "How to read this"]
    assert [[row[4] if row[0] == "press" else row[3] for row in table] for table in page.tables] == [
        ["change", "9.000", "9.000"],
        ["change", "4.000", "4.400"],
    ]
    sections = page.source.split("<section>")
    assert ["Norm against attention" in section for section in sections] == [False, True, False, False, False, False]
    assert ["eviction-map-" in section for section in sections] == [False, False, True, True, False, False]
    assert "arXiv 2406.11430" in sections[1]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([UNCOMPRESSED], "knorm: only the uncompressed run was measured."),
        ([UNCOMPRESSED, VACUOUS], "knorm: no result. Vacuous at 0.9: no result there."),
        (
            [UNCOMPRESSED, GOOD, BAD],
            "knorm: within +20 % at 0.7; above at 0.3. At the smallest ratio within +20 %, 0.7, perplexity "
            "changes by +10.0% [+5.0, +15.0], keys and values take 70% of the memory.",
        ),
        (
            [
                UNCOMPRESSED,
                GOOD,
                replace(GOOD, keep_ratio=0.5, ppl_change=0.15, ppl_interval=(0.14, 0.16), kv_bytes=1 << 19),
            ],
            "knorm: within +20 % at 0.7, 0.5. At the smallest ratio within +20 %, 0.5, perplexity changes by "
            "+15.0% [+14.0, +16.0], keys and values take 50% of the memory.",
        ),
        (
            [GOOD, replace(BAD, **TIMES), VACUOUS],
            "knorm: within +20 % at 0.7; above at 0.3. At the smallest ratio within +20 %, 0.7, perplexity "
            "changes by +10.0% [+5.0, +15.0]. Vacuous at 0.9: no result there.",
        ),
        (
            [UNCOMPRESSED, GOOD, replace(BAD, ppl=math.nan)],
            "knorm: within +20 % at 0.7. At the smallest ratio within +20 %, 0.7, perplexity changes by "
            "+10.0% [+5.0, +15.0], keys and values take 70% of the memory. At 0.3 the perplexity is not a "
            "number or infinite.",
        ),
        (
            [UNCOMPRESSED, replace(BAD, ppl=math.inf)],
            "knorm: no result. At 0.3 the perplexity is not a number or infinite.",
        ),
        (
            [replace(row, warnings=("a reason",)) for row in (UNCOMPRESSED, GOOD, BAD, VACUOUS)],
            "knorm: no verdict at 0.7, 0.3, see the warning. Vacuous at 0.9: no result there.",
        ),
        (
            [UNCOMPRESSED, replace(BAD, **TIMES)],
            "knorm: above at 0.3. At the largest ratio, 0.3, perplexity changes by +99,900% [+90,000, +110,000], "
            "keys and values take 30% of the memory, no difference in the time of a later token can be told "
            "(0.90 to 1.02 times).",
        ),
        (
            [UNCOMPRESSED, replace(BAD, **{**TIMES, "tpot_interval": (0.9, 0.93)})],
            "knorm: above at 0.3. At the largest ratio, 0.3, perplexity changes by +99,900% [+90,000, +110,000], "
            "keys and values take 30% of the memory, a later token takes 0.91 times as long (0.90 to 0.93).",
        ),
        (
            [UNCOMPRESSED, replace(GOOD, ppl_interval=(0.05, 0.25)), BAD],
            "knorm: above at 0.3; cannot be told at 0.7. At the largest ratio, 0.7, perplexity changes by "
            "+10% [+5, +25], keys and values take 70% of the memory.",
        ),
    ],
)
def test_a_press_has_a_summary(rows: list[Row], words: str) -> None:
    """The summary of a press gives its bands and the savings of the smallest ratio in the first, without vacuous
    rows."""
    assert summary("knorm", rows, rows) == words


def _fail_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "trade_off", lambda rows, **options: 1 / 0)


def _fail_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = Path.write_bytes, []

    def write_bytes(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == 3:
            own(self, content[:100])
            raise OSError("no space left on device")
        return own(self, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.usefixtures("plain_pictures")
def test_rows_can_be_downloaded_from_the_page(tmp_path: Path) -> None:
    """The link has the rows and the provenance, as a file of ``--json`` has them."""
    page = write(tmp_path, [UNCOMPRESSED, replace(GOOD, ppl=math.nan)])
    (link,) = [attributes for tag, attributes in page.tags if "download" in attributes]
    head, content = str(link["href"]).split(",")
    assert head == "data:application/json;base64"
    (tmp_path / "rows.json").write_bytes(base64.b64decode(content))
    found = read_results(tmp_path / "rows.json")
    # NaN is not equal to NaN.
    assert repr(found.rows) == repr((UNCOMPRESSED, replace(GOOD, ppl=math.nan)))
    assert found.provenance == PROVENANCE


@pytest.mark.usefixtures("plain_pictures")
def test_paths_are_shown_by_their_last_part_and_whole_in_the_provenance(tmp_path: Path) -> None:
    """Names of the hub and of embedded models are whole, and so are paths with the same last part."""
    names = {
        "/home/a/models/small": "small",
        "./texts/mine": "mine",
        "/one/same": "/one/same",
        "/two/same": "/two/same",
        "organisation/model": "organisation/model",
        "reference": "reference",
    }
    assert short_names(names) == names
    rows = [replace(row, model="/home/a/models/small") for row in (UNCOMPRESSED, GOOD)]
    maps = {"/home/a/models/small on noise: knorm, keep ratio 0.7": eviction_tables()}
    page = write(tmp_path, rows, maps=maps)
    assert page.headings[0] == "small on noise"
    assert "small on noise: knorm, keep ratio 0.7, schedule budget" in page.text
    assert page.text.count("/home/a/models/small") == 1


@pytest.mark.usefixtures("plain_pictures")
def test_a_map_without_evictions_is_not_shown(tmp_path: Path) -> None:
    """A figure is shown only where something was evicted."""
    nothing = (torch.full((1, 1, 6), NEVER, dtype=torch.int32),) * 2
    page = write(tmp_path, [UNCOMPRESSED, GOOD], maps={"tiny on noise: knorm, keep ratio 0.7": nothing})
    assert "eviction-map-" not in page.source


def told(press: str, ratio: float, *means: float, **changes: Any) -> Row:
    """A row below a threshold whose samples, of 100 tokens each, have these mean NLLs."""
    changes |= {"nll_sums": tuple((100 * mean,) for mean in means), "token_counts": ((100.0,),) * len(means)}
    return replace(GOOD, press=press, keep_ratio=ratio, **changes)


LOW, HIGH = (1.0, 1.1, 0.9, 1.2, 0.8), (1.3, 1.4, 1.21, 1.5, 1.1)
OUT: dict[str, Any] = {"ppl_change": 0.9, "ppl_interval": (0.8, 1.0)}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([UNCOMPRESSED], "No press has a verdict here."),
        ([UNCOMPRESSED, VACUOUS], "No press has a verdict here."),
        ([UNCOMPRESSED, GOOD], "knorm is within +20 % at a keep ratio of 0.7."),
        ([UNCOMPRESSED, replace(GOOD, **OUT)], "No press is known to be within +20 % at any ratio."),
        (
            [told("knorm", 0.5, *LOW), told("tova", 0.5, *LOW), told("random", 0.2, *LOW)],
            "knorm and tova are within +20 % at a keep ratio of 0.5.",
        ),
        (
            [
                told("knorm", 0.5, *LOW), told("knorm", 0.2, *LOW), told("tova", 0.5, *HIGH), told("h2o", 0.5, *LOW),
                told("random", 0.5, *LOW[::-1]), told("random", 0.2, *HIGH),
            ],
            "knorm is within +20 % at a keep ratio of 0.2, the smallest of any press. knorm (at 0.2) loses less than "
            "random.",
        ),
        (
            [told("tova", 0.5, *HIGH), told("random", 0.5, *LOW)],
            "tova is within +20 % at a keep ratio of 0.5. No press is known to lose less than random. tova (at 0.5) "
            "loses more than random.",
        ),
        (
            [
                *(replace(told(press, 0.5, *LOW), kv_bytes=9) for press in ("tova", "h2o")),
                replace(told("random", 0.5, *HIGH), kv_bytes=3),
            ],
            "tova and h2o are within +20 % at a keep ratio of 0.5. tova (at 0.5) and h2o (at 0.5) lose less than "
            "random and hold more.",
        ),
    ],
)  # fmt: skip
def test_the_conclusion_says_what_intervals_tell(rows: list[Row], words: str) -> None:
    """The presses within the first band at the smallest ratio, and those that lose less or more than random."""
    assert conclusion(rows) == words


@pytest.mark.usefixtures("plain_pictures")
@pytest.mark.parametrize(("kv_bytes", "also"), [(8, ""), (9, " and holds more"), (3, "")])
def test_the_better_press_is_told_to_hold_more(tmp_path: Path, kv_bytes: int, also: str) -> None:
    """In the sentence about two presses, if it does."""
    rows = [replace(told("tova", 0.5, *LOW), kv_bytes=kv_bytes), replace(told("h2o", 0.5, *HIGH), kv_bytes=8)]
    assert f"tova loses less than h2o at 0.5{also}: perplexity" in write(tmp_path, rows).source


@pytest.mark.usefixtures("plain_pictures")
def test_the_conclusion_comes_first(tmp_path: Path) -> None:
    """Before all figures, tables and the provenance."""
    page = write(tmp_path, [UNCOMPRESSED, GOOD])
    place = page.source.index("knorm is within +20 % at a keep ratio of 0.7.")
    assert all(place < page.source.index(later) for later in ("<h2", "<table", "<figure", ">Provenance<"))


@pytest.mark.usefixtures("plain_pictures")
@pytest.mark.parametrize("fail", [_fail_to_draw, _fail_to_write])
def test_a_failed_report_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A report that fails leaves the previous one unchanged, without partial files."""
    write(tmp_path, [UNCOMPRESSED, GOOD])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    fail(monkeypatch)
    with pytest.raises((ZeroDivisionError, OSError)):
        write(tmp_path, [UNCOMPRESSED, BAD])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("plain_pictures")
def test_a_new_report_replaces_only_the_old_one(tmp_path: Path) -> None:
    """A new report removes the figures of the old one and no user's files."""
    write(tmp_path, [UNCOMPRESSED, GOOD], **EVERYTHING)
    mine = [tmp_path / "out" / name for name in ("rows.json", "my.svg", "overview-final.svg", "my-1.png")]
    for path in mine:
        path.write_text("mine", encoding="utf-8")
    page = write(tmp_path, [UNCOMPRESSED, BAD])
    assert "above" in page.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [
            "report.html",
            *(f"{kind}-1.{ending}" for kind in ("overview", "trade-off") for ending in ("svg", "png")),
            *(path.name for path in mine),
        ]
    )
    assert {path.read_text(encoding="utf-8") for path in mine} == {"mine"}


def test_a_report_of_a_real_measurement(tmp_path: Path) -> None:
    """A report can be written of real rows, ``evicted_at`` and correlations."""
    model, ids = architectures.shared("llama"), architectures.tokens(1, 60)
    source = Source("tiny", "noise", "float64", "cpu", 2, 20, 1, "text", "weights", 9)
    uncompressed = make_row("knorm", KnormPress(1), source, perplexity(model, ids))
    rows, maps = [], {}
    for keep_ratio in (1, 0.5):
        press = KnormPress(keep_ratio, prune_after=20)
        result = perplexity(model, ids, press)
        rows.append(make_row("knorm", press, source, result, uncompressed))
        maps["tiny on noise: knorm, keep ratio 0.5"] = result.evicted_at
    page = write(tmp_path, rows, maps=maps, correlations={"tiny on noise": norm_attention(model, ids)})
    assert page.cells[1]["held"] == "30"
    assert page.cells[1]["affected / scored"] == f"{rows[1].affected_tokens} / 59"
    assert [text for text in page.texts if text.startswith("layer ")] == ["layer 0", "layer 1", "layer 2"]
    assert figures.sentence(norm_attention(model, ids)).split(". ")[1][:40] in page.text
