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


def test_workers_describe_the_subject_or_say_why_it_cannot_be_used(tmp_path: Path) -> None:
    """The summary describes the subject, which only workers load; one that cannot be used is one sentence, with the
    code of wrong usage."""
    (tmp_path / "loads.py").write_text(FACTORY)
    (tmp_path / "fails.py").write_text("raise KeyError('planted')")
    options = ["--", "-n", "1", "-k", "it_runs"]
    audits = [["pressgauge", "audit", "compressor", f"{name}:make", *options] for name in ("loads", "fails")]
    good, bad = run_together(*((tmp_path, audit) for audit in audits))
    assert good.returncode == 0, good.stdout + good.stderr
    lines = good.stdout.splitlines()
    described = "subject: loads:make, version unknown: a transformers cache, held to schedule budget"
    assert lines.index("subject: loads:make") < lines.index(described)
    assert "held            it runs and its cache can be read" in lines
    assert bad.returncode == 2, bad.stdout + bad.stderr
    assert [line for line in bad.stderr.splitlines() if line] == [
        "ERROR: --subject fails:make could not be imported: KeyError: 'planted'"
    ]
