"""Settings of laws with examples."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pressgauge.conformance.machine import of_profile
from pressgauge.conformance.strategies import FEWEST, few


def test_settings_are_those_of_the_profile_when_a_law_is_imported() -> None:
    """The profile of the laws, loaded after this package was imported, holds for their examples: without a deadline,
    and reproducible."""
    before = settings.get_current_profile_name()
    try:
        settings.register_profile("someone's", max_examples=1000, deadline=1, derandomize=False)
        settings.load_profile("someone's")
        assert _settings_of(few).max_examples == 250
        assert not _settings_of(few).derandomize
        settings.load_profile("ci")
        for chosen in (_settings_of(few), of_profile()):
            assert chosen.deadline is None
            assert chosen.derandomize
        assert _settings_of(few).max_examples == FEWEST
    finally:
        settings.load_profile(before)


def _settings_of(chosen: object) -> settings:
    @chosen  # type: ignore[operator]
    @given(st.integers())
    def law(number: int) -> None:
        """A law."""

    return law._hypothesis_internal_use_settings  # type: ignore[no-any-return]
