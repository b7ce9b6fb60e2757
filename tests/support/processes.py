"""Several commands in one process, which share what they import."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.prepared import python

SCRIPT = """
import json, os, runpy, sys, tempfile

ended, own = [], sys.path[1:]
saved = [os.dup(1), os.dup(2)]
for folder, module, arguments in json.load(sys.stdin):
    os.chdir(folder)
    sys.path[:] = [folder, *own]
    sys.argv = [module, *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as error:
            code = int(error.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, (file, before) in enumerate(zip((out, err), saved)):
            os.dup2(before, number + 1)
            file.seek(0)
        ended.append([code, out.read().decode(), err.read().decode()])
print(json.dumps(ended))
"""


def run_together(
    *commands: tuple[Path, Sequence[str]], source: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``python -m MODULE ARGUMENTS`` of each command in its folder, one after the other in one process.

    Args:
        commands: a folder, and the module with its arguments.
        source: folder to import from, or that of the environment.
    """
    environment = os.environ | ({} if source is None else {"PYTHONPATH": str(source)})
    given = [(str(folder), module, arguments) for folder, (module, *arguments) in commands]
    ran = subprocess.run(
        [*python(), "-c", SCRIPT],
        input=json.dumps(given),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [
        subprocess.CompletedProcess([module, *arguments], code, out, err)
        for (_, module, arguments), (code, out, err) in zip(given, json.loads(ran.stdout), strict=True)
    ]
