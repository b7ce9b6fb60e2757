"""Audits by workers of pytest-xdist, whose controller does not load what is under audit."""

import os
import subprocess
import sys
from pathlib import Path

FACTORY = """
import os
from pressgauge import KnormPress

assert "PYTEST_XDIST_WORKER" in os.environ, "loaded by the controller"

def make(keep_ratio, **options):
    return KnormPress(keep_ratio, **options)
"""

WATCH = """
import os, sys

def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        print("the controller imported torch:", "torch" in sys.modules)
"""


def test_workers_describe_the_subject(tmp_path: Path) -> None:
    """The summary describes the subject, which only workers load, and the header has its name. The controller does not
    import torch, for which workers would wait."""
    (tmp_path / "loads.py").write_text(FACTORY)
    (tmp_path / "watch.py").write_text(WATCH)
    audit = ["pressgauge", "audit", "compressor", "loads:make", "--", "-n", "1", "-k", "it_runs", "-p", "watch"]
    # Not one of the prepared processes, which have imported torch, nor as a worker, if this is one.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", *audit]
    ended = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    described = "subject: loads:make, version unknown: a transformers cache, held to schedule budget"
    assert lines.index("subject: loads:make") < lines.index(described)
    assert "held            it runs and its cache can be read" in lines
    assert "the controller imported torch: False" in lines
