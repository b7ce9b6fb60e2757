"""What a law says of a subject: a finding, a refusal, or that it is not applicable."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from hypothesis.errors import FailedHealthCheck, Unsatisfiable

from pressgauge.errors import raised_by


class Departure(AssertionError):  # noqa: N818  # the law is broken, not the program
    """A broken law. The message is the finding, one line; the law is the test that raises it."""


class Unreadable(Departure):
    """A cache whose entries cannot be read. The smoke law reports it; no other law is applicable."""


class Vacuous(Departure):
    """A subject that did nothing where it declares that it does. No other law is applicable."""


class Refused(Exception):  # noqa: N818  # it is an answer, not a failure
    """A subject declined something; carries its own message."""


DECLINES = (ValueError, NotImplementedError, AssertionError)
"""Exceptions with which compressors, given a message, decline what they do not support."""

OF_OTHERS = ("torch", "transformers", "pressgauge")
"""Packages in which a failed assertion is a crash, not a refusal."""

REFUSALS: list[str] = []
"""Messages of refusals since the start of the test, for the report of unchecked cases."""

NOTES: list[str] = []
"""Observations since the start of the test that break no law, for the summary."""


def not_applicable(reason: str) -> NoReturn:
    """Skip a test whose law does not apply, with a reason."""
    pytest.skip(f"not applicable: {reason}")


def note(sentence: str) -> None:
    """Report an observation below the law in the summary, whether the law holds or not."""
    NOTES.append(sentence)


@contextmanager
def refused_draws() -> Iterator[None]:
    """Convert Hypothesis's complaint that no case could be drawn to ``Refused``, if the subject refused them."""
    try:
        yield
    except (Unsatisfiable, FailedHealthCheck) as error:
        if not REFUSALS:
            raise
        raise Refused(f"{REFUSALS[-1]} (in every drawn case, or nearly every)") from error


@contextmanager
def refusals(*kinds: type[BaseException]) -> Iterator[None]:
    """Convert exceptions of these kinds that carry a subject's own message to ``Refused``.

    What the interpreter or a function in C raises, such as "too many values to unpack", is a crash.
    """
    try:
        yield
    except Departure:
        raise
    except kinds as error:
        if (
            not str(error)
            or not _by_statement(error)
            or (isinstance(error, AssertionError) and raised_by(error)[0] in OF_OTHERS)
        ):
            raise
        REFUSALS.append(_sentence(error))
        raise Refused(REFUSALS[-1]) from error


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":").splitlines()[0]


def _by_statement(error: BaseException) -> bool:
    """Whether an error was raised by a ``raise`` or ``assert`` of Python code."""
    return raised_by(error)[1] in ("", "RAISE_VARARGS", "RERAISE")
