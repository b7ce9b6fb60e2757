"""Laws about what quantised caches read back."""

from pressgauge.conformance.quantised import ACROSS, fed, feedings, length_of, quantised_only
from pressgauge.conformance.quantised_checks import (
    check_feedings,
    check_levels,
    check_residual,
    check_within_a_step,
    check_written_once,
)
from pressgauge.conformance.subjects import Subject


def test_entries_have_no_more_levels_than_their_bits(subject: Subject) -> None:
    """Groups of quantised entries have at most 2^bits distinct numbers, and errors no smaller than these bits allow;
    bits that are not declared are inferred."""
    quantised_only(subject)
    check_levels(subject)


def test_entries_are_within_half_a_step(subject: Subject) -> None:
    """The error of each number is at most half a step of its own group, or the declared error, however it was fed."""
    quantised_only(subject)
    for feeding in (*feedings(length_of(subject)), ACROSS):
        check_within_a_step(subject, feeding)


def test_what_is_read_back_never_changes(subject: Subject) -> None:
    """An entry is quantised once: later passes change nothing of what is read back, to the bit."""
    quantised_only(subject)
    for feeding in (*list(feedings(length_of(subject)))[1:], ACROSS):
        check_written_once(fed(subject, feeding), feeding)


def test_entries_beyond_the_residual_do_not_depend_on_passes(subject: Subject) -> None:
    """Fed whole, in chunks or as single tokens, entries beyond the residual are read back the same."""
    quantised_only(subject)
    check_feedings(subject)


def test_the_residual_is_exact_at_every_moment(subject: Subject) -> None:
    """After every pass the newest entries of the declared residual are exact, and older ones are not."""
    quantised_only(subject)
    check_residual(subject)
