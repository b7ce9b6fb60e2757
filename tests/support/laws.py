"""All laws for compressors and for code that measures, and how to hold one subject to one of them."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis.errors import FlakyFailure
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressgauge.conformance import architectures
from pressgauge.conformance.plugin import MEASUREMENTS
from pressgauge.conformance.session import Refused
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.trained import trained_model
from pressgauge.measuring.subjects import KINDS

Law = Callable[..., None]

_FIRST = ("counts", "entries", "attention", "identity", "rows", "leaks", "trends")
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
"""The laws for code that measures."""

DTYPE = torch.float16
"""Of laws that are about dtypes: the one in which most goes wrong."""


def words(law: Law) -> str:
    """A law's name."""
    return law.__name__.removeprefix("test_").replace("_", " ")


def obey(law: Law, subject: Any) -> None:
    """Apply a law to its subject; to a compressor, on a tiny Llama.

    Raises:
        AssertionError: if it does not keep it.
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
    try:
        law(**given)
    except Refused as refusal:
        pytest.skip(f"not applicable: the subject refuses: {refusal}")


@contextmanager
def _cleared() -> Iterator[None]:
    """Takes back the attention functions that a subject leaves registered."""
    mappings = [functions._global_mapping for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)]
    before = [dict(mapping) for mapping in mappings]
    try:
        yield
    finally:
        for mapping, sound in zip(mappings, before, strict=True):
            mapping.clear()
            mapping.update(sound)


def failure(law: Law, subject: Any) -> BaseException | None:
    """What a law raises for its subject: its finding, the reason why it is not applicable, or a crash."""
    try:
        with _cleared():
            obey(law, subject)
    except FlakyFailure as failed:
        # What a mutant remembers changes its next run; what failed first counts.
        return next((one for one in failed.exceptions if isinstance(one, AssertionError)), failed)
    except (Exception, pytest.skip.Exception) as failed:
        return failed
    return None


def judged(law: Law, subject: Any) -> tuple[str, str]:
    """``held``, ``broken``, ``not applicable``, or ``crashed``; and the finding or the reason, in one line."""
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
    """A compressor against every law for compressors."""
    return judged_by(LAWS.values(), subject)


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def outcome(law: Law, subject: Any) -> str:
    """``held``, ``broken``, ``not applicable``, or ``crashed``."""
    return judged(law, subject)[0]


def first_finding(kind: str, function: Any) -> str:
    """What an audit says first of a measuring function: the first law that it breaks, and the finding."""
    module, _, name = KINDS[kind].partition(":")
    subject = getattr(importlib.import_module(f"pressgauge.measuring.{module}"), name).of(kind, function)
    for law in MEASURING.values():
        if kind in inspect.signature(law).parameters:
            result, finding = judged(law, subject)
            if result in ("broken", "crashed"):
                return f"{words(law)}: {finding}"
    return "no law is broken"
