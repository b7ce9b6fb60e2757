"""Rows and tables: labels in words, and complete cells."""

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from rich.console import Console
from scipy.stats import ttest_1samp

from pressgauge import KnormPress, Perplexity, Press, Uncompressed, perplexity
from pressgauge.bench.intervals import change, sums
from pressgauge.bench.row import Row, Source, make_row
from pressgauge.conformance import architectures
from pressgauge.report.table import make_table, make_tables, make_timing_table

SOURCE = Source("tiny", "noise", "float64", "cpu", 2, 20, 1, "text", "weights", 9)

ROW = Row(
    press="knorm",
    schedule="budget",
    keep_ratio=0.7,
    prune_after=512,
    skip_layers=(0,),
    **asdict(SOURCE),
    ppl=31.6,
    ppl_change=0.25,
    ppl_interval=(0.24, 0.26),
    ppl_interval_units="24 blocks of 3 samples",
    accuracy=0.5,
    scored_tokens=3069,
    affected_tokens=1533,
    evictions=4000,
    held=(1024, 717, 717),
    kv_bytes=12_582_912,
    vacuous=False,
)


def result(press: Press | None) -> Perplexity:
    """A small real result."""
    return perplexity(architectures.shared("llama"), architectures.tokens(2, 20), press)


def made(press: Press, mine: Perplexity, base: Perplexity) -> Row:
    """Row of a result, compared with that of an uncompressed run."""
    return make_row("knorm", press, SOURCE, mine, make_row("knorm", press, SOURCE, base))


