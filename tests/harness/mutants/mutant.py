"""A mutant: a compressor in which one thing is broken, and the law that must kill it."""

from dataclasses import dataclass

from harness.mutants.plain import SOUND
from pressgauge.conformance.subjects import Subject
from support.laws import Law


@dataclass(frozen=True)
class Mutant:
    """A broken compressor."""

    id: str
    what: str
    seen_in: str
    subject: Subject
    law: Law
    """The law that must kill it."""
    twin: Subject = SOUND
    """The same without what is broken."""
