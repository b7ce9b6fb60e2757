"""One-pass perplexity, relative to a plain forward pass with the same loss and to token-by-token decoding."""

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from pressgauge import KnormPress, Press, perplexity
from pressgauge.models import load
from pressgauge.texts import load_text
from pressgauge.timing import Ratio, interleave, ratio
from regression.timings import seconds
from tools.benchmarks import memory
from tools.benchmarks.shapes import llama, pythia, tokens


def compare(first: Callable[[], object], second: Callable[[], object], pairs: int) -> Ratio:
    """Ratio of the time of the first function to that of the second."""
    return ratio(interleave(lambda: seconds(first), lambda: seconds(second), pairs))


def _presses(prune_after: int, *schedules: str) -> Iterator[tuple[str, Press]]:
    for schedule in schedules:
        for keep_ratio in (0.5, 0.9):
            press = KnormPress(keep_ratio, prune_after=prune_after, schedule=schedule)  # type: ignore[arg-type]
            yield f"{schedule}, r = {keep_ratio}", press


def _against_stepwise(name: str, model: PreTrainedModel, ids: Tensor, presses: dict[str, Press]) -> Iterator[str]:
    for what, press in presses.items():
        found = compare(
            partial(perplexity, model, ids, press, method="stepwise"),
            partial(perplexity, model, ids, press),
            pairs=3,
        )
        yield f"stepwise / one-pass, {name}, {what}: {found} (at least 20)"


def short() -> Iterator[str]:
    """Pythia-70M's shape, 1,024 tokens, P = 256."""
    model = pythia()
    ids = tokens(model, 1024)
    for what, press in _presses(256, "budget", "step"):
        found = compare(
            partial(perplexity, model, ids, press),
            partial(perplexity, model, ids, method="plain"),
            pairs=9,
        )
        yield f"one-pass / plain, GPT-NeoX, 1,024 tokens, {what}: {found} (at most 1.25)"
    yield from _against_stepwise("GPT-NeoX, 1,024 tokens", model, ids, dict(_presses(256, "budget", "step")))


def reference() -> Iterator[str]:
    """The reference model, 1,024 tokens, P = 64."""
    model, tokenizer = load("reference")
    ids = load_text("reference", tokenizer, samples=1, tokens=1024)
    yield from _against_stepwise("reference model, 1,024 tokens", model, ids, dict(_presses(64, "budget", "step")))


def long() -> Iterator[str]:
    """A Llama, 8,192 tokens, P = 512."""
    model = llama()
    ids = tokens(model, 8192)
    for what, press in _presses(512, "budget"):
        found = compare(
            partial(perplexity, model, ids, press),
            partial(perplexity, model, ids, method="plain"),
            pairs=5,
        )
        yield f"one-pass / plain, Llama, 8,192 tokens, {what}: {found} (at most 2)"


def space() -> Iterator[str]:
    """Peak memory of a process with the same Llama, for 8,192 and 32,768 tokens."""
    plain = memory.peak("perplexity", 8192)
    for keep_ratio in (0.5, 0.9):
        mine = memory.peak("perplexity", 8192, "knorm", keep_ratio)
        yield (
            f"peak memory of a process, one-pass / plain, Llama, 8,192 tokens, r = {keep_ratio}: "
            f"{mine / plain:.3f}, {mine / 2**30:.2f} GiB (at most 1.5)"
        )
    for keep_ratio in (0.5, 0.9):
        mine = memory.peak("perplexity", 32768, "knorm", keep_ratio)
        yield f"peak memory of a process, Llama, 32,768 tokens, r = {keep_ratio}: {mine / 2**30:.2f} GiB (under 12)"
