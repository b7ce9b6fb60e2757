"""All laws for compressors and measuring code, and functions that apply them to a subject."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis.errors import FlakyFailure

from pressgauge.conformance import architectures
from pressgauge.conformance.outcomes import REFUSALS, Refused, refused_draws
from pressgauge.conformance.plugin import MEASUREMENTS
from pressgauge.conformance.smoke import MEMORY, concerns, require_acts, require_dtype, require_first
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.trained import trained_model
from pressgauge.conventions.attention import registrations_undone
from pressgauge.measuring.subjects import KINDS

Law = Callable[..., None]

_FIRST = ("smoke", "counts", "entries", "attention", "identity", "rows", "leaks", "trends")
_FILES = sorted(
    path.stem.removeprefix("test_") for path in (Path(__file__).parents[1] / "conformance").glob("test_*.py")
)

LAWS: dict[str, Law] = {
    name: law
    for topic in dict.fromkeys([*_FIRST, *_FILES])
    for name, law in vars(importlib.import_module(f"conformance.test_{topic}")).items()
    if name.startswith("test_")
}

MEASURING: dict[str, Law] = {
    name: law
    for path in sorted((Path(__file__).parents[1] / "measuring").glob("test_*.py"))
    for name, law in vars(importlib.import_module(f"measuring.{path.stem}")).items()
    if name.startswith("test_")
}
"""The laws for measuring code."""

DTYPE = torch.float16
"""Dtype for laws about dtypes, the one with the most failures."""


def file_of(law: Law) -> str:
    """Name of a law's file, without its ending."""
    return Path(inspect.getfile(law)).stem


def words(law: Law) -> str:
    """Name of a law in words."""
    return law.__name__.removeprefix("test_").replace("_", " ")


def obey(law: Law, subject: Any) -> None:
    """Apply a law to a subject; for a compressor, on a tiny Llama.

    Raises:
        AssertionError: if the subject breaks it.
        pytest.skip.Exception: if it is not applicable.
    """
    needed = inspect.signature(law).parameters
    given: dict[str, Any] = {}
    for name in ("subject", *MEASUREMENTS):
        if name in needed:
            given[name] = subject
    for name in ("model", "one_model"):
        if name in needed:
            given[name] = architectures.shared("llama")
    if "trained" in needed:
        given["trained"] = trained_model("reference", "float32")
    if "dtype" in needed:
        given["dtype"] = DTYPE
    REFUSALS.clear()
    try:
        with refused_draws():
            if "dtype" in given and isinstance(subject, Subject):
                require_dtype(subject, DTYPE)
            law(**given)
    except Refused as refusal:
        pytest.skip(f"not applicable: the subject refuses: {refusal}")


def failure(law: Law, subject: Any) -> BaseException | None:
    """Exception that a law raises for a subject: its finding, the reason for not being applicable, or a crash."""
    try:
        # A subject may leave attention functions registered.
        with registrations_undone():
            obey(law, subject)
    except FlakyFailure as failed:
        # A mutant with state may behave differently in the next run; the first failure counts.
        return next((one for one in failed.exceptions if isinstance(one, AssertionError)), failed)
    except (Exception, pytest.skip.Exception) as failed:
        return failed
    return None


def judged(law: Law, subject: Any) -> tuple[str, str]:
    """Outcome ``held``, ``broken``, ``not applicable`` or ``crashed``, with the finding or the reason in one line."""
    match failure(law, subject):
        case None:
            return "held", ""
        case pytest.skip.Exception() as reason:
            return "not applicable", _line(reason).removeprefix("not applicable: ")
        case AssertionError() as finding:
            return "broken", _line(finding)
        case FlakyFailure() as crash:
            return "crashed", _line(crash)
        case BaseException() as crash:
            return "crashed", f"{type(crash).__name__}: {_line(crash)}"


def judged_by(laws: Iterable[Law], subject: Any) -> dict[str, tuple[str, str]]:
    """A subject against laws, on one thread: by law in words, what came out, and the finding or the reason."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {words(law): judged(law, subject) for law in laws}


def judged_by_all(subject: Subject) -> dict[str, tuple[str, str]]:
    """A compressor against every law for compressors, as in an audit: if one that comes first is broken, the others are
    not applicable."""
    found, applicable = {}, []
    for name, law in LAWS.items():
        if not concerns(file_of(law), subject):
            continue
        try:
            require_first(name, subject)
            applicable.append(law)
        except pytest.skip.Exception as reason:
            found[words(law)] = "not applicable", _line(reason).removeprefix("not applicable: ")
    applied = judged_by(applicable, subject)
    try:
        require_acts(subject)
    except pytest.skip.Exception as reason:
        held = [words(law) for law in applicable if law.__name__ in MEMORY and applied[words(law)][0] == "held"]
        found |= {name: ("not applicable", _line(reason).removeprefix("not applicable: ")) for name in held}
    return {**applied, **found}


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def outcome(law: Law, subject: Any) -> str:
    """Outcome ``held``, ``broken``, ``not applicable`` or ``crashed``."""
    return judged(law, subject)[0]


def first_finding(kind: str, function: Any) -> str:
    """First finding of the audit of a measuring function, with its law."""
    module, _, name = KINDS[kind].partition(":")
    subject = getattr(importlib.import_module(f"pressgauge.measuring.{module}"), name).of(kind, function)
    for law in MEASURING.values():
        if kind in inspect.signature(law).parameters:
            result, finding = judged(law, subject)
            if result in ("broken", "crashed"):
                return f"{words(law)}: {finding}"
    return "no law is broken"
