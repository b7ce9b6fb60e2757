"""Mutants: one deliberate bug each, and the law that must kill it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from harness.mutants.plain import SOUND
from support.laws import Law

Breaks = Callable[[pytest.MonkeyPatch], None]


def nothing(patch: pytest.MonkeyPatch) -> None:
    """Leaves the package unchanged."""


@dataclass(frozen=True)
class Mutant:
    """A broken compressor, a broken model, or something broken in the package.

    Attributes:
        id: unique; begins with the id of its bug in docs/bug-catalogue.md, if listed there.
        what: description of the bug.
        seen_in: where it was reported; else ``plausible``.
        subject: argument of the law; None for a law without a subject.
        law: the law that must kill it, by its own assertion.
        twin: the subject without the bug, for which the law must hold.
        breaks: patches the bug into the package while the law runs.
        says: patterns that the finding must contain.
    """

    id: str
    what: str
    seen_in: str
    subject: Any
    law: Law
    twin: Any = SOUND
    breaks: Breaks = nothing
    says: tuple[str, ...] = ()
