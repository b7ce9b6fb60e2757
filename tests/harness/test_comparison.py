"""The comparison of presses: verdicts, confidence intervals, and the page."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp
from typer import Typer
from typer.testing import CliRunner

from pressgauge.presses import PRESSES
from tools.comparison import __main__ as command
from tools.comparison.claims import CLAIMS, Claim, Verdict, verdict
from tools.comparison.measurements import RATIOS, SCHEDULES, Case, Change, Effect, change, effect
from tools.comparison.page import nats, percent

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"
BETWEEN = Claim("h2o", 0.8, 0.02, 0.03)
AT_MOST = Claim("knorm", 0.8, 0.005, 0.005)


@pytest.mark.parametrize(
    ("claim", "interval", "expected"),
    [
        (BETWEEN, (0.021, 0.029), "holds"),
        (BETWEEN, (0.02, 0.03), "holds"),
        (BETWEEN, (0.01, 0.025), "cannot be decided"),
        (BETWEEN, (0.025, 0.04), "cannot be decided"),
        (BETWEEN, (-1.0, 1.0), "cannot be decided"),
        (BETWEEN, (0.031, 0.04), "fails: more"),
        (BETWEEN, (-0.01, 0.019), "fails: less"),
        (AT_MOST, (-0.2, -0.1), "holds"),
        (AT_MOST, (-0.2, 0.005), "holds"),
        (AT_MOST, (0.004, 0.006), "cannot be decided"),
        (AT_MOST, (0.006, 0.1), "fails: more"),
    ],
)
def test_a_claim_is_judged_by_the_whole_interval(
    claim: Claim, interval: tuple[float, float], expected: Verdict
) -> None:
    """A claim is judged by the whole confidence interval, and a single number is an upper bound."""
    assert verdict(claim, interval) == expected


def test_an_interval_is_that_of_students_t() -> None:
    """Confidence intervals are those of Student's t over documents."""
    values = [0.3, -0.1, 0.25, 0.4, 0.05]
    found, wanted = change(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((0.18, wanted.low, wanted.high), rel=1e-12)


def lines() -> list[str]:
    """Lines of the page."""
    return PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["knorm", "snapkv"])
def test_the_page_is_reproduced_to_the_digits_shown(name: str) -> None:
    """Rows of the page are reproduced by a new measurement."""
    case = Case("reference", "reference", "reference", command.DOCUMENTS, 1024)
    found = effect(case, name, "prefill", 0.5)
    row = f"| {name} | prefill | 0.5 | {percent(found.ppl)} | {nats(found.recalled)} | {found.held:.0f} |"
    text = lines()
    begin = text.index("## All figures: reference")
    assert row in text[begin : text.index("## All figures: tinystories on its own stories")]


def test_the_page_has_every_claim_and_every_measurement() -> None:
    """The page has each claim on each text, and all presses, schedules and ratios for each text."""
    text = "\n".join(lines())
    for claim in CLAIMS:
        assert text.count(f"| {claim} |") == 2, "once in the tally and once beside the measurements"
    for name in PRESSES:
        for schedule in SCHEDULES:
            for ratio in RATIOS:
                assert text.count(f"\n| {name} | {schedule} | {ratio:g} |") == 3


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Run the command with made-up effects, which depend on press and ratio."""
    asked: list[tuple[Any, ...]] = []

    def made_up(case: Case, name: str, schedule: str, ratio: float) -> Effect:
        asked.append((case, name, schedule, ratio))
        size = (1 - ratio) * (1 + list(PRESSES).index(name)) / 10
        facts = Change(size, size, size) if case.text == "reference" else None
        return Effect(Change(size, size - 0.001, size + 0.001), facts, 100 * ratio, False)

    monkeypatch.setattr(command, "effect", made_up)
    monkeypatch.setattr(command, "ProcessPoolExecutor", lambda **given: ThreadPoolExecutor(1))
    app = Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, arguments), asked


def test_the_command_writes_a_page_for_any_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ``--model``, the command writes a page and a plot of that model."""
    options = ("--model", "some/model", "--text", "pg-19", "--documents", "3", "--tokens", "256", "--no-timing")
    monkeypatch.setattr(command, "texts", lambda case: None)
    result, asked = run(monkeypatch, *options, "--folder", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert {case for case, *_ in asked} == {Case("some/model on pg-19", "some/model", "pg-19", 3, 256)}
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "`nox -s comparison -- --model some/model --text pg-19 --tokens 256 --documents 3`" in page
    assert "| knorm without 20% of the entries: at most +0.5% | 0 | 0 | 2 | 0 |" in page
    assert "| +2.0 % [1.9, 2.1]: fails: more | +2.0 % [1.9, 2.1]: 80 held | +2.0 % [1.9, 2.1]: fails: more |" in page
    assert "| knorm | step | 0.7 | +3.0 % [2.9, 3.1] | 70 |" in page
    assert "Time per token" not in page
    assert "recalled" not in page
    assert (tmp_path / "comparison-0.svg").read_text(encoding="utf-8").startswith("<svg")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--folder", "nowhere"), "--folder must be a folder that exists, got 'nowhere'"),
        (("--documents", "1"), "--documents must be at least 2, for a confidence interval, got 1"),
        (("--tokens", "64", "--model", "reference"), "--tokens must be at least 128, got 64"),
        ((), "was not found: give --model and --text"),
        (("--model", "reference"), "--model needs --folder, so that the page of the usual models is not overwritten"),
        (
            ("--model", "reference", "--text", "nothing", "--folder", "."),
            "reference on nothing: text must be reference, ",
        ),
        (("--model", "nowhere", "--folder", "."), "nowhere on wikitext-2: model 'nowhere' "),
    ],
)
def test_a_mistake_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    """Invalid options are refused in one sentence, before any measurement."""
    monkeypatch.setattr(command, "SHARED", tmp_path)
    result, asked = run(monkeypatch, *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.replace("│", " ").split())
    assert not asked
