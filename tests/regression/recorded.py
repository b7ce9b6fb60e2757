"""The law that kills regressions: rows of a baseline are reproduced."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from pressgauge.conformance import devices
from pressgauge.conformance.trained import trained_model
from pressgauge.history import plan
from pressgauge.texts import load_text
from regression.baseline import Baseline, Rows, changes, read, table
from regression.costs import costs
from regression.decoding import decoding, entries
from regression.explanations import explanations
from regression.perplexities import TOKENS, perplexities
from regression.provenance import folder, series

SOME = {
    "knorm budget r=0.7 P=64",
    "knorm step r=0.5 P=512",
    "knorm step r=0.9 P=64",
    "knorm budget",
    "knorm step",
    "knorm step sinks=2 recent=3",
}
"""A sample of the rows of all files, enough to identify a change."""


def rows_are_as_recorded(subject: str) -> None:
    """Current results equal those recorded, within the tolerance of the baseline.

    Args:
        subject: name of a baseline: ``perplexity-reference``, ``decoding``, ``entries``, or ``cost``, which is that of
            the installed releases.

    Raises:
        AssertionError: with the table of changes and their probable explanations.
        pytest.skip.Exception: if this device has no such baseline.
    """
    model, tokenizer = trained_model("reference", "float64")
    ids = load_text("reference", tokenizer, samples=2, tokens=TOKENS)
    works: dict[str, Callable[[], Rows]] = {
        "perplexity-reference": partial(perplexities, model, ids, wanted=SOME),
        "decoding": partial(decoding, model, ids, wanted=SOME),
        "entries": partial(entries, torch.float32, wanted=SOME),
        "cost": partial(costs, model, ids, wanted=SOME),
    }
    path = folder(devices.chosen()) / f"{f'cost-{series()}' if subject == 'cost' else subject}.yml"
    if not path.is_file():
        pytest.skip(f"not comparable: there is no {path.name}")
    plan._shared.cache_clear()
    now = works[subject]()
    plan._shared.cache_clear()
    was = read(path)
    found = list(
        changes(path.stem, Baseline(was.provenance, was.tolerance, {name: was.rows[name] for name in now}), now)
    )
    assert not found, " ".join([table(found), *explanations(found)])
