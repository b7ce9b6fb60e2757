"""Python processes that begin with torch and transformers imported, which else takes longer than most of them run.

A server imports them once, and forks a process for each command. ``python()`` is used in place of ``sys.executable``:
it starts a small client, which hands its arguments, environment, folder and standard streams to the server, passes
signals on, and ends as the forked process does. If the client is killed, so is that process, shortly after.
What reads the environment as it is imported, as torch and huggingface_hub do, has that of the server.
"""

import array
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

IMPORTED = (
    "accelerate",
    "matplotlib.figure",
    "scipy.stats",
    "torch.distributed.tensor",
    "transformers.generation",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
)
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@cache
def python(**environment: str) -> tuple[str, ...]:
    """Beginning of a command, in place of ``sys.executable``; ``-m MODULE`` or ``-c CODE`` follow, with arguments.

    The server is started by the first call of this process, and ends with this process.

    Args:
        environment: variables that the server imports with, each set of which has a server of its own.
    """
    address = str(Path(tempfile.mkdtemp(prefix="prepared-")) / "socket")
    # Threads as in the workers of pytest, which have one.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, "serve", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=own | environment,
        start_new_session=True,
    )
    assert server.stdout
    assert server.stdout.readline() == b"ready\n", "the server of prepared processes did not start"
    _SERVERS.append(server)
    return sys.executable, "-I", "-S", __file__, "start", address


def launcher(ranks: int) -> tuple[str, ...]:
    """Beginning of a command that ``torchrun`` starts in this many processes; ``-m MODULE`` or ``-c CODE`` follow."""
    return (*python(), "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python", *python())


_SERVERS: list["subprocess.Popen[bytes]"] = []
"""Kept, since a server ends when its standard input is closed."""


def serve(address: str) -> list[str]:
    """Fork a process per connection, until the standard input is closed.

    Returns:
        In a forked process: the arguments of its command.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    # What was forked needs no waiting for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener.fileno(), 0], [], [])
        if listener.fileno() not in ready:
            Path(address).unlink()
            Path(address).parent.rmdir()
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return attend(connection)
        connection.close()


def attend(connection: socket.socket) -> list[str]:
    """Fork the process of a command, pass signals on to it, and send its exit code to the client.

    Returns:
        In that process: the arguments of the command.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    received, fds, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not received.endswith(b"\n"):
        received += connection.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for own, fd in enumerate(fds):
            os.dup2(fd, own)
            os.close(fd)
        return become(**json.loads(received))
    for fd in (0, 1, 2, *fds):
        os.close(fd)

    def pass_on() -> None:
        while numbers := connection.recv(1):
            os.kill(pid, numbers[0])
        os.kill(pid, signal.SIGKILL)

    threading.Thread(target=pass_on, daemon=True).start()
    _, status = os.waitpid(pid, 0)
    connection.sendall(array.array("i", [os.waitstatus_to_exitcode(status)]).tobytes())
    os._exit(0)


def become(arguments: list[str], environment: dict[str, str], folder: str, ignored: list[int]) -> list[str]:
    """Take on the environment, folder and ignored signals of a client, and return its arguments."""
    for number in PASSED_ON:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else default)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # The first is the folder of a module, or stands for that of code.
    sys.path[:0] = [folder if arguments[0] == "-m" else "", *own]
    sys.argv = [arguments[0], *arguments[2:]]
    return arguments


def start(address: str, arguments: list[str]) -> None:
    """Be the client: end as the process of a command does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    given = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
    }
    for number in PASSED_ON:
        if number not in given["ignored"]:
            signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    socket.send_fds(connection, [json.dumps(given).encode() + b"\n"], [0, 1, 2])
    received = array.array("i", connection.recv(4))
    code = received[0] if received else 1
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    role, where, *rest = sys.argv[1:]
    if role == "start":
        start(where, rest)
    kind, program, *_ = serve(where)
    # From here as in any process: it ends as this one does, with all that happens at exit.
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
