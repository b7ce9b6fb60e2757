"""``python -m tools.installs``: run the install lines of README and docs in empty environments, and
use the installation. pip's environment variables pin the releases."""

import os
import shlex
import subprocess
import tempfile
import time
import venv
from pathlib import Path

from support.pages import DOCS, blocks, commands
from tools.installs.lines import CLONE, distinct, folder


def run(command: list[str], where: Path, environment: Path, *, status: int = 0) -> str:
    """Output of a command run with the programs of an environment, without modules of this one.

    Raises:
        SystemExit: if it ends with another status.
    """
    variables = os.environ | {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    ended = subprocess.run(command, cwd=where, env=variables, capture_output=True, text=True, check=False)
    if ended.returncode != status:
        raise SystemExit(f"{shlex.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def works(lines: list[str], where: Path, environment: Path) -> None:
    """Check an installation: commands succeed, and the conformance suite finds the bug in the example of its page."""
    if lines[-1].endswith(" nox"):
        run(["python", "-m", "nox", "--version"], where, environment)
        return
    for command in (["pressgauge"], ["python", "-m", "pressgauge"]):
        assert run([*command, "--version"], where, environment).startswith("pressgauge ")
    if any("--group test" in line for line in lines):
        run(["python", "-m", "pytest", "-q", "tests/unit/rules/test_budget.py"], where, environment)
    if any(f"{CLONE}[lm-eval]" in line for line in lines):
        assert "--model_args" in run(["python", "-m", "pressgauge.lm_eval", "run", "--help"], where, environment)
    if any(f"{CLONE}[conformance]" in line for line in lines):
        package = where / "my_package"
        package.mkdir()
        page = DOCS / "conformance.md"
        (package / "my_module.py").write_text(blocks(page, "python")[0][1], encoding="utf-8")
        suite = next(shlex.split(line) for line in commands(page) if "--pyargs" in line)
        found = run([*suite, "-k", "prune_after or something_is_evicted"], where, environment, status=1)
        assert "broken          nothing is evicted up to prune after" in found, found
        assert "held            something is evicted" in found, found


if __name__ == "__main__":
    for place, lines in distinct().items():
        with tempfile.TemporaryDirectory() as name:
            environment = Path(name) / "environment"
            venv.create(environment, with_pip=True)
            where = folder(lines, Path(name))
            start = time.monotonic()
            for line in lines:
                run(shlex.split(line), where, environment)
            seconds = time.monotonic() - start
            works(lines, where, environment)
        print(f"{place}: {'; '.join(lines)} ({seconds:.0f} s)", flush=True)
