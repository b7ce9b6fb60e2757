"""An audit with known findings: they do not fail it, others and outdated entries do."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from support.pages import blocks, commands
from support.processes import run_together

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, subprocess.CompletedProcess[str]]]:
    """The command of the page on its example, with the known finding of the page, and with another one: the folder of
    its outputs, and how it ended."""
    ((_, known),) = blocks(PAGE, "toml")
    command = [*shlex.split(next(line for line in commands(PAGE) if "--known" in line)), "--", "-k", "prune_after"]
    folders = {}
    for matches in (True, False):
        folder = folders[matches] = tmp_path_factory.mktemp("audit")
        (folder / "my_package").mkdir()
        (folder / "my_package" / "my_module.py").write_text(blocks(PAGE, "python")[0][1], encoding="utf-8")
        text = known if matches else known.replace("evicted while", "evicted after")
        (folder / "known.toml").write_text(text, encoding="utf-8")
    ended = run_together(*((folder, command) for folder in folders.values()), source=ROOT / "src")
    return dict(zip(folders, zip(folders.values(), ended, strict=True), strict=True))


@pytest.mark.parametrize("matches", [True, False], ids=["made", "another"])
def test_a_known_finding_does_not_fail_an_audit(
    audited: dict[bool, tuple[Path, subprocess.CompletedProcess[str]]], matches: bool
) -> None:
    """The known finding of the page does not fail the audit of its example; if the finding is another, the audit fails,
    and the entry is named."""
    folder, ended = audited[matches]
    assert ended.returncode == (0 if matches else 1), ended.stdout + ended.stderr
    assert (
        "not found       a known finding: nothing is evicted up to prune after: layer" in ended.stdout
    ) is not matches
    law = json.loads((folder / "laws.json").read_text(encoding="utf-8"))["laws"][0]
    assert (law["law"], law["outcome"]) == ("nothing is evicted up to prune after", "known" if matches else "broken")
    assert f"| {law['law']} | {law['outcome']} | layer 0 evicted" in (folder / "laws.md").read_text(encoding="utf-8")
