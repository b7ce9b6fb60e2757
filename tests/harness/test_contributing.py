"""The suite covers a press and a law added by the instructions of docs/contributing.md."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.prepared import python

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")

PRESS = '''"""``LongestPress``."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pressgauge.presses.attention_scores import Votes
from pressgauge.presses.base import Press
from pressgauge.presses.ranking import wide


@dataclass(frozen=True)
class LongestPress(Press):
    """Keeps the keys of highest L2 norm."""

    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the norm."""
        return wide(keys).norm(dim=-1)
'''
ORACLE = '{"score": lambda keys, layer, head: lambda held: [sum(x * x for x in keys[at]) ** 0.5 for at in held]}'
LAW = '''

def test_a_toy_law(subject: Subject) -> None:
    """Held by every subject."""
    assert subject.name
'''
SCRIPT = """
import contextlib, io, json, runpy, sys
import pytest

sys.path.insert(0, "tests")
found = {}

class Selection:
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        found["collected"] = [item.nodeid for item in items]
        items[:] = [item for item in items if "toy_law" in item.nodeid or "[longest-budget" in item.nodeid
                    and ("test_entries" in item.nodeid or "test_counts" in item.nodeid)
                    and item.nodeid.startswith("tests/conformance")]

    def pytest_sessionfinish(self, session):
        found["ran"] = session.testscollected

def printed(work):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = work()
    return [int(code or 0), out.getvalue()]

def command(*arguments):
    sys.argv = ["pressgauge", *arguments]
    try:
        runpy.run_module("pressgauge", run_name="__main__")
    except SystemExit as ended:
        return ended.code

where, measure = json.load(sys.stdin)
suite = ["-p", "no:cacheprovider", "-p", "no:randomly", "-q", *where]
found["suite"] = printed(lambda: pytest.main(suite, plugins=[Selection()]))
from properties.test_cache_machine import CacheMachine
from properties.test_sequence_machine import SequenceMachine
for machine in (CacheMachine, SequenceMachine):
    found[machine.__name__] = [subject.name for subject in machine.subjects]
found["measure"] = printed(lambda: command(*measure))
import pressgauge
found["ratio"] = pressgauge.LongestPress(0.5).keep_ratio
print()
print(json.dumps(found))
"""
"""Everything in one process, since most of the time is that of importing torch and transformers."""
PROPERTIES = ("counts", "which", "cache_machine", "sequence_machine")
MEASURE = ("measure", "--press", "longest", "--samples", "1", "--tokens", "40", "--prune-after", "16",
           "--keep-ratios", "0.5")  # fmt: skip


def files(heading: str) -> list[str]:
    """Files in a table of the page."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with an additional press and law."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)

    def edit(file: str, old: str, new: str) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, (file, old)
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")

    module, registry, ours = files("A press")
    (folder / module.replace("<name>", "longest")).write_text(PRESS, encoding="utf-8")
    edit(registry, '    "tova": "TOVAPress",\n', '    "tova": "TOVAPress",\n    "longest": "LongestPress",\n')
    edit(registry, '    "TOVAPress",\n]', '    "TOVAPress",\n    "LongestPress",\n]')
    edit(ours, '    "tova": {"score": "tova"},\n', f'    "tova": {{"score": "tova"}},\n    "longest": {ORACLE},\n')
    laws, _ = files("A law")
    with (folder / laws.replace("<topic>", "rows")).open("a", encoding="utf-8") as file:
        file.write(LAW)
    return folder


@pytest.fixture(scope="module")
def found(copy: Path) -> dict[str, Any]:
    """What the suite, the state machines, the command line and the package of the copy have of the press and the
    law."""
    where = ["tests/conformance", *(f"tests/properties/test_{name}.py" for name in PROPERTIES)]
    ended = subprocess.run(
        [*python(), "-c", SCRIPT],
        input=json.dumps([where, MEASURE]),
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def test_the_suite_covers_a_new_press_and_a_new_law(found: dict[str, Any]) -> None:
    """A new press is covered by laws, properties, one pass and state machines, and a new law runs on every press."""
    listed = "\n".join(found["collected"])
    for schedule in ("budget", "step", "prefill"):
        assert f"test_a_toy_law[longest-{schedule}]" in listed
        assert f"test_the_best_entries_are_retained[longest-{schedule}]" in listed
    assert "tests/properties/test_counts.py" in re.findall(r"^(.*)::.*longest-", listed, flags=re.MULTILINE)
    for machine in ("CacheMachine", "SequenceMachine"):
        assert {"longest-budget", "longest-step", "longest-prefill"} <= set(found[machine]), machine
    code, output = found["suite"]
    assert code == 0, output
    assert found["ran"] > 30
    assert " passed" in output


def test_the_command_line_and_the_package_have_the_press(found: dict[str, Any]) -> None:
    """``pressgauge measure`` measures the press, and it is imported from the package."""
    code, output = found["measure"]
    assert code == 0, output
    assert "longest, budget" in output
    assert found["ratio"] == 0.5


def test_the_files_that_are_named_exist() -> None:
    for heading in re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE):
        for file in files(heading):
            assert "<" in file or (ROOT / file).is_file(), file
