"""Calls of a function in separate processes, so that a crash stops only its own call."""

import multiprocessing
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection

_MEMORY = 12 << 30
"""Limit on the address space of a process, in bytes."""


def _child(function: Callable[[str], str], argument: str, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    pipe.send(function(argument))
    pipe.close()


def _one(function: Callable[[str], str], argument: str, seconds: float) -> tuple[str, str]:
    # A forked child need not repeat imports, which take longer than most runs.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, argument, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return argument, f"it took more than {seconds:.0f} seconds"
        return argument, receiver.recv()
    except EOFError:
        process.join()
        return argument, f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def each(
    function: Callable[[str], str], arguments: Sequence[str], *, workers: int, seconds: float = 480
) -> Iterator[tuple[str, str]]:
    """Arguments and results, in order of completion; for a failed call, the reason instead of a result."""
    with ThreadPoolExecutor(workers) as pool:
        for done in as_completed([pool.submit(_one, function, argument, seconds) for argument in arguments]):
            yield done.result()
