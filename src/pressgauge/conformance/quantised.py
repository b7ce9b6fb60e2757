"""Checks of quantised caches."""

from pressgauge.conformance.subjects import Subject


def check_quantises(subject: Subject) -> None:
    """Placeholder."""
