"""Metrics of one's own: from the command line into table, file and page, and what is refused."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pressgauge import KnormPress, Uncompressed, perplexity
from pressgauge.bench.metrics import Measured, Metric, find_metric
from pressgauge.bench.quantities import Quantity
from pressgauge.cli import app
from pressgauge.models import load
from pressgauge.texts import load_text

PRESS = KnormPress(0.5, prune_after=16, skip_layers=(0,))
SMALL = "measure --samples 2 --tokens 40 --prune-after 16 --keep-ratios 0.5 --device cpu --dtype float64".split()
MODULE = """
from pressgauge.bench.quantities import Column, Quantity


def worst(compressed, uncompressed):
    return float((compressed.nll - uncompressed.nll)[compressed.scored].max())


worst.quantity = Quantity("worst token", "largest rise of the NLL of a token", "nats", "less")


def evicted(compressed, uncompressed):
    assert not uncompressed.evicted_at
    return sum(int((table < 2**31 - 1).sum()) for table in compressed.evicted_at) / 2


evicted.quantity = Quantity("entries gone", "evicted entries per sample")


def lost(compressed, uncompressed):
    return int((uncompressed.hits & ~compressed.hits).sum()) / compressed.scored_tokens


lost.quantity = Quantity("lost hits", "tokens that only the uncompressed model predicts", "share of tokens", "less")


def tensor(compressed, uncompressed):
    return compressed.nll.mean()


def text(compressed, uncompressed):
    return "1.0"


def truth(compressed, uncompressed):
    return True


def broken(compressed, uncompressed):
    return compressed.perplexity


def nothing(compressed, uncompressed):
    return float("nan")


for function in (tensor, text, truth, broken, nothing):
    function.quantity = Quantity(function.__name__, "for tests")


def undeclared(compressed, uncompressed):
    return 1.0


def declared_by_its_name(compressed, uncompressed):
    return 1.0


declared_by_its_name.quantity = "worst"


def columns(compressed, uncompressed):
    return 1.0


columns.quantity = Quantity("a", "b", page=Column("c", str), timed=True)


def taken(compressed, uncompressed):
    return 1.0


taken.quantity = Quantity("accuracy", "for tests")


def nameless(compressed, uncompressed):
    return 1.0


nameless.quantity = Quantity("", "")
constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module of metrics."""
    (tmp_path / "metrics_of_tests.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "metrics_of_tests", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def named(*names: str) -> str:
    """Metrics of the module, for the command line."""
    return ",".join(f"metrics_of_tests:{name}" for name in names)


def test_metrics_are_in_table_file_and_page_with_the_values_of_both_arms(folder: Path) -> None:
    """Per row, the values are those computed here from two runs; the uncompressed row is compared with itself."""
    result = CliRunner().invoke(
        app, [*SMALL, "--metric", named("worst", "evicted", "lost"), "--json", "rows.json", "--report", "page"]
    )
    assert result.exit_code == 0, result.output
    whole, row = json.loads((folder / "rows.json").read_text(encoding="utf-8"))["rows"][:2]
    model, tokenizer = load("reference", dtype="float64")
    ids = load_text("reference", tokenizer, samples=2, tokens=40)
    base, pressed = (perplexity(model, ids, press) for press in (None, PRESS))
    worst, lost = float((pressed.nll - base.nll).max()), int((base.hits & ~pressed.hits).sum()) / 78
    assert [metric["value"] for metric in whole["metrics"]] == [0, 0, 0]
    assert [metric["value"] for metric in row["metrics"]] == [pytest.approx(worst), pressed.evictions / 2, lost]
    assert row["metrics"][0] == {
        "reference": "metrics_of_tests:worst",
        "name": "worst token",
        "meaning": "largest rise of the NLL of a token",
        "value": pytest.approx(worst),
        "unit": "nats",
        "better": "less",
        "drawn": False,
    }
    page = (folder / "page" / "report.html").read_text(encoding="utf-8")
    for shown in (f"{worst:.3f}", f"{lost:.1%}"):
        assert shown in result.stdout
        assert f"<td>{shown}</td>" in page
    assert "largest rise of the NLL of a token. Less is better" in page
    again = CliRunner().invoke(app, ["report", "rows.json", "--to", "again"])
    assert again.exit_code == 0, again.output
    assert f"<td>{worst:.3f}</td>" in (folder / "again" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensor", "must return a float, got tensor("),
        ("text", "must return a float, got '1.0'"),
        ("truth", "must return a float, got True"),
        ("broken", "failed (AttributeError: 'Perplexity' object has no attribute 'perplexity')"),
        ("undeclared", "must have a pressgauge.bench.quantities.Quantity as its attribute quantity, got none"),
        ("declared_by_its_name", "as its attribute quantity, got str"),
        ("columns", "may have name, meaning, unit, better, drawn, got page, timed, too"),
        ("taken", "must have a name of its own, got 'accuracy', which another quantity has"),
        ("nameless", "must have a name and a meaning, got ''"),
        ("constant", "must name a function, and metrics_of_tests:constant is int"),
        ("absent", "metrics_of_tests:absent was not found: AttributeError"),
    ],
)
def test_what_is_no_metric_is_refused_by_a_sentence(names: str, message: str, folder: Path) -> None:
    """The sentence names the metric, what it has, and the way out; nothing is written."""
    result = CliRunner().invoke(app, [*SMALL, "--metric", named(names), "--json", "rows.json"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "rows.json").exists()


def test_a_name_without_a_module_is_refused() -> None:
    """A metric is ``package.module:function``."""
    result = CliRunner().invoke(app, [*SMALL, "--metric", "worst"])
    assert result.exit_code == 2
    assert "--metric must be package.module:function, got 'worst'" in result.stderr


def test_a_value_that_is_not_finite_is_kept(folder: Path) -> None:
    """NaN is a value of a cell, and is distinguished from a missing one in JSON."""
    result = CliRunner().invoke(app, [*SMALL, "--metric", named("nothing"), "--json", "rows.json"])
    assert result.exit_code == 0, result.output
    assert "not defined" in result.stdout
    row = json.loads((folder / "rows.json").read_text(encoding="utf-8"))["rows"][1]
    assert row["metrics"][0]["value"] == "nan"
    assert math.isnan(Measured.from_dict(row["metrics"][0]).value)


def test_a_changed_metric_is_measured_again(folder: Path) -> None:
    """The key of a result in the journal contains the file of each metric."""
    before = find_metric(named("worst")).source
    path = folder / "metrics_of_tests.py"
    path.write_text(MODULE.replace("max()", "min()"), encoding="utf-8")
    assert len({before, find_metric(named("worst")).source, ""}) == 3


def test_a_metric_gets_the_distances_and_the_history(folder: Path) -> None:
    """Both arms have NLL, hits and evictions per token, and the compressed one its distances."""
    model, tokenizer = load("reference")
    ids = load_text("reference", tokenizer, samples=2, tokens=40)
    against = Uncompressed(model, ids)
    pressed = perplexity(model, ids, KnormPress(0.5, prune_after=16), against=against)
    seen: list[Any] = []
    metric = Metric("m:f", lambda *arms: seen.extend(arms) or 1, Quantity("a", "b"))  # type: ignore[func-returns-value]
    assert against.result is not None
    assert metric.measure(pressed, against.result).value == 1
    assert (seen[0] is pressed, seen[1] is against.result) == (True, True)
    assert seen[0].kl.shape == seen[0].nll.shape == seen[1].hits.shape == (2, 39)
    assert len(seen[0].evicted_at) == 3
