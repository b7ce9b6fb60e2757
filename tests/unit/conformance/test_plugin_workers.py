"""Audits by workers of pytest-xdist, whose controller does not load what is under audit."""

from pathlib import Path

from support.processes import run_together

FACTORY = """
import os
from pressgauge import KnormPress

assert "PYTEST_XDIST_WORKER" in os.environ, "loaded by the controller"

def make(keep_ratio, **options):
    return KnormPress(keep_ratio, **options)
"""


def test_workers_describe_the_subject(tmp_path: Path) -> None:
    """The summary describes the subject, which only workers load, and the header has its name."""
    (tmp_path / "loads.py").write_text(FACTORY)
    audit = ["pressgauge", "audit", "compressor", "loads:make", "--", "-n", "1", "-k", "it_runs"]
    (ended,) = run_together((tmp_path, audit))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    described = "subject: loads:make, version unknown: a transformers cache, held to schedule budget"
    assert lines.index("subject: loads:make") < lines.index(described)
    assert "held            it runs and its cache can be read" in lines
