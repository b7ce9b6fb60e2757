"""What observing costs: ``model.generate`` inside ``watch`` beside the same call without."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from statistics import median
from typing import Any
from unittest.mock import patch

from pressgauge import KnormPress, watch
from pressgauge.models import load
from pressgauge.observation.recorder import Recorder
from pressgauge.timing import interleave, ratio
from tools.benchmarks.shapes import pythia, tokens

NEW = 64


def watching() -> Iterator[str]:
    """The reference model, with passes of 2 ms, with and without a press, and a model of Pythia-70M's shape."""
    reference: Any = load("reference")[0]
    cases: list[tuple[str, Any, Any, int]] = [
        ("reference", reference, None, 81),
        ("reference under a press", reference, KnormPress(0.5, prune_after=32), 81),
        ("Pythia-70M's shape (at most 1.02)", pythia(), None, 21),
    ]
    for what, model, press, pairs in cases:

        def seconds(context: AbstractContextManager[Any], model: Any = model, press: Any = press) -> float:
            with nullcontext() if press is None else press(model), context:
                start = time.perf_counter()
                model.generate(
                    tokens(model, 64), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
                )
                return time.perf_counter() - start

        def observed(model: Any = model, seconds: Callable[..., float] = seconds) -> float:
            return seconds(watch(model))

        def plain(seconds: Callable[..., float] = seconds) -> float:
            return seconds(nullcontext())

        found = ratio(interleave(observed, plain, pairs=pairs))
        yield f"generate, {what}, {NEW} tokens, inside watch to without: {found}"
        shares = []
        for _ in range(pairs // 2):
            with timed() as spent:
                whole = observed()
            shares.append((sum(spent) / whole, sum(spent) / NEW))
        share, each = (median(column) for column in zip(*shares, strict=True))
        yield f"time in its hooks, {what}: {share:.2%}, {each * 1e6:.0f} µs per pass"


@contextmanager
def timed() -> Iterator[list[float]]:
    """Seconds spent in each call of a hook of a watch."""
    spent: list[float] = []

    def timing(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return own(*args)
            finally:
                spent.append(time.perf_counter() - start)

        return call

    with ExitStack() as stack:
        for name in ("_before", "_after", "_leave"):
            stack.enter_context(patch.object(Recorder, name, timing(getattr(Recorder, name))))
        yield spent
