"""Comparisons of recall, paired over samples."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pressgauge import KnormPress
from pressgauge.bench.answering import Answers
from pressgauge.bench.results import Results, write_results
from pressgauge.bench.score_intervals import score_interval
from pressgauge.bench.task_comparing import compare_tasks, task_contests
from pressgauge.bench.task_row import TaskInput, TaskRow, TaskSource, make_task_row
from pressgauge.cli import app
from pressgauge.report.tasks import task_sections


def row(press: str, recalls: list[float], ratio: float = 0.5, prompts: str = "prompts") -> TaskRow:
    """A row whose uncompressed model recalls everything."""
    source = TaskSource("a-model", "float32", "cpu", "weights", 1000)
    given = TaskInput("niah", len(recalls), 512, (470,) * len(recalls), 34, prompts)
    plain = Answers(("",) * len(recalls), (1.0,) * len(recalls), 100, 0, 0, 2048, False)
    base = make_task_row(press, KnormPress(1.0), source, given, plain)
    found = replace(plain, recalls=tuple(recalls), affected_tokens=9, compressing=True)
    return make_task_row(press, KnormPress(ratio), source, given, found, base)


LOST, KEPT = [0.0] * 12, [1.0] * 12


def test_the_same_cells_are_paired() -> None:
    """Cells of both files have an interval; those of one file only are listed, and what differs is named."""
    before = Results((), {}, (row("knorm", LOST), row("random", LOST), row("knorm", LOST, 0.2)))
    after = Results((), {}, (row("knorm", KEPT), replace(row("random", KEPT), dtype="bfloat16"), row("tova", KEPT)))
    found = compare_tasks(before, after)
    assert [cell.after.press for cell in found.cells] == ["knorm", "random"]
    assert found.cells[0].interval == score_interval(LOST, KEPT)
    assert ([one.keep_ratio for one in found.missing], [one.press for one in found.new]) == ([0.2], ["tova"])
    assert found.differences == {"dtype": ("float32", "bfloat16")}


def test_other_prompts_are_not_compared() -> None:
    found = compare_tasks(Results((), {}, (row("a", LOST),)), Results((), {}, (row("a", KEPT, prompts="others"),)))
    assert [cell.interval for cell in found.cells] == [None]
    assert "prompts_sha256" in found.differences


def test_presses_are_compared_under_the_same_schedule_and_ratio() -> None:
    """The better one comes first, and intervals hold at the same time."""
    rows = [row("knorm", LOST), row("random", KEPT), row("tova", KEPT), row("random", KEPT, 0.2)]
    found = task_contests([*rows, replace(row("h2o", KEPT), schedule="step")])
    assert [(one.better.press, one.worse.press, one.told) for one in found] == [
        ("random", "knorm", True),
        ("tova", "knorm", True),
        ("random", "tova", False),
    ]
    assert found[0].interval == score_interval(LOST, KEPT, 1 - 0.05 / 3)


def test_a_gated_task_has_no_contests() -> None:
    assert task_contests([replace(row("knorm", LOST), ceiling=0.5), replace(row("random", KEPT), ceiling=0.5)]) == []


def test_the_page_says_which_press_recalls_more() -> None:
    (section,) = task_sections([row("knorm", LOST), row("random", KEPT)])
    (text,) = section["contests"]
    assert text.startswith("random recalls more than knorm under budget at 0.5, by ")
    (section,) = task_sections([row("knorm", KEPT), row("random", KEPT)])
    assert section["contests"] == ["Between knorm and random under budget at 0.5 no difference can be told."]


@pytest.mark.parametrize("prompts", ["prompts", "others"])
def test_the_command_compares_tasks(prompts: str, tmp_path: Path) -> None:
    """Two files without texts give a table of recalls, and a note if their prompts differ."""
    for name, recalls, given in (("a", LOST, "prompts"), ("b", KEPT, prompts)):
        write_results(tmp_path / name, [], {}, [row("knorm", recalls, prompts=given)])
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.stderr
    assert "a-model, task niah: knorm, budget, 0.5 from 512" in result.stdout
    assert ("+100 [" in result.stdout) == (prompts == "prompts")
    assert ("the files have other prompts" in result.stdout) == (prompts == "others")
