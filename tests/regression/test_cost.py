"""Costs of presses with the same releases of torch and transformers are those recorded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pressgauge.texts import load_text
from regression.costs import TOKENS, costs
from regression.golden import Golden
from regression.provenance import folder, series


def test_cost_is_as_recorded(golden: Golden, reference: Callable[..., Any]) -> None:
    """Operations, operators and bytes are exactly those recorded."""
    name = f"cost-{series()}"
    known = sorted(path.stem.removeprefix("cost-") for path in folder(golden.device).glob("cost-*.yml"))
    if known and not golden.recording and not golden.path(name).is_file():
        pytest.skip(f"not comparable: cost is recorded for {', '.join(known)}, and this is {series()}")
    # Costs may depend on the held entries, which are the same on every machine in float64.
    dtype = "float32" if golden.device.type == "mps" else "float64"
    model, tokenizer = reference("reference", dtype, str(golden.device))
    ids = load_text("reference", tokenizer, samples=1, tokens=TOKENS).to(golden.device)
    golden.check(name, partial(costs, model, ids), dict, dtype)
