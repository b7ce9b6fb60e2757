"""What a press costs is what it cost with the same releases of torch and transformers."""

from collections.abc import Callable
from typing import Any

import pytest

from pressgauge.text import load_text
from regression.costs import TOKENS, costs
from regression.plugin import Golden
from regression.provenance import folder, series


def test_cost_is_as_recorded(golden: Golden, reference: Callable[..., Any]) -> None:
    """Operations, operators and bytes, exactly."""
    name = f"cost-{series()}"
    known = sorted(path.stem.removeprefix("cost-") for path in folder(golden.device).glob("cost-*.yml"))
    if known and not golden.recording and not golden.path(name).is_file():
        pytest.skip(f"not comparable: cost is recorded for {', '.join(known)}, and this is {series()}")
    model, tokenizer = reference("reference", dtype="float64")
    ids = load_text("reference", tokenizer, samples=1, tokens=TOKENS)
    golden.check(name, lambda: costs(model, ids), {})
