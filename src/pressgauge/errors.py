"""Errors: who raised them, and their sentences for a user."""

import dis
import errno
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WAYS_OUT = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EFBIG: "raise the limit of the size of files, or write elsewhere",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "write elsewhere",
    errno.ELOOP: "its symbolic links lead to each other",
    errno.ENAMETOOLONG: "give a shorter name",
}
"""What to do about errors of the operating system."""

_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|not enough memory|out of memory|Cannot allocate memory|bad_alloc"
    r"|[Ss]torage size calculation overflowed|Unable to allocate"
)
_AMOUNT = re.compile(r"allocate (\d[\d,.]*) ?(bytes|[KMGTPE]i?B)")


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise ``Terminated`` at SIGTERM, so that unfinished files are removed as after an interruption."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def raised_by(error: BaseException) -> tuple[str, str]:
    """Package and instruction that raised an error; both empty for one that was never raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", ""
    package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return package, dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]]


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split("\n")).replace("\r", " ").strip()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted: Python's, NumPy's, torch's on any device, or the system's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(str(error)) is not None


def _memory(error: BaseException) -> str:
    """Sentence for exhausted memory, with how much was requested if the error says so."""
    found = _AMOUNT.search(str(error))
    amount = ""
    if found is not None:
        amount = f"{found[1]} {found[2]}"
        if found[2] == "bytes":
            amount = f"{int(found[1].replace(',', '')) / 2**30:,.3g} GiB"
        amount = f" ({amount} were requested at once)"
    return (
        f"out of memory{amount}: lower --samples, --tokens or --prompt, give --dtype bfloat16, or take a smaller model"
    )


def _system(error: OSError) -> str:
    """Sentence for an error of the operating system, with the file and the way out."""
    if error.errno is None or error.strerror is None:
        return str(error)
    place = "" if error.filename is None else f"{error.filename!r}: "
    way_out = WAYS_OUT.get(error.errno)
    return f"{place}{error.strerror}" + ("" if way_out is None else f": {way_out}")


def sentence(error: BaseException) -> str | None:
    """The sentence of an error about arguments, files or the machine, on one line; None for an internal error.

    A ``TypeError`` or ``ValueError`` of this package is for the user if a statement raised it, and a mistake of the
    package if an expression did.
    """
    if is_out_of_memory(error):
        return _memory(error)
    if isinstance(error, OSError):
        return one_line(_system(error))
    if isinstance(error, ImportError):
        return one_line(str(error))
    if isinstance(error, ValueError | TypeError):
        package, instruction = raised_by(error)
        by_statement = instruction in ("", "RAISE_VARARGS", "RERAISE")
        if package in ("", "pressgauge") and not by_statement:
            return None
        if package != "pressgauge" and isinstance(error, TypeError):
            return None
        return one_line(str(error))
    return None
