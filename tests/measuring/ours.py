"""Our own measuring functions, in the conventions of the audit."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pressgauge import KnormPress, Press, generate, perplexity
from pressgauge.bench.plan import Plan
from pressgauge.bench.sweep import prepare, run_sweep
from pressgauge.cache import PressedCache
from pressgauge.measuring.benchmarks import Benchmark
from pressgauge.measuring.evaluators import Evaluator
from pressgauge.measuring.footprints import Footprint
from pressgauge.measuring.subjects import Measurement
from pressgauge.timing import measure_timing

PROMPT = 4


def _of_result(result: Any) -> dict[str, Any]:
    nll = float(result.nll.nansum()) / result.scored_tokens
    kept = {"kept": sum(result.held) / len(result.held) / (result.nll.shape[1] + PROMPT)} if result.held else {}
    return kept | {
        "ppl": result.ppl,
        "nll": nll if torch.isfinite(result.nll[result.scored]).all() else float("nan"),
        "accuracy": result.accuracy,
        "tokens": result.scored_tokens,
        "evictions": result.evictions,
        "vacuous": result.vacuous,
    }


def by_method(method: Any) -> Any:
    """``pressgauge.perplexity`` by a method that compresses."""

    def evaluate(
        model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]
    ) -> dict[str, Any]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        press = KnormPress(keep_ratio, prune_after=prune_after, skip_layers=skip_layers)
        return _of_result(perplexity(model, ids, press, PROMPT, method))

    return evaluate


def plain(model: Any, tokenizer: Any, text: str) -> dict[str, Any]:
    """``pressgauge.perplexity`` without a press, in one pass."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return _of_result(perplexity(model, ids, None, PROMPT, "plain"))


def in_rows(
    model: Any, tokenizer: Any, texts: list[str], *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]
) -> dict[str, Any]:
    """``pressgauge.perplexity`` of a batch of padded rows."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    press = KnormPress(keep_ratio, prune_after=prune_after, skip_layers=skip_layers)
    result = perplexity(model, batch["input_ids"], press, 1, attention_mask=batch["attention_mask"])
    return {name: value for name, value in _of_result(result).items() if name != "kept"}


def swept(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]
) -> dict[str, Any]:
    """A row of a sweep, which loads model and text from files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "text.txt").write_text(text, encoding="utf-8")
        press = KnormPress(keep_ratio, prune_after=prune_after, skip_layers=skip_layers)
        plan = Plan(
            presses={"knorm": (KnormPress(1, prune_after=prune_after, skip_layers=skip_layers), press)},
            models=(str(folder),),
            texts=(str(folder / "text.txt"),),
            samples=1,
            tokens=len(tokenizer(text)["input_ids"]),
            prompt=PROMPT,
            device=torch.device("cpu"),
            dtype="float32",
        )
        row = run_sweep(plan, prepare(plan)).rows[-1]
    return {
        "ppl": row.ppl,
        "tokens": row.scored_tokens,
        "evictions": row.evictions,
        "ppl_change": row.ppl_change,
        "verdict": row.verdict,
        "vacuous": row.vacuous,
    }


def peak_memory(model: Any, tokenizer: Any, prompt: Tensor, new_tokens: int, *, compressor: Press) -> int | None:
    """``Timing.peak_memory_bytes``."""
    return measure_timing(model, prompt, compressor, new_tokens, pairs=2).peak_memory_bytes


def kv_bytes(model: Any, tokenizer: Any, prompt: Tensor, new_tokens: int, *, compressor: Press) -> int:
    """``Perplexity.kv_bytes``, by decoding."""
    ids = torch.cat([prompt, prompt[:, :new_tokens]], dim=1)
    return perplexity(model, ids, compressor, prompt.shape[1], "stepwise").kv_bytes


def nbytes(model: Any, tokenizer: Any, prompt: Tensor, new_tokens: int, *, compressor: Press) -> int:
    """``PressedCache.nbytes``, after ``generate``."""
    cache = generate(model, prompt, compressor, new_tokens).cache
    assert isinstance(cache, PressedCache)
    return cache.nbytes


def timing(
    model: Any,
    tokenizer: Any,
    prompt: str,
    new_tokens: int,
    *,
    keep_ratio: float,
    prune_after: int,
    skip_layers: tuple[int, ...],
    batch_size: int,
    repeats: int,
) -> dict[str, float]:
    """``measure_timing`` of a batch of one prompt."""
    ids = tokenizer([prompt] * batch_size, return_tensors="pt").input_ids
    press = KnormPress(keep_ratio, prune_after=prune_after, skip_layers=skip_layers)
    times = measure_timing(model, ids, press, new_tokens, pairs=repeats)
    return {
        "ttft": times.ttft,
        "tpot": times.tpot,
        "throughput": times.tokens_per_second,
        "ttft_ratio": times.ttft_ratio.median,
        "tpot_ratio": times.tpot_ratio.median,
    }


_UNCOMPRESSED = {"prompt": PROMPT, "keep_ratio": None, "prune_after": None}
_GIVEN = {"compressor": "argument", "prompt": "ids"}
_OF_CACHE = _GIVEN | {"figure": "cache", "metadata": "excluded"}
SUBJECTS: dict[str, list[Measurement]] = {
    "evaluator": [
        Evaluator.of("perplexity-onepass", by_method("onepass"), {"prompt": PROMPT}),
        Evaluator.of("perplexity-stepwise", by_method("stepwise"), {"prompt": PROMPT}),
        Evaluator.of("perplexity-plain", plain, _UNCOMPRESSED),
        Evaluator.of("perplexity-rows", in_rows, {"text": "list"}),
        Evaluator.of("sweep", swept, {"prompt": PROMPT}),
    ],
    "benchmark": [Benchmark.of("measure_timing", timing)],
    "memory": [
        Footprint.of("timing-peak", peak_memory, _GIVEN | {"figure": "peak"}),
        Footprint.of("timing-cache", peak_memory, _OF_CACHE | {"device": "cpu"}),
        Footprint.of("perplexity-bytes", kv_bytes, _OF_CACHE),
        Footprint.of("pressed-cache", nbytes, _OF_CACHE),
    ],
}
