"""The suite covers a press and a law added by the instructions of docs/contributing.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
MACHINE = """
import sys
sys.path.insert(0, "tests")
from properties.test_{name} import {machine}
print(*(subject.name for subject in {machine}.subjects))
"""


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


def run(copy: Path, *arguments: str) -> str:
    """Output of ``python ARGUMENTS`` with the copy; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_suite_covers_a_new_press_and_a_new_law(copy: Path) -> None:
    """A new press is covered by laws, properties, one pass and state machines, and a new law runs on every press."""
    suite = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-q")
    where = (
        "tests/conformance",
        *(f"tests/properties/test_{name}.py" for name in ("counts", "which", "cache_machine", "sequence_machine")),
    )
    listed = run(copy, *suite, "--collect-only", *where)
    for schedule in ("budget", "step", "prefill"):
        assert f"test_a_toy_law[longest-{schedule}]" in listed
        assert f"test_the_best_entries_are_retained[longest-{schedule}]" in listed
    assert "tests/properties/test_counts.py" in re.findall(r"^(.*)::.*longest-", listed, flags=re.MULTILINE)
    for module in ("cache_machine.CacheMachine", "sequence_machine.SequenceMachine"):
        name, machine = module.split(".")
        found = run(copy, "-c", MACHINE.format(name=name, machine=machine))
        assert {"longest-budget", "longest-step", "longest-prefill"} <= set(found.split()), module
    found = run(copy, *suite, "tests/conformance", "-k", "toy_law or longest-budget and (entries or counts)")
    assert " passed" in found


def test_the_command_line_and_the_package_have_the_press(copy: Path) -> None:
    small = ("--samples", "1", "--tokens", "40", "--prune-after", "16", "--keep-ratios", "0.5")
    assert "longest, budget" in run(copy, "-m", "pressgauge", "measure", "--press", "longest", *small)
    assert run(copy, "-c", "import pressgauge; print(pressgauge.LongestPress(0.5).keep_ratio)").strip() == "0.5"


def test_the_files_that_are_named_exist() -> None:
    for heading in re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE):
        for file in files(heading):
            assert "<" in file or (ROOT / file).is_file(), file
