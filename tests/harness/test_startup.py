"""Commands without a model start without torch, transformers or plotting libraries."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "matplotlib", "scipy", "datasets", "jinja2")
SCRIPT = """
import contextlib, io, json, sys
from pressgauge.cli import app

cases, heavy = json.load(sys.stdin)
found, known = [], set()
for case in cases:
    sys.argv = ["pressgauge", *case]
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            app()
        except SystemExit as ended:
            code = ended.code or 0
    imported = {name for name in heavy if name in sys.modules}
    found.append([code, sorted(imported - known), printed.getvalue()])
    known |= imported
print(json.dumps(found))
"""
"""All in one process: a heavy import is that of the first case with it."""
HELP = [("--help",), ("--version",), ("measure", "--help"), ("audit", "--help")]
REFUSED = [
    ("--keep-ratios", "2"),
    ("--keep-ratios", "many"),
    ("--press", "nothing"),
    ("--skip-layers", "last"),
    ("--bands", "30,20"),
    ("--schedule", "never"),
    ("--schedule", "prefill", "--prompt", "2000"),
    ("--dtype", "int8"),
    ("--samples", "0"),
    ("--tokens", "1"),
    ("--model", "/no/such/folder"),
    ("--text", "no-such-file.txt"),
    ("--json", "/no/such/folder/rows.json"),
    ("--resume",),
]


CASES = [*HELP, *(("measure", *arguments) for arguments in REFUSED)]


@pytest.fixture(scope="module")
def started() -> dict[tuple[str, ...], tuple[int, list[str], str]]:
    """Exit code, imported heavy packages and output of the command line, by its arguments."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps([CASES, HEAVY]), capture_output=True, text=True, check=True
    )
    return dict(zip(CASES, map(tuple, json.loads(ended.stdout)), strict=True))


@pytest.mark.parametrize("arguments", CASES, ids=" ".join)
def test_help_and_refusals_import_nothing_heavy(
    arguments: tuple[str, ...], started: dict[tuple[str, ...], tuple[int, list[str], str]]
) -> None:
    """Neither help nor a refusal imports torch, transformers or a plotting library; a refusal is an error."""
    code, heavy, printed = started[arguments]
    assert (code, heavy) == (0 if arguments in HELP else 2, [])
    assert ("error: " in printed) is (arguments not in HELP)


def test_measuring_imports_torch() -> None:
    """Using a press imports torch, so the tests above can fail."""
    script = "import sys, pressgauge as p; print('torch' in sys.modules); p.KnormPress; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "True"]
