"""Options of the pytest plugin are refused in one sentence."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pressgauge.conformance.plugin import _known, _summaries


def config(**options: Any) -> Any:
    """A configuration of pytest with these options of the plugin."""
    return SimpleNamespace(getoption=lambda name: options[name.removeprefix("pressgauge_")])


def test_a_summary_is_json_or_markdown(tmp_path: Path) -> None:
    """A summary of another kind, or in a folder that does not exist, is refused."""
    right = [tmp_path / "out.json", tmp_path / "out.md"]
    assert _summaries(config(summary=right)) == right
    for wrong in (tmp_path / "out.xml", tmp_path / "nowhere" / "out.json"):
        with pytest.raises(
            pytest.UsageError, match=r"^--summary must be a \.json or \.md file in a folder that exists"
        ):
            _summaries(config(summary=[wrong]))


def test_known_findings_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A missing file of known findings is refused; without the option there are none."""
    assert _known(config(known=None)) == []
    with pytest.raises(pytest.UsageError, match=r"^--known: known findings .*nowhere\.toml cannot be read: "):
        _known(config(known=tmp_path / "nowhere.toml"))
