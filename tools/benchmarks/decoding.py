"""Decoding with a press, relative to a ``DynamicCache`` in the same loop."""

from collections.abc import Iterator

from pressgauge import KnormPress
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
