"""A row of results: one press on one text under one model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pressgauge.likelihood import Perplexity
from pressgauge.presses.base import Press
from pressgauge.timing import Timing


@dataclass(frozen=True)
class Source:
    """Model, text, dtype and device of a measurement, by the names the user gave."""

    model: str
    text: str
    dtype: str
    device: str


BANDS = (0.2, 0.3)
"""Default thresholds of verdicts, as relative changes in perplexity.

They come from the reports that called them good and acceptable.
"""
CHANGELESS = ("uncompressed", "vacuous", "not a number")
"""Verdicts of rows without a meaningful change in perplexity."""


def band_names(bands: Sequence[float]) -> list[str]:
    """Names of the bands: ``within +20 %`` and so on, and ``above``."""
    return [*(f"within +{100 * band:g} %" for band in bands), "above"]


def bands_in_words(bands: Sequence[float]) -> str:
    """The bands as text: ``below +20 %, up to +30 %, above``."""
    first, *others = (f"+{100 * band:g} %" for band in bands)
    return ", ".join([f"below {first}", *(f"up to {band}" for band in others), "above"])


@dataclass(frozen=True)
class Row:
    """One measurement. None means not measured; times are measured on request only.

    Attributes:
        ppl_change: change in perplexity relative to the uncompressed run, 0.05 for 5 % more.
        ttft_ratio, tpot_ratio: ratios to the uncompressed arm of the same run, medians of pairs. In the row of
            ``keep_ratio`` 1 both arms are uncompressed, so that the interval shows the noise.
        ttft_interval, tpot_interval: 95 % confidence intervals of these ratios.
        ttft, tpot: medians, in seconds.
        tokens_per_second: throughput, median.
        peak_memory_bytes: memory of the kind ``peak_memory_of``.
        peak_memory_of: ``device`` for peak memory allocated on the device; ``cache`` for the storage of the cache at
            the end; or ``not available on this device``.
        warnings: reasons why measurements with this model on this text say nothing about a press, one sentence each;
            usually none.
        bands: thresholds of verdicts, as relative changes in perplexity, ascending.
    """

    press: str
    schedule: str
    keep_ratio: float
    prune_after: int
    skip_layers: tuple[int, ...]
    model: str
    text: str
    dtype: str
    device: str
    ppl: float
    ppl_change: float
    accuracy: float
    scored_tokens: int
    affected_tokens: int
    evictions: int
    held: tuple[int, ...]
    kv_bytes: int
    vacuous: bool
    ttft_ratio: float | None = None
    ttft_interval: tuple[float, float] | None = None
    tpot_ratio: float | None = None
    tpot_interval: tuple[float, float] | None = None
    ttft: float | None = None
    tpot: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    peak_memory_of: str | None = None
    warnings: tuple[str, ...] = ()
    bands: tuple[float, ...] = BANDS

    @property
    def band(self) -> int | None:
        """Index of the band of the change in perplexity; None if there is no verdict on a press.

        0 below the first of ``bands``, 1 up to and including the second, and so on.
        """
        finite = math.isfinite(self.ppl) and math.isfinite(self.ppl_change)
        if self.keep_ratio == 1 or not finite or self.vacuous or self.warnings:
            return None
        first, *others = self.bands
        return 0 if self.ppl_change < first else 1 + sum(self.ppl_change > band for band in others)

    @property
    def verdict(self) -> str:
        """Verdict on the change in perplexity.

        ``uncompressed``; ``not a number`` if the perplexity is NaN or infinite; ``vacuous``; ``no verdict`` if there
        are warnings; else the name of the band, by default ``within +20 %``, ``within +30 %`` or ``above``.
        """
        if self.keep_ratio == 1:
            return "uncompressed"
        if not (math.isfinite(self.ppl) and math.isfinite(self.ppl_change)):
            return "not a number"
        if self.vacuous:
            return "vacuous"
        if self.band is None:
            return "no verdict"
        return band_names(self.bands)[self.band]

    @property
    def change(self) -> str:
        """The change in perplexity in percent, or the verdict if there is no meaningful change."""
        return self.verdict if self.verdict in CHANGELESS else f"{self.ppl_change:+.1%}"

    @property
    def noise_is_even(self) -> bool:
        """Whether the intervals of both time ratios contain 1.

        If not in the row of ``keep_ratio`` 1, no times are trustworthy.
        """
        return all(at is None or at[0] <= 1 <= at[1] for at in (self.ttft_interval, self.tpot_interval))

    def as_dict(self) -> dict[str, object]:
        """The fields and the verdict, for JSON, which has neither NaN nor infinity.

        Non-finite numbers are None, like values not measured. ``not_finite`` maps their names to ``NaN``, ``Infinity``
        or ``-Infinity``.
        """
        values = asdict(self)
        strange = {name: at for name, at in values.items() if isinstance(at, float) and not math.isfinite(at)}
        # Spelled as in Python's json module and JavaScript.
        names = {name: "NaN" if math.isnan(at) else f"{'-' * (at < 0)}Infinity" for name, at in strange.items()}
        return values | dict.fromkeys(strange) | {"not_finite": names, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Row":
        """The row from an ``as_dict`` that went through JSON."""
        values: dict[str, Any] = {field.name: data[field.name] for field in fields(cls)}
        values |= {name: float(strange) for name, strange in data["not_finite"].items()}
        lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**(values | lists))


def make_row(
    name: str,
    press: Press,
    source: Source,
    result: Perplexity,
    uncompressed_ppl: float,
    timing: Timing | None = None,
) -> Row:
    """Build the row of one result."""
    row = Row(
        press=name,
        schedule=press.schedule,
        keep_ratio=float(press.keep_ratio),
        prune_after=press.prune_after,
        skip_layers=press.skipped,
        **asdict(source),
        ppl=result.ppl,
        ppl_change=result.ppl / uncompressed_ppl - 1,
        accuracy=result.accuracy,
        scored_tokens=result.scored_tokens,
        affected_tokens=result.affected_tokens,
        evictions=result.evictions,
        held=result.held,
        kv_bytes=result.kv_bytes,
        vacuous=result.vacuous,
    )
    if timing is None:
        return row
    return replace(
        row,
        ttft_ratio=timing.ttft_ratio.median,
        ttft_interval=timing.ttft_ratio.interval,
        tpot_ratio=timing.tpot_ratio.median,
        tpot_interval=timing.tpot_ratio.interval,
        ttft=timing.ttft,
        tpot=timing.tpot,
        tokens_per_second=timing.tokens_per_second,
        peak_memory_bytes=timing.peak_memory_bytes,
        peak_memory_of=timing.peak_memory_of,
    )
