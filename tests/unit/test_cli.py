"""The command line: tables, files, and one sentence per error."""

import json
import math
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from pressgauge import KnormPress, Perplexity, Press, perplexity
from pressgauge.bench import sweep
from pressgauge.bench.row import Row
from pressgauge.cli import app
from pressgauge.formats import size
from pressgauge.models import load
from pressgauge.presses import PRESSES
from pressgauge.reference.language import document

SMALL = ("--tokens", "40", "--samples", "1", "--prune-after", "16", "--device", "cpu")


def run(*arguments: str, width: int = 80) -> Result:
    """``pressgauge measure --no-random`` with these arguments, in a terminal of this width."""
    return CliRunner().invoke(app, ["measure", "--no-random", *arguments], env={"COLUMNS": str(width)})


def table(result: Result) -> dict[str, list[str]]:
    """Lines of the table that begin with a number: their other cells, by ratio."""
    # Intervals and sizes have spaces.
    lines = [re.sub(r" (?=\[|[-+][\d.,]+\]|[KM]?i?[Bb])", "_", line).split() for line in result.stdout.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells and cells[0].replace(".", "").isdigit()}


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows in a file written by ``--json``."""
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(data) == ["rows", "provenance"]
    return list(data["rows"])


def test_measure_shows_a_row_per_ratio_and_writes_them_all(tmp_path: Path) -> None:
    """Table and file agree, and the file has every field of a row."""
    path = tmp_path / "rows.json"
    result = run("--tokens", "96", "--samples", "2", "--prune-after", "32", "--device", "cpu", "--json", str(path))
    assert result.exit_code == 0, result.stderr
    written, shown = rows(path), table(result)
    assert [row["keep_ratio"] for row in written] == [1.0, 0.9, 0.8, 0.7]
    assert list(shown) == ["1", "0.9", "0.8", "0.7"]
    for row, (ppl, change, accuracy, affected, _, kv_bytes) in zip(written, shown.values(), strict=True):
        assert list(row) == [*(field.name for field in fields(Row)), "not_finite", "verdict"]
        assert (row["press"], row["schedule"], row["prune_after"], row["skip_layers"]) == ("knorm", "budget", 32, [0])
        assert (row["model"], row["text"], row["dtype"], row["device"]) == ("reference", "reference", "float32", "cpu")
        assert ppl == f"{row['ppl']:.3f}"
        assert change == ("uncompressed" if row["keep_ratio"] == 1 else Row.from_dict(row).change.replace(" ", "_"))
        assert accuracy == f"{row['accuracy']:.1%}"
        assert affected == f"{row['affected_tokens']}/190"
        assert kv_bytes == size(row["kv_bytes"]).replace(" ", "_")
        # Layer 0 is skipped; the others hold ceil(r * 96).
        assert row["held"] == [96] + 2 * [round(row["keep_ratio"] * 96 + 0.49)]


def test_measure_gives_the_numbers_of_the_library(tmp_path: Path) -> None:
    """The numbers are those of ``perplexity`` on the same model, text and press."""
    path = tmp_path / "rows.json"
    options = ("--keep-ratios", "0.5", "--prompt", "5", "--dtype", "float64")
    assert run(*SMALL, *options, "--json", str(path)).exit_code == 0
    model, _ = load("reference", dtype="float64")
    ids = torch.tensor([document(0, 40).tokens])
    press = KnormPress(0.5, prune_after=16, skip_layers=(0,))
    plain, mine = perplexity(model, ids, None, 5), perplexity(model, ids, press, 5)
    first, second = rows(path)
    assert first["ppl"] == pytest.approx(plain.ppl, rel=1e-12)
    assert second["ppl"] == pytest.approx(mine.ppl, rel=1e-12)
    assert second["ppl_change"] == pytest.approx(mine.ppl / plain.ppl - 1, rel=1e-9)
    assert (second["scored_tokens"], second["affected_tokens"]) == (35, mine.affected_tokens)
    assert (second["evictions"], tuple(second["held"]), second["kv_bytes"]) == (
        mine.evictions,
        mine.held,
        mine.kv_bytes,
    )


@pytest.mark.parametrize(
    ("asked", "measured"), [("0.5", [1, 0.5]), ("0.5,1.0", [1, 0.5]), ("0.6,0.8,0.6", [1, 0.6, 0.8]), ("1", [1])]
)
def test_the_uncompressed_row_always_comes_first(asked: str, measured: list[float], tmp_path: Path) -> None:
    """The uncompressed row comes first, and no ratio is measured twice."""
    path = tmp_path / "rows.json"
    result = run(*SMALL, "--keep-ratios", asked, "--json", str(path))
    assert result.exit_code == 0, result.stderr
    assert [row["keep_ratio"] for row in rows(path)] == measured
    assert table(result)["1"][1] == "uncompressed"
    assert (rows(path)[0]["vacuous"], rows(path)[0]["ppl_change"], rows(path)[0]["evictions"]) == (False, 0, 0)


@pytest.mark.parametrize("width", [80, 200])
def test_a_row_is_called_vacuous_if_prune_after_is_never_exceeded(width: int, tmp_path: Path) -> None:
    """The default P of 512 gives a vacuous row on a text of 40 tokens, in the table at any width and in the file."""
    path = tmp_path / "rows.json"
    result = run("--tokens", "40", "--samples", "1", "--keep-ratios", "0.5", "--json", str(path), width=width)
    assert result.exit_code == 0, result.stderr
    assert table(result)["0.5"][1] == "vacuous"
    assert "no scored token met an eviction" in result.stdout
    assert [row["vacuous"] for row in rows(path)] == [False, True]


def test_nothing_is_called_vacuous_if_tokens_were_affected() -> None:
    """The remark on vacuous rows is absent if tokens were affected."""
    assert "vacuous" not in run(*SMALL, "--keep-ratios", "0.5").stdout


@pytest.mark.parametrize("press", PRESSES)
def test_every_press_can_be_measured(press: str, tmp_path: Path) -> None:
    """Every press is measured under its name and default schedule, and evicts."""
    path = tmp_path / "rows.json"
    result = run(*SMALL, "--tokens", "160", "--press", press, "--keep-ratios", "0.5", "--json", str(path))
    assert result.exit_code == 0, result.stderr
    row = rows(path)[1]
    assert row["press"] == press
    assert row["schedule"] == ("prefill" if press == "snapkv" else "budget")
    # SnapKVPress protects more than half of the prompt. Layers, KV heads, tokens.
    assert row["evictions"] == 2 * 2 * (120 - 64 if press == "snapkv" else 80)


def test_a_press_of_the_prompt_gives_all_the_same_prompt(tmp_path: Path) -> None:
    """If a press acts on the prompt only, all presses get a prompt of three quarters."""
    path = tmp_path / "rows.json"
    run(*SMALL, "--tokens", "160", "--press", "knorm,snapkv", "--keep-ratios", "0.5", "--json", str(path))
    assert {row["scored_tokens"] for row in rows(path)} == {40}
    assert {row["schedule"] for row in rows(path)} == {"budget", "prefill"}


def test_presses_of_different_names_differ(tmp_path: Path) -> None:
    """All presses change the perplexity, each differently, in one sweep."""
    path = tmp_path / "rows.json"
    run(*SMALL, "--tokens", "160", "--press", ",".join(PRESSES), "--schedule", "budget", "--keep-ratios", "0.5",
        "--json", str(path))  # fmt: skip
    found = {row["press"]: row["ppl"] for row in rows(path) if row["keep_ratio"] == 0.5}
    assert list(found) == list(PRESSES)
    assert len({*found.values(), rows(path)[0]["ppl"]}) == len(PRESSES) + 1


@pytest.mark.parametrize(
    ("layers", "held"),
    [
        ("none", [20, 20, 20]),
        ("1", [20, 40, 20]),
        ("2,0,2", [40, 20, 40]),
        ("0-1", [40, 40, 20]),
        ("0, 1 - 2", [40, 40, 40]),
        ("unprunable", [20, 20, 20]),
    ],
)
def test_layers_can_be_skipped(layers: str, held: list[int], tmp_path: Path) -> None:
    """Skipped layers hold everything; ``none`` skips none, and so does ``unprunable`` if every layer is supported."""
    path = tmp_path / "rows.json"
    run(*SMALL, "--skip-layers", layers, "--keep-ratios", "0.5", "--json", str(path))
    assert rows(path)[1]["held"] == held
    # Skipped layers are recorded as indices.
    assert rows(path)[1]["skip_layers"] == [layer for layer in range(3) if held[layer] == 40]


def test_the_prompt_of_prefill_is_three_quarters_of_the_tokens(tmp_path: Path) -> None:
    """Under ``prefill`` the prompt is three quarters of the tokens."""
    path = tmp_path / "rows.json"
    result = run(*SMALL, "--schedule", "prefill", "--keep-ratios", "0.5", "--json", str(path))
    assert result.exit_code == 0, result.stderr
    row = rows(path)[1]
    assert (row["schedule"], row["scored_tokens"]) == ("prefill", 10)
    assert row["held"] == [40, 15 + 10, 15 + 10]
    # The first token is scored by the prompt's pass, before any eviction.
    assert row["affected_tokens"] == 9


def test_the_prompt_of_other_schedules_is_one_token(tmp_path: Path) -> None:
    """Under other schedules all tokens except the first are scored."""
    path = tmp_path / "rows.json"
    run(*SMALL, "--schedule", "step", "--keep-ratios", "0.5", "--json", str(path))
    assert [row["scored_tokens"] for row in rows(path)] == [39, 39]


def test_a_file_can_be_measured(tmp_path: Path) -> None:
    """A text in a file can be measured."""
    text = tmp_path / "text.txt"
    text.write_text(document(77, 200).text, encoding="utf-8")
    path = tmp_path / "rows.json"
    result = run(*SMALL, "--text", str(text), "--keep-ratios", "0.5", "--json", str(path))
    assert result.exit_code == 0, result.stderr
    model, _ = load("reference")
    plain = perplexity(model, torch.tensor([document(77, 40).tokens]), method="plain")
    assert rows(path)[0]["ppl"] == pytest.approx(plain.ppl, rel=1e-5)
    assert rows(path)[0]["text"] == str(text)


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    """An existing file is replaced as a whole, without other files."""
    path = tmp_path / "rows.json"
    path.write_text("x" * 100_000)
    assert run(*SMALL, "--keep-ratios", "0.5", "--json", str(path)).exit_code == 0
    assert len(rows(path)) == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["wikitext-2/test.txt", "books/shakespeare.txt"])
def test_a_real_model_is_measured_on_a_real_text(text: str, shared_folder: Path, tmp_path: Path) -> None:
    """A folder and a file can be measured, with the uncompressed perplexity of one pass over the first tokens."""
    path = tmp_path / "rows.json"
    folder, file = shared_folder / "models" / "tinystories-260k", shared_folder / "data" / text
    result = run(
        *("--model", str(folder), "--text", str(file)),
        *("--tokens", "128", "--samples", "1", "--prune-after", "64", "--keep-ratios", "0.5", "--device", "cpu"),
        *("--json", str(path)),
    )
    assert result.exit_code == 0, result.stderr
    assert list(table(result)) == ["1", "0.5"]
    uncompressed, half = rows(path)
    model, tokenizer = load(str(folder))
    ids = torch.tensor([tokenizer(file.read_text(encoding="utf-8")[:4000]).input_ids[:128]])
    assert uncompressed["ppl"] == pytest.approx(perplexity(model, ids, method="plain").ppl, rel=1e-4)
    assert half["ppl"] != uncompressed["ppl"]
    assert half["held"] == [128, 64, 64, 64, 64]
    assert half["affected_tokens"] == 128 - 66


def test_several_presses_and_models_are_measured_in_one_run(tmp_path: Path) -> None:
    """Several presses and models give a table for each press and text, and one file."""
    path = tmp_path / "rows.json"
    result = run(
        *(*SMALL, "--model", "reference,reference-neox", "--press", "knorm,random", "--keep-ratios", "0.5"),
        *("--json", str(path)),
    )
    assert result.exit_code == 0, result.stderr
    assert [(row["model"], row["press"], row["keep_ratio"]) for row in rows(path)] == [
        (model, press, ratio)
        for model in ("reference", "reference-neox")
        for press in ("knorm", "random")
        for ratio in (1.0, 0.5)
    ]
    for row in rows(path):
        assert f"{row['press']}, budget, prune_after 16: {row['model']} on reference" in result.stdout
        assert f"{row['ppl']:.3f}" in result.stdout


def test_times_are_shown_relative_to_the_uncompressed_model(tmp_path: Path) -> None:
    """Each row has its ratio and confidence interval as in the file, at 80 columns."""
    path = tmp_path / "rows.json"
    result = run(*SMALL, "--keep-ratios", "0.5", "--timing", "--json", str(path))
    assert result.exit_code == 0, result.stderr
    for row in rows(path):
        for ratio, interval in ((row["ttft_ratio"], row["ttft_interval"]), (row["tpot_ratio"], row["tpot_interval"])):
            assert f"{ratio:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]" in result.stdout
        assert f"{row['peak_memory_bytes']:,}" in result.stdout
    assert "the cache's storage at the end of a run" in result.stdout


def test_missing_measurements_are_null(tmp_path: Path) -> None:
    """Without ``--timing`` times are null, and so is what is only observed of third-party compressors."""
    path = tmp_path / "rows.json"
    assert run(*SMALL, "--keep-ratios", "0.5", "--json", str(path)).exit_code == 0
    for row in rows(path):
        assert {name for name, value in row.items() if value is None} == {
            *("ttft_ratio", "ttft_interval", "tpot_ratio", "tpot_interval", "ttft", "tpot"),
            *("tokens_per_second", "peak_memory_bytes", "peak_memory_of", "altered"),
        }


def spoiled(monkeypatch: pytest.MonkeyPatch, nll: float, *, pressed: bool) -> list[Press | None]:
    """Set the last NLL of pressed or uncompressed runs to ``nll``; returns the measured presses."""
    asked: list[Press | None] = []

    def measured(model: Any, ids: Any, press: Press | None, prompt: int, **options: Any) -> Perplexity:
        asked.append(press)
        result = perplexity(model, ids, press, prompt, **options)
        if (press is not None) == pressed:
            result.nll[-1, -1] = nll
        return result

    monkeypatch.setattr(sweep, "perplexity", measured)
    return asked


@pytest.mark.parametrize("nll", [math.nan, math.inf, 1e5])
def test_a_nan_perplexity_has_its_own_verdict(nll: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN has its own verdict in the table, page and file, where it differs from a missing value."""
    spoiled(monkeypatch, nll, pressed=True)
    path, report = tmp_path / "rows.json", tmp_path / "report"
    result = run(*SMALL, "--keep-ratios", "0.5", "--json", str(path), "--report", str(report))
    assert result.exit_code == 0, result.stderr
    assert "the press makes the perplexity NaN or infinite" in " ".join(result.stdout.split())
    assert "above" not in result.stdout
    whole, row = rows(path)
    name = "NaN" if math.isnan(nll) else "Infinity"
    assert (row["verdict"], row["ppl"], row["ppl_change"]) == ("not a number", None, None)
    assert row["not_finite"] == {"ppl": name, "ppl_change": name}
    assert (row["ttft"], whole["not_finite"]) == (None, {})
    assert " ".join(table(result)["0.5"][1:4]) == "not a number"
    assert "At 0.5 the perplexity is not a number or infinite" in (report / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("nll", "dtype", "words"),
    [
        (math.nan, "float32", "is not a number (1 of 39 scored tokens have an NLL that is not finite), so no press"),
        (math.inf, "bfloat16", "is infinite (1 of 39 scored tokens have an NLL that is not finite), so no press"),
        (1e5, "float64", "is infinite (0 of 39 scored tokens have an NLL that is not finite), so no press"),
    ],
)
def test_a_nan_uncompressed_perplexity_stops_the_run(
    nll: float, dtype: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN in the uncompressed run stops the sweep before any press, with the way out and without files."""
    asked = spoiled(monkeypatch, nll, pressed=False)
    result = run(*SMALL, "--dtype", dtype, "--json", str(tmp_path / "rows.json"))
    refused(result, f"the uncompressed perplexity of reference on reference in {dtype} {words}")
    ways_out = {"float32": "give --dtype float64, or", "bfloat16": "give --dtype float32, or", "float64": "it: check"}
    assert ways_out[dtype] in result.stderr
    assert asked == [None]
    assert list(tmp_path.iterdir()) == []


def test_no_verdict_is_given_above_the_vocabulary_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perplexity above the vocabulary size of 149 gives a warning in the table, file and page, and no verdict."""
    spoiled(monkeypatch, 39 * 6.0, pressed=False)
    path, report = tmp_path / "rows.json", tmp_path / "report"
    result = run(*SMALL, "--press", "knorm,random", "--keep-ratios", "0.5,0.3", "--json", str(path),
                 "--report", str(report))  # fmt: skip
    assert result.exit_code == 0, result.stderr
    warning = "is worse than that of guessing among the 149 tokens of the vocabulary"
    assert " ".join(result.stdout.split()).count("NO VERDICT: the uncompressed perplexity, ") == 2
    assert " ".join(result.stdout.split()).count(warning) == 2
    assert "within" not in result.stdout
    assert [row["verdict"] for row in rows(path)] == ["uncompressed", "no verdict", "no verdict"] * 2
    for row in rows(path):
        assert len(row["warnings"]) == 1
        assert warning in row["warnings"][0]
    assert rows(path)[1]["ppl_change"] < 0  # what would have been in the first band
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("There is no verdict on this text.") == 1
    assert "knorm: no verdict at 0.5, 0.3, see the warning." in page


def test_verdicts_follow_the_bands(tmp_path: Path) -> None:
    """``--bands`` changes verdicts in the file, caption and page, and no other number; the default is 20 and 30 %."""
    usual, path, report = tmp_path / "usual.json", tmp_path / "rows.json", tmp_path / "report"
    options = (*SMALL, "--keep-ratios", "0.9,0.5")
    assert run(*options, "--json", str(usual)).exit_code == 0
    largest = max(100 * end for row in rows(usual)[1:] for end in row["ppl_interval"])
    low = min(100 * end for row in rows(usual)[1:] for end in row["ppl_interval"])
    assert -100 < low < 0 < largest
    first, second = "0", f"{largest + 1:.2f}"
    result = run(*options, "--bands", f"{first},{second}", "--json", str(path), "--report", str(report))
    assert result.exit_code == 0, result.stderr
    name = f"within +{float(second):g} %"
    expected = ["cannot be told" if row["ppl_interval"][0] < 0 else name for row in rows(usual)[1:]]
    assert [row["verdict"] for row in rows(path)] == ["uncompressed", *expected]
    assert rows(path)[0]["bands"] == pytest.approx([float(first) / 100, float(second) / 100])
    assert rows(usual)[0]["bands"] == [0.2, 0.3]
    for one, other in zip(rows(usual), rows(path), strict=True):
        assert {**one, "bands": None, "verdict": None} == {**other, "bands": None, "verdict": None}
    assert f"below +{float(first):g} %, up to +{float(second):g} %, above" in " ".join(result.stdout.split())
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(f">{verdict}</td>" in page for verdict in expected)


def test_files_of_results_are_compared_and_reported(tmp_path: Path) -> None:
    """``compare`` shows the change of each cell that two files share and what else differs; ``report`` writes the page
    from files."""
    one, other, page = tmp_path / "one.json", tmp_path / "other.json", tmp_path / "page"
    assert run(*SMALL, "--keep-ratios", "0.5", "--json", str(one)).exit_code == 0
    assert run(*SMALL, "--keep-ratios", "0.5,0.3", "--dtype", "float64", "--json", str(other)).exit_code == 0
    result = CliRunner().invoke(app, ["compare", str(one), str(other)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    (line,) = (line for line in lines if "knorm, budget, 0.5 from 16" in line)
    assert re.search(r" [-+]0.0% \[[-+]0.0, [-+]0.0\] *$", line), line
    assert "differs: dtype: float32 and float64" in lines
    assert "only in the second file: reference on reference: knorm, budget, 0.3 from 16, layers skipped: 0" in lines
    result = CliRunner().invoke(app, ["report", str(one), str(other), "--to", str(page)])
    assert result.exit_code == 0, result.stderr
    assert (page / "report.html").read_text(encoding="utf-8").count("<td>0.3</td>") == 1
    broken = CliRunner().invoke(app, ["compare", str(one), str(page / "report.html")])
    assert (broken.exit_code, broken.stdout) == (2, "")
    assert "report.html' must be a file that `pressgauge measure --json` of this version wrote" in broken.stderr


def test_a_report_is_a_page_with_its_figures(tmp_path: Path) -> None:
    """``--report`` writes a page and its figures to a new folder, and nothing else."""
    folder = tmp_path / "report"
    result = run(*SMALL, "--press", "knorm,random", "--keep-ratios", "0.5", "--report", str(folder))
    assert result.exit_code == 0, result.stderr
    assert f"report: {folder / 'report.html'}" in result.stdout
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "knorm" in page
    assert page.count("<svg") == len(list(folder.glob("*.svg"))) > 3
    assert list(tmp_path.iterdir()) == [folder]
    assert {path.suffix for path in folder.iterdir()} == {".html", ".svg"}


# Errors

BANDS = "--bands must be percentages from 0 on in ascending order, such as 20,30"
LAYERS = "--skip-layers must be layers from 0 on such as 0,2 or 0-4,6, or none, or unprunable"
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "ratio 0": (("--keep-ratios", "0"), "keep_ratio must be in (0, 1], got 0"),
    "ratio above 1": (("--keep-ratios", "0.5,1.5"), "keep_ratio must be in (0, 1], got 1.5"),
    "ratio NaN": (("--keep-ratios", "nan"), "keep_ratio must be in (0, 1], got nan"),
    "ratio in words": (("--keep-ratios", "half"), "--keep-ratios must be numbers with commas between them, got 'half'"),
    "ratio left out": (("--keep-ratios", "0.5,"), "--keep-ratios must be numbers with commas between them"),
    "bands that descend": (("--bands", "30,20"), f"{BANDS}, got '30,20'"),
    "a band twice": (("--bands", "20,20"), f"{BANDS}, got '20,20'"),
    "a band that is negative": (("--bands", "-5"), f"{BANDS}, got '-5'"),
    "a band without an end": (("--bands", "20,inf"), f"{BANDS}, got '20,inf'"),
    "a band that is not a number": (("--bands", "nan"), f"{BANDS}, got 'nan'"),
    "no band": (("--bands", "none"), f"{BANDS}, got 'none'"),
    "bands in words": (("--bands", "few"), "--bands must be numbers with commas between them, got 'few'"),
    "no ratio": (("--keep-ratios", "none"), "--keep-ratios must name at least one ratio"),
    "press among others": (
        ("--press", "knorm,pyramid"),
        f"press must be one of {', '.join(PRESSES)}, or package.module:name of one of your own, got 'pyramid'",
    ),
    "press left out": (
        ("--press", "knorm,"),
        "names with commas between them, such as knorm,snapkv(recent=32), got 'knorm,'",
    ),
    "second model": (("--model", "reference,/no/such/model"), "model '/no/such/model' could not be loaded"),
    "second text": (("--text", "reference,bible"), "text must be reference, wikitext-2, pg-19 or the path of a file"),
    "no folder for the report": (("--report", "/no/such/folder/report"), "--report must be in a folder that exists"),
    "a file for the report": (("--report", __file__), "--report must be a folder, got the file"),
    "press": (
        ("--press", "pyramid"),
        f"press must be one of {', '.join(PRESSES)}, or package.module:name of one of your own, got 'pyramid'",
    ),
    "schedule": (("--schedule", "always"), "schedule must be one of budget, step, prefill, got 'always'"),
    "prune after": (("--prune-after", "-1"), "prune_after must be at least 0, got -1"),
    "negative layer": (("--skip-layers", "-1"), f"{LAYERS}, got '-1'"),
    "range without an end": (("--skip-layers", "1-"), f"{LAYERS}, got '1-'"),
    "range of three": (("--skip-layers", "0-1-2"), f"{LAYERS}, got '0-1-2'"),
    "range that goes down": (
        ("--skip-layers", "0,2-1"),
        "--skip-layers has ranges from the lower layer to the higher, got '2-1'",
    ),
    "range beyond the last layer": (("--skip-layers", "1-7"), "skip_layers names layer 3, but the model has 3 layers"),
    "unprunable and others": (("--skip-layers", "0,unprunable"), f"{LAYERS}, got '0,unprunable'"),
    "layer that is not there": (("--skip-layers", "0,3"), "skip_layers names layer 3, but the model has 3 layers"),
    "layer in words": (("--skip-layers", "last"), f"{LAYERS}, got 'last'"),
    "layers left out": (("--skip-layers", "0,,1"), f"{LAYERS}, got '0,,1'"),
    "too many tokens": (("--tokens", "2049"), "--tokens must fit the model's context of 2048 tokens, got 2049"),
    "too many tokens to time": (
        ("--tokens", "2048", "--prompt", "2040", "--schedule", "prefill", "--timing"),
        "--prompt and what --timing generates behind it must fit the model's context of 2048 tokens, got 2072",
    ),
    "text of another language": (
        ("--text", __file__),
        "is not in the language of the reference models, which do not know",
    ),
    "one token": (("--tokens", "1"), "tokens must be at least 2, got 1"),
    "no samples": (("--samples", "0"), "samples must be at least 1, got 0"),
    "no prompt": (("--prompt", "0"), "prompt must be at least 1 and leave one of the 40 tokens to score, got 0"),
    "all prompt": (("--prompt", "40"), "prompt must be at least 1 and leave one of the 40 tokens to score, got 40"),
    "prompt of prefill": (("--schedule", "prefill", "--prompt", "16"), "never with a prompt of 16 tokens"),
    "model": (("--model", "/no/such/model"), "model '/no/such/model' could not be loaded: give reference"),
    "text": (("--text", "bible"), "text must be reference, wikitext-2, pg-19 or the path of a file, got 'bible'"),
    "device": (("--device", "cuda:99"), "device must be auto, cpu or an accelerator of this machine, got 'cuda:99'"),
    "dtype": (("--dtype", "int4"), "dtype must be one of float64, float32, bfloat16, float16, got 'int4'"),
}


def refused(result: Result, sentence: str) -> None:
    """Check exit code 2 and one sentence after any progress, without a table or traceback."""
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("Loading weights:")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert sentence in errors[0]
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_sentence_and_no_file(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    """An invalid option gives one sentence with the value and the rule, and no file."""
    refused(run(*SMALL, "--json", str(tmp_path / "rows.json"), *arguments), sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused_before_any_measurement(tmp_path: Path) -> None:
    """A missing folder is refused before any measurement, and not created."""
    path = tmp_path / "missing" / "rows.json"
    refused(run(*SMALL, "--model", "/no/such/model", "--json", str(path)), "--json must be in a folder that exists")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_a_file_gets_one_sentence_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A folder given as a file is refused, without files in it or next to it."""
    (tmp_path / "rows.json").mkdir()
    refused(run(*SMALL, "--json", str(tmp_path / "rows.json")), "--json must be a file, got ")
    assert [path.relative_to(tmp_path).name for path in tmp_path.rglob("*")] == ["rows.json"]


def test_one_path_for_file_and_folder_is_refused(tmp_path: Path) -> None:
    """One path for file and folder is refused, in any spelling."""
    json_file, report = tmp_path / "out", tmp_path / "." / ".." / tmp_path.name / "out"
    refused(run(*SMALL, "--json", str(json_file), "--report", str(report)), "--json is a file and --report a folder")
    assert list(tmp_path.iterdir()) == []


def test_special_files_are_not_replaced() -> None:
    """A path that is not a regular file, such as a device, is refused."""
    refused(run(*SMALL, "--json", os.devnull), f"--json must be a file, got '{os.devnull}'")


def test_resuming_needs_an_output() -> None:
    """``--resume`` is refused without an output to resume."""
    refused(run(*SMALL, "--resume"), "--resume continues a sweep that writes --json or --report")


def test_an_error_does_not_change_an_existing_file(tmp_path: Path) -> None:
    """After an error, an existing file is not changed."""
    path = tmp_path / "rows.json"
    path.write_text("before")
    refused(run(*SMALL, "--json", str(path), "--prompt", "40"), "prompt must be at least 1")
    assert path.read_text() == "before"


def test_a_value_with_brackets_is_shown_as_it_was_given() -> None:
    """Names with brackets are not markup."""
    refused(run(*SMALL, "--press", "[red]knorm[/]"), "got '[red]knorm[/]'")


def test_a_long_sentence_is_on_one_line() -> None:
    """Errors are on one line at any width, so that they can be searched for."""
    refused(run(*SMALL, "--model", "/no/such/" + "x" * 200, width=40), "could not be loaded: give reference or")


def test_help_names_every_option() -> None:
    """The help has every option with its values."""
    result = run("--help", width=200)
    assert result.exit_code == 0
    for option in "model text press keep-ratios prune-after skip-layers schedule prompt samples tokens".split():
        assert f"--{option}" in result.stdout
    for option in ("--device", "--dtype", "--timing", "--json", "--report", "--resume", "--trust-remote-code"):
        assert option in result.stdout
    assert ", ".join(list(PRESSES)[:4]) in result.stdout
