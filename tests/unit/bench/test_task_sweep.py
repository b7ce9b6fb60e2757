"""Sweeps over tasks: order, journal, files, comparison, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pressgauge.bench import task_sweep
from pressgauge.bench.answering import answers
from pressgauge.bench.plan import TaskPlan
from pressgauge.bench.results import read_results
from pressgauge.bench.task_row import TaskRow
from pressgauge.cli import app

SMALL = ("--task", "recall", "--tokens", "100", "--samples", "3", "--prune-after", "16", "--device", "cpu")


def run(*arguments: str) -> Result:
    """``pressgauge measure`` with these arguments."""
    return CliRunner().invoke(app, ["measure", *arguments], env={"COLUMNS": "80"})


def tasks(path: Path) -> tuple[TaskRow, ...]:
    return read_results(path).tasks


def test_each_press_is_measured_under_prefill_and_budget(tmp_path: Path) -> None:
    """Each has a row per schedule and ratio, beside those of random; no text is measured."""
    path = tmp_path / "rows.json"
    result = run(*SMALL, "--press", "knorm,streaming-llm", "--keep-ratios", "0.5,0.2", "--json", str(path))
    assert result.exit_code == 0, result.stderr
    found = tasks(path)
    assert [(row.press, row.schedule, row.keep_ratio) for row in found] == [
        (press, schedule, ratio)
        for press in ("knorm", "streaming-llm", "random")
        for schedule in ("prefill", "budget")
        for ratio in (1.0, 0.5, 0.2)
    ]
    content = json.loads(path.read_text())
    assert content["rows"] == []
    assert content["provenance"]["samples"] == "3 of each task, up to 100 tokens each"
    assert {row.recalls for row in found if row.keep_ratio == 1} == {(1.0, 1.0, 1.0)}
    assert all(row.evictions > 0 and row.affected_tokens == 3 for row in found if row.keep_ratio < 1)
    assert all(max(row.prompt_tokens) + row.room <= 100 for row in found)
    assert "task recall: reference" in result.stdout


@pytest.mark.parametrize("how", [("--schedule", "step"), ("--press", "knorm(schedule=step)")])
def test_a_schedule_that_is_given_is_the_only_one(how: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert run(*SMALL, *how, "--keep-ratios", "0.5", "--json", str(path)).exit_code == 0
    assert [row.schedule for row in tasks(path)] == ["step"] * 4
    assert [row.press.split("(")[0] for row in tasks(path)] == ["knorm"] * 2 + ["random"] * 2


@pytest.mark.parametrize("how", [("--press", "random"), ("--no-random",)])
def test_random_is_measured_once_or_not_at_all(how: tuple[str, ...], tmp_path: Path) -> None:
    """A random press that is named is not added again, and --no-random leaves it out."""
    path = tmp_path / "rows.json"
    assert run(*SMALL, *how, "--keep-ratios", "0.5", "--json", str(path)).exit_code == 0
    assert [(row.press, row.schedule) for row in tasks(path)] == [
        ("random" if "random" in how else "knorm", schedule) for schedule in ("prefill", "prefill", "budget", "budget")
    ]


def test_texts_and_tasks_are_measured_together(tmp_path: Path) -> None:
    """With --text there are rows of both kinds, the former as without a task."""
    both, alone = tmp_path / "both.json", tmp_path / "alone.json"
    text = ("--text", "reference", "--keep-ratios", "0.5")
    assert run(*SMALL, *text, "--json", str(both)).exit_code == 0
    assert run(*SMALL[2:], *text, "--json", str(alone)).exit_code == 0
    assert read_results(both).rows == read_results(alone).rows
    assert (len(tasks(both)), len(tasks(alone))) == (8, 0)
    assert "tasks" not in json.loads(alone.read_text())


def test_finished_cells_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted sweep goes on where it was, and its file is that of one without interruption."""
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    options = (*SMALL, "--press", "knorm", "--no-random", "--keep-ratios", "0.5,0.2")
    assert run(*options, "--json", str(whole)).exit_code == 0
    asked: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answers(*arguments)

    monkeypatch.setattr(task_sweep, "answers", interrupted)
    assert run(*options, "--json", str(parts)).exit_code == 130
    assert len(asked) == 4
    result = run(*options, "--json", str(parts), "--resume")
    assert result.exit_code == 0, result.stderr
    # The fourth cell again, and the one after it.
    assert len(asked) == 4 + 2
    assert tasks(parts) == tasks(whole)


def test_other_prompts_have_other_digests() -> None:
    """Results of another length or number of samples are not reused, and not compared."""
    plan = TaskPlan(("recall",), {}, 1, 100)
    prompts = [
        task_sweep.prepare_tasks(TaskPlan(("recall",), {}, samples, tokens), "reference")["recall"]
        for samples, tokens in ((1, 100), (1, 80), (2, 100))
    ]
    assert len({task_sweep._input("recall", plan, each).prompts_sha256 for each in prompts}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "niah"), "reference: task 'niah' hides '2956034', which the model's tokenizer cannot encode"),
        (
            ("--task", "needle"),
            "--task must be one of niah, niah-multikey, vt, cwe, fwe, passkey, recall, got 'needle'",
        ),
        (("--task", ""), "--task must be names with commas between them, got ''"),
        (("--task", "recall", "--tokens", "10"), "'recall' needs at least --tokens 25 with this model's tokenizer"),
        (("--task", "recall", "--tokens", "4096"), "--tokens must fit the model's context of 2048 tokens, got 4096"),
        (("--task", "recall", "--tokens", "300"), "nothing from one of 292 tokens with prune_after=512: give more"),
        (("--task", "recall", "--samples", "1000000000000"), "--samples must be at most 10000 for a task, got 1000"),
        (("--task", "recall", "--timing"), "--timing is for texts, and --task alone measures none: give --text too"),
        (("--task", "recall", "--prompt", "7"), "--prompt is for texts, and --task alone measures none"),
        (("--task", "recall", "--interval", "2"), "interval must be 1 with schedule 'prefill'"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_a_sentence(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_page_is_written_from_a_file_with_tasks(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert run(*SMALL, "--keep-ratios", "0.5", "--json", str(path), "--report", str(tmp_path / "own")).exit_code == 0
    result = CliRunner().invoke(app, ["report", str(path), "--to", str(tmp_path / "page")])
    assert result.exit_code == 0, result.stderr
    pages = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("own", "page")]
    assert pages[0] == pages[1]
    assert "reference, task recall" in pages[0]


def test_random_is_measured_beside_the_presses(tmp_path: Path) -> None:
    """Under both schedules, unless it is named or left out."""
    path = tmp_path / "rows.json"
    result = CliRunner().invoke(app, ["measure", *SMALL, "--keep-ratios", "0.5", "--json", str(path)])
    assert result.exit_code == 0, result.stderr
    found = [(row.press, row.schedule) for row in tasks(path) if row.keep_ratio < 1]
    assert found == [(press, schedule) for press in ("knorm", "random") for schedule in ("prefill", "budget")]
