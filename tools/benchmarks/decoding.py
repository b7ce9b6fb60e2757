"""Decoding with a press, relative to a ``DynamicCache`` in the same loop."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any
from unittest.mock import patch

from torch import Tensor
from transformers import PreTrainedModel

from pressgauge import KnormPress, Press, PressedCache, generate
from pressgauge.attach import _Attachment
from pressgauge.timing import measure_timing
from tools.benchmarks.shapes import llama, tokens


def decoding() -> Iterator[str]:
    """A Llama: TTFT and TPOT after prompts of 512 to 4,096 tokens."""
    model = llama()
    for prompt in (512, 1024, 2048, 4096):
        ids = tokens(model, prompt)
        presses = {"r = 0.5": KnormPress(0.5, prune_after=256)}
        if prompt in (512, 4096):
            presses |= {
                "r = 0.9": KnormPress(0.9, prune_after=256),
                "r = 0.5, step": KnormPress(0.5, prune_after=256, schedule="step"),
            }
        for what, press in presses.items():
            found = measure_timing(model, ids, press, 128)
            limit = "at most 0.6" if prompt == 4096 and what == "r = 0.5" else "at most 1"
            yield f"TPOT, Llama, prompt {prompt:,}, KnormPress {what}: {found.tpot_ratio} ({limit})"
            yield f"TTFT, Llama, prompt {prompt:,}, KnormPress {what}: {found.ttft_ratio} (at most 1.05)"
    noise = measure_timing(model, tokens(model, 512), None, 128)
    yield f"uncompressed / uncompressed, prompt 512: TPOT {noise.tpot_ratio}, TTFT {noise.ttft_ratio} (1 in both)"


class _Watch:
    """Seconds of a pass in functions of the package: hooks, masks, updates and evictions.

    A profiler of operators would add to the time of each, and the package's are many and small.
    """

    def __init__(self) -> None:
        self.own = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the package, whose time is its own."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.own += time.perf_counter() - started

        return run

    def attend(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that runs the attention of the model, whose time is the model's."""

        def run(attachment: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            @functools.wraps(own)
            def attention(*args: Any, **kwargs: Any) -> Any:
                started = time.perf_counter()
                try:
                    return own(*args, **kwargs)
                finally:
                    self.own -= time.perf_counter() - started

            return function(attachment, attention, *args, **kwargs)

        return self.timed(run)


def _shares(model: PreTrainedModel, ids: Tensor, press: Press, count: int) -> list[tuple[float, float]]:
    """Seconds of later passes, and those of the package in each."""
    watch, passes = _Watch(), []
    forward = model.forward

    def feed(*args: Any, **kwargs: Any) -> Any:
        watch.own, started = 0.0, time.perf_counter()
        found = forward(*args, **kwargs)
        passes.append((time.perf_counter() - started, watch.own))
        return found

    with ExitStack() as patches:
        for owner, name, timed in (
            (_Attachment, "before", watch.timed),
            (_Attachment, "after", watch.timed),
            (_Attachment, "attend", watch.attend),
            (PressedCache, "update", watch.timed),
            (PressedCache, "get_mask_sizes", watch.timed),
        ):
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        patches.enter_context(patch.object(model, "forward", feed))
        generate(model, ids, press, count, eos_token_id=[])
    return passes[1:]


def own_time() -> Iterator[str]:
    """A Llama: the share of the package in the time of a pass, evicting after every token."""
    model = llama()
    for prompt in (512, 4096, 16384):
        ids = tokens(model, prompt)
        passes = _shares(model, ids, KnormPress(0.5, prune_after=256), 65)
        share = median(own / whole for whole, own in passes)
        own, whole = (median(times) * 1e3 for times in zip(*((own, whole) for whole, own in passes), strict=True))
        yield f"own share of a pass, Llama, prompt {prompt:,}, KnormPress: {share:.1%}, {own:.2f} of {whole:.2f} ms"
