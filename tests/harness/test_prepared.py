"""Prepared processes are as those of ``sys.executable``, except that torch and transformers are imported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.prepared import python

SEEN = """
import os, sys, threading
print(sys.argv, sys.path[0] == "", os.getcwd(), os.environ["GIVEN"], sys.stdin.read(), __name__)
own = os.environ["OWN"].split(os.pathsep)
print(len(os.environ), sys.path[1:] == own + [path for path in sys.path if "lib" in path])
print(threading.active_count(), file=sys.stderr)
"""


def test_arguments_environment_folder_and_streams_are_those_given(tmp_path: Path) -> None:
    """A program sees the same in both."""
    environment = {"GIVEN": "é", "OWN": "/own:/two", "PYTHONPATH": "/own:/two", "PYTHONUTF8": "1"}
    ended = [
        subprocess.run(
            [*program, "-c", SEEN, "one", "two three"], cwd=tmp_path, env=environment, input="typed", text=True,
            capture_output=True, check=True,
        )
        for program in ((sys.executable,), python())
    ]  # fmt: skip
    assert ended[0].stdout == ended[1].stdout
    assert [one.stderr for one in ended] == ["1\n"] * 2
    assert f"{tmp_path} é typed __main__" in ended[0].stdout


def test_torch_and_transformers_are_imported() -> None:
    script = "import sys; print([name in sys.modules for name in ('torch', 'transformers', 'pressgauge')])"
    ended = subprocess.run([*python(), "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[True, True, False]\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('a word')", 1),
        ("1 / 0", 1),
        ("import atexit, os; atexit.register(os._exit, 9)", 9),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("raise KeyboardInterrupt", -2),
    ],
)
def test_a_command_ends_as_its_program_does(code: str, expected: int) -> None:
    """Exit codes and signals are those of the program, also of what runs at its exit."""
    for program in ((sys.executable,), python()):
        assert subprocess.run([*program, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == expected


WAITS = """
import os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(5)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 5), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_reach_the_program(number: signal.Signals, code: int) -> None:
    """A signal to the command is one to its program, which ends with it."""
    command = [*python(), "-c", WAITS]
    # What a shell starts in the background ignores it, and so does all that it starts.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert running.stdout
    pid = int(running.stdout.readline())
    running.send_signal(number)
    assert running.wait(timeout=30) == code
    deadline = time.monotonic() + 30
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline, "the program outlives its command"
        time.sleep(0.01)
    running.stdout.close()
