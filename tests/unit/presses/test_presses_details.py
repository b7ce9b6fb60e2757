"""The presses by name."""

import pytest

import pressgauge
from pressgauge.presses import PRESSES

NAMES = {
    "knorm": "KnormPress",
    "streaming-llm": "StreamingLLMPress",
    "random": "RandomPress",
    "keydiff": "KeyDiffPress",
    "h2o": "H2OPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
}


def test_presses_are_found_by_their_command_line_names() -> None:
    """All of them, in order, and no others."""
    assert list(PRESSES) == list(NAMES)
    assert len(PRESSES) == len(NAMES)
    for name, kind in NAMES.items():
        assert name in PRESSES
        assert PRESSES[name] is getattr(pressgauge, kind)
        assert PRESSES[name].__name__ == kind
    assert "no press" not in PRESSES
    with pytest.raises(KeyError, match="no press"):
        PRESSES["no press"]
