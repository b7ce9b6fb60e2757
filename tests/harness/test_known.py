"""An audit with known findings: they do not fail it, others and outdated entries do."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.pages import blocks, commands

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"


def audited(folder: Path, known: str) -> subprocess.CompletedProcess[str]:
    """The command of the page on its example, with known findings."""
    (folder / "my_package").mkdir()
    (folder / "my_package" / "my_module.py").write_text(blocks(PAGE, "python")[0][1], encoding="utf-8")
    (folder / "known.toml").write_text(known, encoding="utf-8")
    command = next(line for line in commands(PAGE) if "--known" in line)
    return subprocess.run(
        [sys.executable, "-m", *shlex.split(command), "--", "-k", "prune_after"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("matches", [True, False], ids=["made", "another"])
def test_a_known_finding_does_not_fail_an_audit(tmp_path: Path, matches: bool) -> None:
    """The known finding of the page does not fail the audit of its example; if the finding is another, the audit fails,
    and the entry is named."""
    ((_, known),) = blocks(PAGE, "toml")
    ended = audited(tmp_path, known if matches else known.replace("evicted while", "evicted after"))
    assert ended.returncode == (0 if matches else 1), ended.stdout + ended.stderr
    assert (
        "not found       a known finding: nothing is evicted up to prune after: layer" in ended.stdout
    ) is not matches
    law = json.loads((tmp_path / "laws.json").read_text(encoding="utf-8"))["laws"][0]
    assert (law["law"], law["outcome"]) == ("nothing is evicted up to prune after", "known" if matches else "broken")
    assert f"| {law['law']} | {law['outcome']} | layer 0 evicted" in (tmp_path / "laws.md").read_text(encoding="utf-8")
