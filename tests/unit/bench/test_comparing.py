"""Comparisons of results: the same cells of two files, and presses with each other."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from pressgauge.bench.comparing import against_random, compare, contests
from pressgauge.bench.results import Results, read_results, told_apart, write_results
from pressgauge.bench.row import Row
from pressgauge.report.table import comparison_notes, make_comparison, random_notes

SAMPLES = 6


def row(
    press: str = "knorm", ratio: float = 0.5, means: tuple[float, ...] = (1.0,) * SAMPLES, **changes: object
) -> Row:
    """A row whose samples, of 100 tokens each, have these mean NLLs."""
    ppl = math.exp(float(np.mean(means)))
    given = Row(
        press, "budget", ratio, 64, (0,), "m", "t", "float32", "cpu", ppl, 0.1, (0.05, 0.15), "6 samples", 0.5, 600,
        500, 9, (64,), 1, False, nll_sums=tuple((100 * mean,) for mean in means), token_counts=((100.0,),) * SAMPLES,
        text_sha256="text",
    )  # fmt: skip
    return replace(given, **changes)  # type: ignore[arg-type]


ONE = (1.0, 1.1, 0.9, 1.2, 0.8, 1.0)
OTHER = (1.1, 1.25, 0.95, 1.3, 0.95, 1.05)


def of(*rows: Row, **provenance: str) -> Results:
    """Results of a sweep."""
    return Results(rows, provenance)


def test_cells_are_paired_by_everything_that_names_them() -> None:
    """A cell is compared with that of the same model, text, press, schedule, ratio, threshold and skipped layers."""
    base = row(means=ONE)
    others = [
        replace(base, **{name: value})  # type: ignore[arg-type]
        for name, value in {
            "model": "n", "text": "u", "press": "random", "schedule": "step", "keep_ratio": 0.4, "prune_after": 65,
            "skip_layers": (),
        }.items()
    ]  # fmt: skip
    found = compare(of(base, *others), of(*others[::-1], row(means=OTHER)))
    assert [(cell.before, cell.after) for cell in found.cells] == [
        (base, row(means=OTHER)),
        *((one, one) for one in others),
    ]
    assert (found.missing, found.new) == ((), ())
    found = compare(of(base, others[0]), of(others[1], base))
    assert (found.missing, found.new) == ((others[0],), (others[1],))


def test_a_difference_is_that_of_the_paired_t_test() -> None:
    """The interval of a cell's change is scipy's paired test of the samples' means."""
    (cell,) = compare(of(row(means=ONE)), of(row(means=OTHER))).cells
    assert cell.change is not None
    expected = ttest_rel(OTHER, ONE).confidence_interval()
    assert cell.change.interval == pytest.approx((math.expm1(expected.low), math.expm1(expected.high)))
    assert cell.change.change == pytest.approx(math.exp(np.mean(OTHER) - np.mean(ONE)) - 1)


@pytest.mark.parametrize("changes", [{"text_sha256": "other"}, {"token_counts": ((99.0,),) * SAMPLES}])
def test_other_tokens_are_not_compared(changes: dict[str, Any]) -> None:
    """Cells that scored other tokens have no change, and a line says so."""
    found = compare(of(row()), of(row(**changes)))
    assert found.cells[0].change is None
    assert any("scored other tokens" in line for line in comparison_notes(found))
    assert list(make_comparison(found).columns[3].cells) == ["\N{EN DASH}"]


def test_what_differs_in_provenance_is_listed() -> None:
    """Versions, digests, dtype, device and lengths that differ are listed with both values, and no others."""
    found = compare(
        of(row(weights_sha256="a", dtype="float32"), torch="2.13", transformers="5.2"),
        of(row(weights_sha256="b", dtype="float64"), torch="2.13", transformers="5.24", date="today"),
    )
    assert found.differences == {
        "transformers": ("5.2", "5.24"),
        "date": ("missing", "today"),
        "dtype": ("float32", "float64"),
        "weights_sha256": ("a", "b"),
    }
    assert "differs: transformers: 5.2 and 5.24" in list(comparison_notes(found))


def test_presses_are_compared_at_the_same_ratio() -> None:
    """Each pair of presses is compared at each ratio, the better one first; vacuous and uncompressed rows are not."""
    rows = [
        row("knorm", means=OTHER),
        row("random", means=ONE),
        row("knorm", 0.4, means=ONE),
        row("tova", vacuous=True),
        row("knorm", 1.0),
        row("random", 1.0),
    ]
    (found,) = contests(rows)
    assert (found.better.press, found.worse.press) == ("random", "knorm")
    assert found.told
    assert found.change.change == pytest.approx(math.exp(np.mean(OTHER) - np.mean(ONE)) - 1)


