"""Paired timing: a pressed and an uncompressed arm, interleaved in one process.

Absolute times depend on the machine and its current load. So both arms are warmed up, each run of one is paired with a
run of the other, the arms alternate in running first, and the result is the median of the pairs' ratios with a
bootstrap confidence interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge import formats
from pressgauge.cache import storage_nbytes
from pressgauge.decoder import generate
from pressgauge.presses.base import Press

T = TypeVar("T")

PAIRS = 9
"""Pairs of runs, after one warm-up pair."""
NOT_AVAILABLE = "not available on this device"


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of pairs.

    Attributes:
        median: the median.
        interval: its 95 % confidence interval (percentile bootstrap, 9,999 resamples).
    """

    median: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        return formats.ratio(self.median, self.interval)


def interleave(
    first: Callable[[], T], second: Callable[[], T], pairs: int = PAIRS, warmup: int = 1
) -> list[tuple[T, T]]:
    """Run two arms in pairs, alternating which runs first. The results omit the warm-up."""
    results = []
    for number in range(warmup + pairs):
        if number % 2:
            other = second()
            one = first()
        else:
            one = first()
            other = second()
        if number >= warmup:
            results.append((one, other))
    return results


def _check_pairs(count: int) -> None:
    if count < 2:
        raise ValueError(f"a ratio needs at least two pairs of measurements, got {count}")


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Median ratio of the first to the second of each pair.

    Raises:
        ValueError: for fewer than two pairs, which have no spread.
    """
    _check_pairs(len(pairs))
    # Only here, since the import takes a tenth of that of torch and transformers.
    from scipy.stats import bootstrap

    quotients = np.array([first / second for first, second in pairs])
    interval = bootstrap((quotients,), np.median, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return Ratio(float(np.median(quotients)), (float(interval.low), float(interval.high)))


@dataclass(frozen=True)
class Timing:
    """Times and memory of a press, with ratios to the uncompressed model.

    Attributes:
        ttft_ratio, tpot_ratio: pressed to uncompressed.
        ttft, tpot: medians of the pressed arm, in seconds.
        tokens_per_second: throughput of the pressed arm over the whole run, median.
        peak_memory_bytes: memory of the pressed arm, of the kind ``peak_memory_of``; None if not available.
        peak_memory_of: ``device`` for peak memory allocated on the device in a run; ``cache`` for the storage of the
            cache at the end, used on the CPU, where a process's peak cannot be reset between arms; or ``not available
            on this device``.
    """

    ttft_ratio: Ratio
    tpot_ratio: Ratio
    ttft: float
    tpot: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    peak_memory_of: str


@dataclass(frozen=True)
class _Run:
    """Measurements of one run, without its cache, which would add to the next run's memory."""

    ttft: float
    tpot: float
    tokens_per_second: float
    memory: int | None
    memory_of: str


def _run(model: PreTrainedModel, input_ids: Tensor, press: Press | None, new_tokens: int) -> _Run:
    device = input_ids.device
    # torch.accelerator has memory counters since 2.9, and not for every device.
    counted = device.type not in ("cpu", "mps") and hasattr(torch.accelerator, "max_memory_allocated")
    if counted:
        torch.accelerator.reset_peak_memory_stats(device)
    result = generate(model, input_ids, press, new_tokens, eos_token_id=[])
    memory: tuple[int | None, str] = None, NOT_AVAILABLE
    if counted:
        memory = torch.accelerator.max_memory_allocated(device), "device"
    elif device.type == "cpu":
        memory = sum(storage_nbytes(layer) for layer in result.cache.layers), "cache"
    assert result.tpot is not None
    return _Run(result.ttft, result.tpot, result.tokens_per_second, *memory)


def measure_timing(
    model: PreTrainedModel,
    input_ids: Tensor,
    press: Press | None,
    new_tokens: int,
    *,
    pairs: int = PAIRS,
    advance: Callable[[], None] = lambda: None,
) -> Timing:
    """Time generation under a press against the same model uncompressed.

    Args:
        model: the model.
        input_ids: ``[B, T]``, the prompt, without padding.
        press: the press; None times two uncompressed arms, which shows the noise.
        new_tokens: tokens to generate, at least 2; an end of sequence does not stop a run.
        pairs: pairs of runs, after one warm-up pair.
        advance: called after each run.

    Returns:
        Times, memory and ratios, see ``Timing``.

    Raises:
        ValueError: for fewer than two new tokens or two pairs.
    """
    if new_tokens < 2:
        raise ValueError(f"new_tokens must be at least 2, since TPOT is the time of later tokens, got {new_tokens}")
    _check_pairs(pairs)

    def run(arm: Press | None) -> _Run:
        numbers = _run(model, input_ids, arm, new_tokens)
        advance()
        return numbers

    runs = interleave(lambda: run(press), lambda: run(None), pairs)
    mine = [pressed for pressed, _ in runs]
    return Timing(
        ttft_ratio=ratio([(pressed.ttft, plain.ttft) for pressed, plain in runs]),
        tpot_ratio=ratio([(pressed.tpot, plain.tpot) for pressed, plain in runs]),
        ttft=median(one.ttft for one in mine),
        tpot=median(one.tpot for one in mine),
        tokens_per_second=median(one.tokens_per_second for one in mine),
        peak_memory_bytes=mine[-1].memory,
        peak_memory_of=mine[-1].memory_of,
    )
