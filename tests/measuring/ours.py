"""Our own measuring functions, in the conventions of the audit."""

from typing import Any

from pressgauge import KnormPress
from pressgauge.measuring.benchmarks import Benchmark
from pressgauge.measuring.subjects import Measurement
from pressgauge.timing import measure_timing


def timing(
    model: Any,
    tokenizer: Any,
    prompt: str,
    new_tokens: int,
    *,
    keep_ratio: float,
    prune_after: int,
    batch_size: int,
    repeats: int,
) -> dict[str, float]:
    """``measure_timing``."""
    ids = tokenizer([prompt] * batch_size, return_tensors="pt").input_ids
    times = measure_timing(model, ids, KnormPress(keep_ratio, prune_after=prune_after), new_tokens, pairs=repeats)
    return {
        "ttft": times.ttft,
        "tpot": times.tpot,
        "throughput": times.tokens_per_second,
        "ttft_ratio": times.ttft_ratio.median,
        "tpot_ratio": times.tpot_ratio.median,
    }


SUBJECTS: dict[str, list[Measurement]] = {
    "evaluator": [],
    "benchmark": [Benchmark.of("measure_timing", timing)],
    "memory": [],
}
