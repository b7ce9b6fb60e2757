"""What observing costs: ``model.generate`` inside ``watch`` beside the same call without."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pressgauge import KnormPress, watch
from pressgauge.models import load
from pressgauge.timing import interleave, ratio
from tools.benchmarks.shapes import pythia, tokens

NEW = 64


def watching() -> Iterator[str]:
    """The reference model, which is tiny, with and without a press, and a model of Pythia-70M's shape."""
    reference: Any = load("reference")[0]
    press = KnormPress(0.5, prune_after=32)
    cases: list[tuple[str, Any, Any, int]] = [
        ("reference", reference, None, 81),
        ("reference under a press", reference, press, 81),
        ("Pythia-70M's shape", pythia(), None, 11),
    ]
    for what, model, attached, pairs in cases:
        ids = tokens(model, 64)

        def seconds(observed: bool) -> float:
            context: AbstractContextManager[Any] = watch(model) if observed else nullcontext()  # noqa: B023
            pressed = nullcontext() if attached is None else attached(model)  # noqa: B023
            with pressed, context:
                start = time.perf_counter()
                model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)  # noqa: B023
                return time.perf_counter() - start

        found = ratio(interleave(lambda: seconds(True), lambda: seconds(False), pairs=pairs))
        yield f"generate, {what}, {NEW} tokens, inside watch to without: {found} (at most 1.02)"
