"""The CI workflow: it is valid, the commands it runs exist, and docs/ci.md shows it."""

import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from regression.golden import OBTAINED
from support.pages import DOCS, ROOT, name_of, sessions

(FILE,) = (ROOT / ".github" / "workflows").glob("*.yml")
TEXT = FILE.read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
COMMANDS = [shlex.split(step["run"]) for step in STEPS if "run" in step]


def test_the_page_shows_the_workflow() -> None:
    """The page about CI shows the workflow as it is, and its file name."""
    page = (DOCS / "ci.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- workflow -->\n```yaml\n(.*?)^```\n<!-- /workflow -->$", page, re.M | re.S)
    assert shown is not None
    assert shown[1] == TEXT
    assert f"`{name_of(FILE)}`" in page


def test_the_workflow_runs_on_every_push_and_every_night() -> None:
    """The workflow runs on pushes, pull requests and a schedule."""
    # YAML 1.1 reads ``on`` as true.
    assert set(WORKFLOW[True]) == {"push", "pull_request", "schedule"}
    minute, hour, *rest = WORKFLOW[True]["schedule"][0]["cron"].split()
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    assert rest == ["*", "*", "*"]


def test_each_job_runs_on_a_push_or_at_night() -> None:
    """Lint, locks, the oldest transformers and lm-eval run on pushes; long jobs and new releases at night."""
    when = {"github.event_name != 'schedule'": "push", "github.event_name == 'schedule'": "night"}
    assert {name: when[job["if"]] for name, job in WORKFLOW["jobs"].items()} == {
        **dict.fromkeys(("lint", "cpu", "oldest", "lm_eval"), "push"),
        **dict.fromkeys(("newest", "zoo", "mutation", "nightly"), "night"),
    }


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_the_commands_of_the_workflow_exist(command: list[str]) -> None:
    """The workflow names existing sessions and paths."""
    assert command[:2] == ["python", "-m"]
    if command[2:] == ["pip", "install", "nox"]:
        return
    assert command[2:4] == ["nox", "-s"]
    parts = WORKFLOW["jobs"]["mutation"]["strategy"]["matrix"]["part"]
    named = [command[4].replace("${{ matrix.part }}", part) for part in parts]
    assert set(named) <= sessions()
    assert all((ROOT / path).exists() for path in command[6:])


def test_failed_results_are_uploaded() -> None:
    """On a failure, the folder of the comparison's results is uploaded."""
    (upload,) = [step for step in STEPS if "upload-artifact" in step.get("uses", "")]
    assert upload["if"] == "failure()"
    assert ROOT / upload["with"]["path"] == OBTAINED


def test_the_nightly_run_draws_new_examples_and_stores_failures() -> None:
    """The nightly run uses an existing profile with random examples, and stores Hypothesis's database."""
    nightly = WORKFLOW["jobs"]["nightly"]
    script = f"""
from pressgauge.conformance import plugin
profile = plugin.settings.get_profile({nightly["env"]["HYPOTHESIS_PROFILE"]!r})
print(profile.derandomize, profile.database.path, plugin.settings().derandomize)
"""
    # GitHub sets CI, with which Hypothesis by default derandomises and stores nothing.
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"CI": "true"},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["False", ".hypothesis/examples", "True"]
    restored, saved = [step for step in nightly["steps"] if "cache" in step.get("uses", "")]
    assert restored["with"]["path"] == saved["with"]["path"] == ".hypothesis"
    # The combined cache action does not save after a failure, when there is something to store.
    assert saved["if"] == "always()"
