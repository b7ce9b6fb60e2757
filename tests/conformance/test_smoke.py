"""Laws that come first: if one is broken, no other is applicable."""

from pressgauge.conformance.smoke import check_acts, check_alters, check_runs
from pressgauge.conformance.subjects import Subject


def test_it_runs_and_its_cache_can_be_read(subject: Subject) -> None:
    """A subject runs on a tiny Llama, its cache can be read, and passes attend to what it holds."""
    check_runs(subject)


def test_something_is_evicted_or_altered(subject: Subject) -> None:
    """A subject evicts from a text that is long enough, or alters entries, as it declares (M2 of the bug catalogue)."""
    check_acts(subject)
    check_alters(subject)