def test_a_press_is_compared_with_random_of_the_same_budget() -> None:
    """At each ratio, schedule, threshold and layers; a row without such a random, or without a verdict, is not."""
    rows = [
        row("knorm", means=OTHER),
        row("random", means=ONE),
        row("knorm", 0.4, means=ONE),
        row("tova", means=ONE, schedule="prefill"),
        row("random(schedule=prefill)", means=OTHER, schedule="prefill"),
        row("h2o", means=ONE, prune_after=9),
        row("keydiff", vacuous=True),
        row("snapkv", means=ONE),
    ]
    found = against_random(rows)
    assert {index: one.words for index, one in found.items()} == {
        0: "loses more than random",
        3: "loses less than random",
        7: "no difference can be told",
    }
    level = 1 - 0.05 / 3
    expected = ttest_rel(OTHER, ONE).confidence_interval(level)
    assert found[0].change.interval == pytest.approx((math.expm1(expected.low), math.expm1(expected.high)))
    untold = replace(found[0], change=replace(found[0].change, interval=None))
    assert untold.words == "no difference can be told"
    shown = [*random_notes(rows)]
    assert "knorm: loses more than random at 0.5" in shown


@pytest.mark.parametrize(
    ("means", "kv_bytes", "words"),
    [
        (ONE, 1000, "loses less than random"),
        (ONE, 1050, "loses less than random"),
        (ONE, 1051, "loses less than random and holds more"),
        (ONE, 400, "loses less than random"),
        (ONE, 0, "loses less than random"),
        (OTHER, 0, "loses more than random and holds less"),
        (ONE, None, "loses less than random and holds an unknown amount"),
        (OTHER, 1000, "loses more than random"),
        (OTHER, 953, "loses more than random"),
        (OTHER, 952, "loses more than random and holds less"),
        (OTHER, 2000, "loses more than random"),
        (OTHER, None, "loses more than random and holds an unknown amount"),
    ],
)
def test_a_press_that_holds_another_amount_than_random_is_told(
    means: tuple[float, ...], kv_bytes: int | None, words: str
) -> None:
    """Where it may be the reason of the difference, and not where the press is better with less or worse with more."""
    rows = [row("mine", means=means, kv_bytes=kv_bytes), row("random", means=tuple(np.mean([ONE, OTHER], axis=0)))]
    assert against_random([rows[0], replace(rows[1], kv_bytes=1000)])[0].words == words


def test_equal_presses_seldom_beat_random() -> None:
    """Among four presses that are as good as random, one is told from it in at most 5 % of the sweeps."""
    random = np.random.default_rng(4)
    false = 0
    for _ in range(200):
        of_text = random.standard_normal(SAMPLES)
        rows = [
            row(press, ratio, tuple(of_text + 0.1 * random.standard_normal(SAMPLES)))
            for press in ("knorm", "tova", "h2o", "keydiff", "random")
            for ratio in (0.5, 0.2)
        ]
        false += any(one.words != "no difference can be told" for one in against_random(rows).values())
    assert false <= 0.05 * 200


def test_equal_presses_are_seldom_told_apart() -> None:
    """Among five equal presses at two ratios, one loses less than another in at most 5 % of the sweeps; without
    simultaneous intervals it is far more."""
    random = np.random.default_rng(3)
    false = single = 0
    sweeps = 200
    for _ in range(sweeps):
        of_text = random.standard_normal(SAMPLES)
        rows = [
            row(press, ratio, tuple(of_text + 0.1 * random.standard_normal(SAMPLES)))
            for press in "abcde"
            for ratio in (0.5, 0.2)
        ]
        false += any(one.told for one in contests(rows))
        single += any(contests([one, other])[0].told for one, other in _pairs(rows))
    assert false <= 0.05 * sweeps + 2 * math.sqrt(0.05 * 0.95 * sweeps)
    assert single > 0.3 * sweeps


def _pairs(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    for index, one in enumerate(rows):
        yield from ((one, other) for other in rows[index + 1 :] if one.keep_ratio == other.keep_ratio)


def test_a_file_of_results_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Rows with sums, missing and infinite values, and provenance, survive a file."""
    rows = (row(means=ONE), row(ppl=math.inf, ppl_interval=None))
    write_results(tmp_path / "a.json", rows, {"torch": "2.13"})
    assert read_results(tmp_path / "a.json") == Results(rows, {"torch": "2.13"})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"rows": []}', '{"rows": [{}], "provenance": {}}',
                '{"rows": 3, "provenance": {}}', '{"rows": [[]], "provenance": {}}',
                '{"rows": [], "provenance": []}', "[" * 100_000]
)  # fmt: skip
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    """A file that is not one of results is refused by a sentence with its name."""
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x.json' must be a file that `pressgauge measure --json`"):
        read_results(path)


def test_rows_that_scored_other_tokens_are_told_apart() -> None:
    """On a page of several files, a name that stands for several texts says what was scored of each."""
    one, other = row(samples=2, tokens=128, prompt=1), row(samples=2, tokens=256, prompt=1, text_sha256="others of it")
    assert told_apart([one, row("random", samples=2, tokens=128, prompt=1)])[0] is one
    assert [found.text for found in told_apart([one, other, row(text="u")])] == [
        "t, 2 x 128 tokens after 1 (text)",
        "t, 2 x 256 tokens after 1 (others o)",
        "u",
    ]