def shown(*rows: Row, width: int = 80) -> list[str]:
    """Lines of the table in a terminal of this width."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(make_table(list(rows)))
    return capture.get().splitlines()


def cells(line: str) -> list[str]:
    """Cells of a line of the table."""
    return line.replace("│", " ").replace("┃", " ").split()


def test_a_row_has_the_numbers_of_its_press_and_its_result() -> None:
    """Each field has the value of its name."""
    press = KnormPress(0.5, prune_after=6, skip_layers=(2,), schedule="step")
    mine, base = result(press), result(None)
    row = made(press, mine, base)
    own = sums(mine.nll, mine.scored)
    against = change(sums(base.nll, base.scored), own)
    assert row == Row(
        press="knorm",
        schedule="step",
        keep_ratio=0.5,
        prune_after=6,
        skip_layers=(2,),
        **asdict(SOURCE),
        ppl=mine.ppl,
        ppl_change=mine.ppl / base.ppl - 1,
        ppl_interval=against.interval,
        ppl_interval_units=against.units,
        nll_sums=own.nll,
        token_counts=own.tokens,
        accuracy=mine.accuracy,
        scored_tokens=38,
        affected_tokens=mine.affected_tokens,
        evictions=mine.evictions,
        held=mine.held,
        kv_bytes=mine.kv_bytes,
        vacuous=False,
    )
    assert row.ppl_change != 0


def test_a_skipped_layer_is_shown_to_hold_everything() -> None:
    """The number held is shown per layer, including skipped ones."""
    press = KnormPress(0.5, prune_after=6, skip_layers=(2,))
    assert made(press, result(press), result(None)).held == (10, 10, 20)


@pytest.mark.parametrize(("ppl", "change"), [(1.05, "+5.0%"), (0.5, "-50.0%"), (1.0, "+0.0%"), (4.0, "+300.0%")])
def test_change_is_relative_to_the_uncompressed_perplexity(ppl: float, change: str) -> None:
    """A change of 5 % is .05, with its label."""
    press = KnormPress(0.5, prune_after=6)
    of = result(press)
    compressed, base = (replace(of, nll=torch.full_like(of.nll, x)) for x in (float(torch.tensor(ppl).log()), 0.0))
    row = made(press, compressed, base)
    assert row.ppl_change == pytest.approx(ppl - 1, abs=1e-6)
    assert row.change.partition(" ")[0] == change


def test_a_row_has_the_distances_of_its_result_and_their_intervals() -> None:
    """Means are those of the result, and sums over blocks give them again."""
    model, ids = architectures.shared("llama"), architectures.tokens(6, 40)
    press, against = KnormPress(0.5, prune_after=6), Uncompressed(model, ids)
    uncompressed = perplexity(model, ids, against=against)
    row = made(press, perplexity(model, ids, press, against=against), uncompressed)
    assert row.kl_divergence is not None
    assert row.kl_interval is not None
    assert row.agreement is not None
    assert row.agreement_interval is not None
    tokens = math.fsum(sum(row.token_counts, ()))
    for value, sums_, (low, high) in (
        (row.kl_divergence, row.kl_sums, row.kl_interval),
        (row.agreement, row.agreement_counts, row.agreement_interval),
    ):
        assert value == pytest.approx(math.fsum(sum(sums_, ())) / tokens)
        means = [math.fsum(sample) / 39 for sample in sums_]
        known = ttest_1samp(means, 0).confidence_interval(0.95)
        assert low == pytest.approx(float(known.low))
        assert high == pytest.approx(float(known.high))
    whole = make_row("knorm", replace(press, keep_ratio=1.0), SOURCE, uncompressed)
    assert (whole.kl_divergence, whole.kl_interval) == (0, (0, 0))
    assert (whole.agreement, whole.agreement_interval) == (1, (1, 1))


def test_the_distances_of_all_presses_on_a_text_are_in_one_table() -> None:
    """Each row below 1 has its press, ratio, divergence and agreement; without distances there is no such table."""
    row = replace(ROW, kl_divergence=0.0512, kl_interval=(0.04, 0.06), agreement=0.9, agreement_interval=(0.88, 0.92))
    whole = replace(row, keep_ratio=1.0, kl_divergence=0.0)
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        for table in make_tables([whole, row, replace(whole, press="tova"), replace(row, press="tova")]):
            console.print(table)
    lines = [line.split() for line in capture.get().splitlines()]
    for press in ("knorm", "tova"):
        assert [*f"{press} 0.7 0.051 [0.040, 0.060] 90.0% [88.0, 92.0]".split()] in lines
    assert len(list(make_tables([replace(ROW, keep_ratio=1.0), ROW]))) == 1


def test_the_row_of_ratio_1_is_called_uncompressed() -> None:
    """The row of ratio 1 is called uncompressed, not vacuous."""
    press = KnormPress(1, prune_after=6)
    row = made(press, result(press), result(press))
    assert (row.change, row.vacuous, row.ppl_change) == ("uncompressed", False, 0.0)


def test_a_row_that_evicted_nothing_is_called_vacuous_and_not_unchanged() -> None:
    """A row without evictions is called vacuous, instead of a change of 0 %."""
    press = KnormPress(0.5, prune_after=20)
    row = made(press, result(press), result(None))
    assert (row.change, row.vacuous) == ("vacuous", True)
    assert row.ppl_change == pytest.approx(0, abs=1e-9)


def test_a_row_as_a_dict_has_every_field_and_is_json() -> None:
    """The keys are the fields, and JSON loses nothing."""
    data = ROW.as_dict()
    assert list(data) == [*(field.name for field in fields(Row)), "not_finite", "verdict"]
    assert json.loads(json.dumps(data)) == {
        **data,
        "skip_layers": [0],
        "held": [1024, 717, 717],
        "ppl_interval": [0.24, 0.26],
        "nll_sums": [],
        "token_counts": [],
        "kl_sums": [],
        "agreement_counts": [],
        "warnings": [],
        "bands": [0.2, 0.3],
        "metrics": [],
    }


def test_non_finite_values_are_distinguished_from_missing_ones() -> None:
    """Non-finite and missing values are null in JSON, distinguished by a field, and the row can be read again."""
    row = replace(ROW, ppl=math.nan, ppl_change=-math.inf, tpot=math.inf)
    data = json.loads(json.dumps(row.as_dict(), allow_nan=False))
    assert [data[name] for name in ("ppl", "ppl_change", "tpot", "ttft")] == [None] * 4
    assert data["not_finite"] == {"ppl": "NaN", "ppl_change": "-Infinity", "tpot": "Infinity"}
    assert repr(Row.from_dict(data)) == repr(row)


@pytest.mark.parametrize("changes", [{"ppl": math.nan}, {"ppl": math.inf}, {"ppl_change": math.nan}])
def test_a_nan_perplexity_has_no_verdict(changes: dict[str, Any]) -> None:
    """A perplexity that is NaN or infinite has no band, unless there is no press."""
    row = replace(ROW, **changes)
    assert (row.verdict, row.change) == ("not a number", "not a number")
    assert replace(row, vacuous=True, warnings=("w",)).verdict == "not a number"
    assert replace(row, keep_ratio=1.0).verdict == "uncompressed"
    text = " ".join(" ".join(shown(row)).split())
    assert "not a number: the press makes the perplexity NaN or infinite" in text
    assert "above" not in text
    assert "not a number" not in " ".join(shown(ROW))


def test_a_warning_replaces_the_verdict_and_not_the_change() -> None:
    """A warning replaces the verdict, is shown in full under the table, and leaves the change."""
    row = replace(
        ROW,
        ppl_change=-0.447,
        ppl_interval=(-0.46, -0.44),
        warnings=("the text [is] in another language", "the model guesses"),
    )
    assert (row.verdict, row.change) == ("no verdict", "-44.7% [-46.0, -44.0]")
    assert replace(row, vacuous=True).verdict == "vacuous"
    assert replace(row, keep_ratio=1.0).verdict == "uncompressed"
    text = " ".join(" ".join(shown(row)).split())
    assert "NO VERDICT: the text [is] in another language NO VERDICT: the model guesses" in text
    assert "-44.7%" in text
    assert "within" not in text


@pytest.mark.parametrize("bands", [(0.2,), (0.2, 0.3), (0.05, 0.2, 0.4)])
def test_a_change_has_the_colour_of_its_band(bands: tuple[float, ...]) -> None:
    """A change is green within the first band, red above the last, and yellow between or where it cannot be told; a
    table of times has no colours."""
    changes = (bands[0] - 0.01, bands[-1], bands[-1] + 0.01)
    rows = [replace(ROW, ppl_change=change, ppl_interval=(change, change), bands=bands) for change in changes]
    rows.append(replace(ROW, ppl_interval=(-1.0, 9.0), bands=bands))
    between = "yellow" if len(bands) > 1 else "red"
    given = [str(cell).split("]")[0] for cell in make_table(rows).columns[2].cells]
    assert given == ["[green", f"[{between}", "[red", "[yellow"]
    assert "[green]" not in str(list(make_timing_table(rows).columns[2].cells))


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_of_eighty_columns_shows_every_cell_in_full(width: int) -> None:
    """At 80 columns, ratio, perplexity, label, accuracy, affected, held and bytes are shown in full."""
    rows = [
        replace(ROW, keep_ratio=1.0, ppl_change=0.0, affected_tokens=0, held=(1024, 1024, 1024)),
        ROW,
        replace(ROW, keep_ratio=0.55, ppl=1234.5678, ppl_change=99.5, ppl_interval=(88.0, 110.0), held=(64, 64, 64)),
        replace(ROW, keep_ratio=0.9, vacuous=True, affected_tokens=0),
    ]
    lines = [cells(line) for line in shown(*rows, width=width)]
    assert "1 31.600 uncompressed 50.0% 0/3069 1024 12.0 MiB".split() in lines
    assert "0.7 31.600 +25.0% [+24.0, +26.0] 50.0% 1533/3069 717-1024 12.0 MiB".split() in lines
    assert "0.55 1234.568 +9,950% [+8,800, +11,000] 50.0% 1533/3069 64 12.0 MiB".split() in lines
    assert "0.9 31.600 vacuous 50.0% 0/3069 717-1024 12.0 MiB".split() in lines


def test_a_table_explains_vacuous_rows() -> None:
    """A table explains vacuous rows only if it has some."""
    meaning = "vacuous: no scored token met an eviction"
    assert meaning in " ".join(shown(ROW, replace(ROW, vacuous=True)))
    assert meaning not in " ".join(shown(ROW))


def test_a_table_is_titled_with_its_settings() -> None:
    """Press, schedule, prune_after, model and text are above the table."""
    title = " ".join(" ".join(shown(ROW)).split())
    assert "knorm, budget, prune_after 512: tiny on noise" in title


def test_names_are_not_markup() -> None:
    """Brackets in a file's name are shown."""
    title = " ".join(" ".join(shown(replace(ROW, text="[draft][/b].txt"))).split())
    assert "tiny on [draft][/b].txt" in title
