"""How often the comparison of times with a baseline says that something is slower, where nothing is and where it is."""

from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import torch
from regression import timings

from pressgauge.models import load
from pressgauge.text import load_text
from pressgauge.timing import Ratio, ratio

RATIO = "knorm budget TPOT"


def alarms() -> Iterator[str]:
    """200 comparisons in which nothing is slower, and 100 in which decoding takes 15 % longer; a new baseline for every
    20 comparisons."""
    torch.set_num_threads(1)
    model, tokenizer = load("reference")
    ids = load_text("reference", tokenizer, samples=1, tokens=timings.PROMPT)
    measure = partial(timings.measure, model, ids, [RATIO])

    def baseline() -> Ratio:
        return ratio([*measure()[RATIO], *measure()[RATIO]])

    for share, count, limit in ((0.0, 200, "at most 4"), (0.15, 100, "at least 95")):
        said, errors = 0, []
        for number in range(count):
            if number % 20 == 0:
                was = baseline()
            with patch.object(timings, "generate", timings.slower_generate(share)):
                said += bool(timings.longer({RATIO: was}, lambda names: measure()))
            errors.append(timings.error(was))
        spread = sorted(errors)[count // 2]
        yield f"slower by {share:.0%}: called slower in {said} of {count} ({limit}); standard error {spread:.1%}"
