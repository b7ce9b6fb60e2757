"""Each regression that is put into the code is caught by the baseline that is there for it, and is explained.

That nothing is caught where nothing is broken, the comparisons with the baselines show in the same run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from pressgauge.history import fixed
from pressgauge.texts import load_text
from regression.baseline import Baseline, Rows, changes, read, table
from regression.costs import costs
from regression.decoding import decoding, entries
from regression.explanations import explanations
from regression.golden import Golden
from regression.injections import INJECTIONS, Injection
from regression.perplexities import TOKENS, perplexities
from regression.provenance import series

SOME = {
    "knorm budget r=0.7 P=64",
    "knorm step r=0.5 P=512",
    "knorm step r=0.9 P=64",
    "knorm budget",
    "knorm step",
    "knorm step sinks=2 recent=3",
}
"""Of the rows of all files, enough to tell what changed."""


@pytest.fixture
def measured(golden: Golden, reference: Callable[..., Any]) -> Callable[[str], tuple[Baseline, Rows]]:
    """What was recorded in a file, and what comes out now."""
    model, tokenizer = reference("reference", dtype="float64")
    ids = load_text("reference", tokenizer, samples=2, tokens=TOKENS)
    works: dict[str, Callable[[], Rows]] = {
        "perplexity-reference": partial(perplexities, model, ids, wanted=SOME),
        "decoding": partial(decoding, model, ids, wanted=SOME),
        "entries": partial(entries, torch.float32, wanted=SOME),
        f"cost-{series()}": partial(costs, model, ids, wanted=SOME),
    }

    def measure(file: str) -> tuple[Baseline, Rows]:
        path = golden.path(file)
        if not path.is_file():
            pytest.skip(f"not comparable: there is no {path.name}")
        fixed.slots.cache_clear()
        now = works[file]()
        fixed.slots.cache_clear()
        was = read(path)
        return Baseline(was.provenance, was.tolerance, {name: was.rows[name] for name in now}), now

    return measure


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda injection: injection.what)
def test_the_baseline_catches_it(
    injection: Injection, measured: Callable[[str], tuple[Baseline, Rows]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the field that is there for it; the table names the row and says how much."""
    file = f"cost-{series()}" if injection.file == "cost" else injection.file
    injection.breaks(monkeypatch)
    found = list(changes(file, *measured(file)))
    print(f"{injection.what}\n{table(found)}\n{explanations(found)}")
    assert injection.field in {change.field for change in found}
    assert any(injection.explanation in sentence for sentence in explanations(found))
    assert f"{file}: " in table(found)
