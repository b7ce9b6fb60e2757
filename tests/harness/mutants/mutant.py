"""A mutant: one thing that is broken on purpose, and the law that must kill it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from harness.mutants.plain import SOUND
from support.laws import Law

Breaks = Callable[[pytest.MonkeyPatch], None]


def nothing(patch: pytest.MonkeyPatch) -> None:
    """The package is as it is."""


@dataclass(frozen=True)
class Mutant:
    """A broken compressor, a broken model, or something broken in the package.

    Attributes:
        id: unique; begins with the id of a bug of docs/bug-catalogue.md if it is one of these.
        what: the bug, in words.
        seen_in: where it was reported; else ``plausible``.
        subject: what the law is applied to; None for a law without a subject.
        law: the law that must kill it, by its own assertion.
        twin: the same subject without the bug, for which the law must hold.
        breaks: puts the bug into the package while the law runs.
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
