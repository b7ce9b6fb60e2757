"""Commands without a model start without torch, transformers or plotting libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "matplotlib", "scipy", "datasets", "jinja2")
SCRIPT = """
import json, sys
sys.argv = ["pressgauge", *json.loads(sys.argv[1])]
try:
    from pressgauge.cli import app
    app()
except SystemExit as ended:
    heavy = [name for name in json.loads(sys.stdin.read()) if name in sys.modules]
    print(json.dumps({"code": ended.code, "heavy": heavy}))
"""
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


def started(*arguments: str) -> tuple[int, list[str], str]:
    """Exit code, imported heavy packages and output of the command line."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        input=json.dumps(HEAVY),
        capture_output=True,
        text=True,
        check=True,
    )
    last = json.loads(ended.stdout.splitlines()[-1])
    return last["code"] or 0, last["heavy"], ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("measure", "--help"), ("audit", "--help")], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code, heavy, _ = started(*arguments)
    assert (code, heavy) == (0, [])


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_a_refusal_imports_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, heavy, printed = started("measure", *arguments)
    assert (code, heavy) == (2, [])
    assert "error: " in printed


def test_measuring_imports_torch() -> None:
    """Using a press imports torch, so the tests above can fail."""
    script = "import sys, pressgauge as p; print('torch' in sys.modules); p.KnormPress; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "True"]
