"""The workflow: it can be read, what it runs is there, and the page about CI shows it."""

import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml
from regression.golden import OBTAINED
from test_docs import DOCS, ROOT, name_of, sessions

(FILE,) = (ROOT / ".github" / "workflows").glob("*.yml")
TEXT = FILE.read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
COMMANDS = [shlex.split(step["run"]) for step in STEPS if "run" in step]


def test_the_page_shows_the_workflow() -> None:
    """As it is, and names its file."""
    page = (DOCS / "ci.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- workflow -->\n```yaml\n(.*?)^```\n<!-- /workflow -->$", page, re.M | re.S)
    assert shown is not None
    assert shown[1] == TEXT
    assert f"`{name_of(FILE)}`" in page


def test_every_push_and_every_night() -> None:
    """YAML 1.1 takes ``on`` for true."""
    assert set(WORKFLOW[True]) == {"push", "pull_request", "schedule"}
    minute, hour, *rest = WORKFLOW[True]["schedule"][0]["cron"].split()
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    assert rest == ["*", "*", "*"]


def test_each_job_runs_on_a_push_or_at_night() -> None:
    """Lint, the lock, the oldest transformers and lm-eval on a push; at night what takes long or moves without us."""
    when = {"github.event_name != 'schedule'": "push", "github.event_name == 'schedule'": "night"}
    assert {name: when[job["if"]] for name, job in WORKFLOW["jobs"].items()} == {
        **dict.fromkeys(("lint", "cpu", "oldest", "lm_eval"), "push"),
        **dict.fromkeys(("newest", "zoo", "mutation", "nightly"), "night"),
    }


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_what_is_run_is_there(command: list[str]) -> None:
    """Sessions of the noxfile, and paths of this project."""
    assert command[:2] == ["python", "-m"]
    if command[2:] == ["pip", "install", "nox"]:
        return
    assert command[2:4] == ["nox", "-s"]
    parts = WORKFLOW["jobs"]["mutation"]["strategy"]["matrix"]["part"]
    named = [command[4].replace("${{ matrix.part }}", part) for part in parts]
    assert set(named) <= sessions()
    assert all((ROOT / path).exists() for path in command[6:])


def test_what_came_out_on_a_failure_is_kept() -> None:
    """From where the comparison puts it."""
    (upload,) = [step for step in STEPS if "upload-artifact" in step.get("uses", "")]
    assert upload["if"] == "failure()"
    assert ROOT / upload["with"]["path"] == OBTAINED


def test_the_nightly_run_draws_new_examples_and_keeps_those_that_failed() -> None:
    """With a profile that there is, and Hypothesis's own folder."""
    nightly = WORKFLOW["jobs"]["nightly"]
    script = f"""
from pressgauge.conformance import plugin
profile = plugin.settings.get_profile({nightly["env"]["HYPOTHESIS_PROFILE"]!r})
print(profile.derandomize, profile.database.path, plugin.settings().derandomize)
"""
    # GitHub sets CI, by which Hypothesis's own profile repeats itself and keeps nothing.
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
    # A cache that is saved by the way is not saved after a failure, which is when there is something to keep.
    assert saved["if"] == "always()"
