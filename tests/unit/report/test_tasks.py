"""Results of tasks in the terminal and on the page."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pressgauge import KnormPress
from pressgauge.bench.answering import Answers
from pressgauge.bench.task_row import TaskInput, TaskRow, TaskSource, make_task_row
from pressgauge.report.page import write_report
from pressgauge.report.tasks import make_task_tables, task_sections


def rows(before: float, after: float, name: str = "streaming-llm", model: str = "a-model") -> list[TaskRow]:
    """The uncompressed row of a press, and one at 0.5."""
    source = TaskSource(model, "float32", "cpu", "weights", 1000)
    given = TaskInput("niah", 20, 512, (460,) * 19 + (478,), 34, "prompts")
    uncompressed = Answers(("",) * 20, (before,) * 20, 100, 0, 0, 2048, False)
    pressed = Answers(("",) * 20, (after,) * 20, 100, 90, 7, 1024, True)
    base = make_task_row(name, KnormPress(1.0), source, given, uncompressed)
    return [base, make_task_row(name, KnormPress(0.5), source, given, pressed, base)]


def shown(of: list[TaskRow], width: int = 80) -> str:
    console = Console(width=width, record=True)
    for table in make_task_tables(of):
        console.print(table)
    return console.export_text()


def test_a_table_has_recall_change_and_verdict_in_80_columns() -> None:
    text = shown(rows(1, 0.05))
    assert "task niah: a-model" in text
    (line,) = (line for line in text.splitlines() if " 0.5 " in line)
    assert line.split() == ["streaming-llm", "budget", "0.5", "5.0%", "-95", "[-100,", "-68]", "recalls", "less"]
    assert "20 samples, prompts of 460 to 478 tokens, answers of up to 34" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    (line,) = (line for line in shown(rows(1, 1)).splitlines() if " 0.5 " in line)
    assert line.rstrip().endswith("no difference can be told")


def test_a_gated_task_has_no_change_and_says_why() -> None:
    text = shown(rows(0.1, 0.0))
    assert "NO VERDICT: cannot be told: the uncompressed model recalls 10 %" in " ".join(text.split())
    assert "recalls less" not in text
    assert "[-" not in text


def test_models_and_tasks_have_tables_of_their_own() -> None:
    text = shown([*rows(1, 1), *rows(1, 1, model="another")])
    assert "task niah: a-model" in text
    assert "task niah: another" in text


def test_the_page_has_a_section_per_task(tmp_path: Path) -> None:
    """Recall, its change, verdict and a summary of each press; of a gated task the reason only."""
    of = [*rows(1, 0.05), *rows(0.1, 0.0, model="small")]
    page = write_report(tmp_path / "page", [], maps={}, correlations={}, provenance={}, tasks=of)
    text = page.read_text(encoding="utf-8")
    assert "<h2>a-model, task niah</h2>" in text
    assert "The uncompressed model recalls 100%." in text
    assert "streaming-llm, budget: 5% at 0.5 (recalls less)." in text
    assert '<td class="verdict bad">recalls less</td>' in text
    assert "It cannot be told: the uncompressed model recalls 10 %." in text
    first, second = task_sections(of)
    assert (first["gated"], second["summaries"]) == ("", [])


def test_schedules_with_the_same_results_share_a_sentence() -> None:
    """As with answers of one token, before which both schedules evict the same entries."""
    base, pressed = rows(1, 0.05)
    other = [replace(base, schedule="prefill"), replace(pressed, schedule="prefill")]
    (section,) = task_sections([base, pressed, *other])
    assert section["summaries"] == ["streaming-llm, budget and prefill: 5% at 0.5 (recalls less)."]
    (section,) = task_sections([base, pressed, other[0], replace(other[1], recall=0.25)])
    assert [text.split(":")[0] for text in section["summaries"]] == ["streaming-llm, budget", "streaming-llm, prefill"]
    (section,) = task_sections([base])
    assert section["summaries"] == ["streaming-llm, budget: only the uncompressed run was measured."]
    (section,) = task_sections([base, replace(pressed, vacuous=True)])
    assert section["summaries"] == ["streaming-llm, budget: vacuous at 0.5."]


@pytest.mark.parametrize("name", ["knorm[bold]", "<b>knorm</b>"])
def test_names_are_escaped(name: str, tmp_path: Path) -> None:
    assert name in shown(rows(1, 1, name=name), width=200)
    page = write_report(tmp_path / "page", [], maps={}, correlations={}, provenance={}, tasks=rows(1, 1, name=name))
    assert "<b>knorm" not in page.read_text(encoding="utf-8")
