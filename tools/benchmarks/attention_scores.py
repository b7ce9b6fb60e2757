"""Cost of presses that score by attention."""

from collections.abc import Iterator
from functools import partial

from pressgauge import perplexity
from pressgauge.presses import PRESSES
from tools.benchmarks import memory
from tools.benchmarks.onepass import compare
from tools.benchmarks.shapes import pythia, tokens

KINDS = {name: kind for name, kind in PRESSES.items() if kind.needs_queries}


def attention_scores() -> Iterator[str]:
    """Pythia-70M's shape, 1,024 tokens, P = 256, r = .5; and the memory of a prompt of 32,768 tokens."""
    model = pythia()
    ids = tokens(model, 1024)
    for name, kind in KINDS.items():
        press = kind(keep_ratio=0.5, prune_after=256, schedule="prefill")
        found = compare(
            partial(perplexity, model, ids, press, 768), partial(perplexity, model, ids, method="plain"), pairs=9
        )
        yield f"one-pass / plain, GPT-NeoX, 1,024 tokens, {name}, prefill 768: {found} (at most 4)"
    for name, kind in KINDS.items():
        press = kind(keep_ratio=0.5, prune_after=256, schedule="budget")
        found = compare(
            partial(perplexity, model, ids, press, method="stepwise"), partial(perplexity, model, ids, press), pairs=3
        )
        yield f"stepwise / one-pass, GPT-NeoX, 1,024 tokens, {name}, budget: {found} (at least 8)"
    plain = memory.peak("prompt", 32768)
    for name in KINDS:
        above = (memory.peak("prompt", 32768, name) - plain) / 2**30
        yield f"memory of a process above the uncompressed one, 32,768 tokens, {name}: {above:.2f} GiB (under 1)"
