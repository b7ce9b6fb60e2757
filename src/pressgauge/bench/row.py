"""One row of results: the measurement of a press on a text under a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pressgauge.bench.compressors import Compressor
from pressgauge.bench.intervals import Blocks, Sums, block_sums, change, mean, sums
from pressgauge.bench.metrics import Measured
from pressgauge.bench.observed import Observed
from pressgauge.bench.quantities import BANDS, Column, Quantity, declared
from pressgauge.formats import DASH, interval, number, percent, ratio, share, size, spread
from pressgauge.presses.base import Press
from pressgauge.timing import Ratio, Timing
from pressgauge.uncompressed import Perplexity


@dataclass(frozen=True)
class Source:
    """What was measured and where.

    Attributes:
        model, text: the names that a user gave.
        dtype, device: dtype and device of the model.
        samples, tokens: samples of the text, and tokens of each.
        prompt: tokens of a sample that are fed in one pass.
        text_sha256: digest of the samples' token ids.
        weights_sha256: digest of the model's configuration and weights.
        parameters: parameters of the model.
    """

    model: str
    text: str
    dtype: str
    device: str
    samples: int
    tokens: int
    prompt: int
    text_sha256: str
    weights_sha256: str
    parameters: int


@dataclass(frozen=True)
class Settings:
    """What a row says of a press, or of another compressor.

    Attributes:
        schedule, keep_ratio, prune_after, skipped: as in ``Press`` and ``Compressor``.
        convention, package: of a third-party compressor, how it is used, and its package and version.
    """

    schedule: str | None
    keep_ratio: float | None
    prune_after: int | None
    skipped: tuple[int, ...] | None
    convention: str = ""
    package: str = ""

    @classmethod
    def of(cls, press: Press | Compressor) -> "Settings":
        """Those of a press or compressor that was resolved for a model."""
        ratio = None if press.keep_ratio is None else float(press.keep_ratio)
        return cls(press.schedule, ratio, press.prune_after, press.skipped, **_origin(press))

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a row, without the ratio."""
        return {
            "schedule": self.schedule,
            "prune_after": self.prune_after,
            "skip_layers": self.skipped,
            "convention": self.convention,
            "package": self.package,
        }


ONE_PASS, OBSERVED = "one pass", "stepwise, observed"
"""Methods: replayed in one pass, or decoded stepwise with a third-party compressor that is observed from outside."""
CHANGELESS = ("uncompressed", "vacuous", "not a number")
"""Verdicts of rows without a meaningful change in perplexity."""
UNTOLD = "cannot be told"
"""Verdict if the interval of the change crosses a limit, or there is none."""
MEMORY = {
    "device": "peak memory allocated on the device in a run, including the model",
    "cache": "the bytes of the cache's storage at the end of a run",
}
"""Descriptions of memory, by ``peak_memory_of``."""


_SUMS = ("nll_sums", "kl_sums")
"""Fields of sums over blocks that may not be finite."""


def _span(numbers: tuple[int, ...], dash: str, separator: str = "") -> str:
    ends = sorted({min(numbers), max(numbers)}) if numbers else []
    return dash.join(f"{end:{separator}}" for end in ends) or DASH


def _affected(row: "Row", separator: str = "") -> str:
    """Affected tokens, at least so many if some are unreadable; what else has changed the result if there are none."""
    if not row.affected_tokens and row.altered:
        return "altered"
    if row.affected_tokens is None:
        return DASH
    return f"{'' if not row.unreadable_tokens else '>='}{row.affected_tokens:{separator}}"


_TTFT_RATIO = Column("TTFT ratio", lambda row: ratio(row.ttft_ratio, row.ttft_interval))
_TPOT_RATIO = Column("TPOT ratio", lambda row: ratio(row.tpot_ratio, row.tpot_interval))


def band_names(bands: Sequence[float]) -> list[str]:
    """``within +20 %`` and so on, and ``above``."""
    return [*(f"within +{100 * band:g} %" for band in bands), "above"]


def bands_in_words(bands: Sequence[float]) -> str:
    """``below +20 %, up to +30 %, above``."""
    first, *others = (f"+{100 * band:g} %" for band in bands)
    return ", ".join([f"below {first}", *(f"up to {band}" for band in others), "above"])


@dataclass(frozen=True)
class Row:
    """One measurement. ``None`` stands for a missing value; times are optional.

    The names of its fields are those of the JSON. A measured field is annotated with its ``Quantity``, and is the
    property of this name of ``Perplexity`` or ``Timing``.

    Attributes:
        keep_ratio, schedule, prune_after, skip_layers: of the press; None for what a third-party compressor does not
            take or declare.
        method: how it was measured, ``ONE_PASS`` or ``OBSERVED``.
        convention, package: of a third-party compressor, how it is used, and its package and version.
        left: what it left changed in the model, which was undone; usually nothing.
        warnings: reasons why measurements with this model on this text say nothing about a press, a sentence each;
            usually none.
        bands: ascending changes in perplexity that separate the verdicts.
        metrics: values of the user's own metrics.
    """

    press: str
    schedule: str | None
    keep_ratio: float | None
    prune_after: int | None
    skip_layers: tuple[int, ...] | None
    model: str
    text: str
    dtype: str
    device: str
    ppl: Annotated[
        float,
        Quantity(
            "perplexity",
            "the exponential of the mean NLL of the scored tokens",
            better="less",
            page=Column("perplexity", lambda row: number(row.ppl, 4)),
            terminal=Column("ppl", lambda row: f"{row.ppl:.3f}"),
            drawn=True,
        ),
    ]
    ppl_change: Annotated[
        float,
        Quantity(
            "change in perplexity",
            "rise of perplexity relative to the uncompressed run",
            "share",
            "less",
            page=Column("change", lambda row: DASH if row.verdict in CHANGELESS else row.change),
            terminal=Column("change", lambda row: row.change),
            interval="ppl_interval",
        ),
    ]
    ppl_interval: Annotated[
        tuple[float, float] | None,
        Quantity(
            "interval of the change",
            "paired 95 % confidence interval of the change in perplexity; missing if there are too few tokens",
            "share",
        ),
    ]
    ppl_interval_units: Annotated[
        str,
        Quantity(
            "units of the interval",
            "what the interval is over: samples, or with fewer than five of them blocks of their tokens",
        ),
    ]
    accuracy: Annotated[
        float,
        Quantity(
            "accuracy",
            "share of scored tokens that were the model's top-1 prediction",
            "share of tokens",
            "more",
            page=Column("accuracy", lambda row: percent(row.accuracy)),
            terminal=Column("accuracy", lambda row: f"{row.accuracy:.1%}"),
            drawn=True,
        ),
    ]
    scored_tokens: Annotated[int, Quantity("scored tokens", "tokens that have an NLL", "tokens")]
    affected_tokens: Annotated[
        int | None,
        Quantity(
            "affected tokens",
            "scored tokens whose query came after an eviction in its row; at least so many if some are unreadable",
            "tokens",
            page=Column("affected / scored", lambda row: f"{_affected(row, ',')} / {row.scored_tokens:,}"),
            terminal=Column("affected", lambda row: f"{_affected(row)}/{row.scored_tokens}"),
        ),
    ]
    evictions: Annotated[
        int | None,
        Quantity(
            "evictions",
            "entries evicted over all layers, KV heads and samples; missing if observed",
            "entries",
            page=Column("evictions", lambda row: DASH if row.evictions is None else f"{row.evictions:,}"),
        ),
    ]
    held: Annotated[
        tuple[int, ...],
        Quantity(
            "held",
            "entries per KV head that a layer holds at the end; tables have the emptiest and the fullest layer",
            "entries",
            page=Column("held", lambda row: _span(row.held, DASH, ",")),
            terminal=Column("held", lambda row: _span(row.held, "-")),
        ),
    ]
    kv_bytes: Annotated[
        int | None,
        Quantity(
            "keys and values",
            "memory of the entries held at the end; if observed, the storages of all tensors of the cache",
            "bytes",
            "less",
            page=Column("keys and values", lambda row: size(row.kv_bytes)),
            terminal=Column("KV size", lambda row: size(row.kv_bytes)),
            drawn=True,
        ),
    ]
    vacuous: Annotated[
        bool,
        Quantity(
            "vacuous",
            "whether no scored token was affected, although a press was given, nor the NLL altered",
        ),
    ]
    kl_divergence: Annotated[
        float | None,
        Quantity(
            "KL divergence",
            "the sum of p log(p / q) over the vocabulary, p the uncompressed and q the compressed distribution of a "
            "scored token, the mean over scored tokens",
            "nats per token",
            "less",
            page=Column("KL divergence", lambda row: spread(row.kl_divergence, row.kl_interval)),
            terminal=Column("KL divergence", lambda row: spread(row.kl_divergence, row.kl_interval)),
            compared=True,
            drawn=True,
            comparable=False,
            interval="kl_interval",
        ),
    ] = None
    kl_interval: Annotated[
        tuple[float, float] | None,
        Quantity("interval of the KL divergence", "95 % confidence interval, over the same units", "nats per token"),
    ] = None
    agreement: Annotated[
        float | None,
        Quantity(
            "top-1 agreement",
            "share of scored tokens with the top-1 prediction of the uncompressed model",
            "share of tokens",
            "more",
            page=Column("agreement", lambda row: share(row.agreement, row.agreement_interval)),
            terminal=Column("agreement", lambda row: share(row.agreement, row.agreement_interval)),
            compared=True,
            drawn=True,
            comparable=False,
            interval="agreement_interval",
        ),
    ] = None
    agreement_interval: Annotated[
        tuple[float, float] | None,
        Quantity("interval of the agreement", "95 % confidence interval, over the same units", "share of tokens"),
    ] = None
    ttft_ratio: Annotated[
        float | None,
        Quantity(
            "TTFT ratio",
            "time to first token over that of the uncompressed arm of the same run, the median of pairs",
            better="less",
            page=_TTFT_RATIO,
            terminal=_TTFT_RATIO,
            timed=True,
            interval="ttft_interval",
        ),
    ] = None
    ttft_interval: Annotated[
        tuple[float, float] | None,
        Quantity("interval of the TTFT ratio", "95 % confidence interval, by bootstrap", timed=True),
    ] = None
    tpot_ratio: Annotated[
        float | None,
        Quantity(
            "TPOT ratio",
            "time per later token over that of the uncompressed arm of the same run, the median of pairs",
            better="less",
            page=_TPOT_RATIO,
            terminal=_TPOT_RATIO,
            timed=True,
            interval="tpot_interval",
        ),
    ] = None
    tpot_interval: Annotated[
        tuple[float, float] | None,
        Quantity("interval of the TPOT ratio", "95 % confidence interval, by bootstrap", timed=True),
    ] = None
    ttft: Annotated[
        float | None,
        Quantity(
            "time to first token (TTFT)",
            "from the call to the first generated token, the median of runs",
            "seconds",
            "less",
            drawn=True,
            timed=True,
            ratio="ttft_ratio",
        ),
    ] = None
    tpot: Annotated[
        float | None,
        Quantity(
            "time per later token (TPOT)",
            "the mean over the later tokens of a run, the median of runs",
            "seconds",
            "less",
            drawn=True,
            timed=True,
            ratio="tpot_ratio",
        ),
    ] = None
    tokens_per_second: Annotated[
        float | None,
        Quantity(
            "speed",
            "generated tokens per second of a whole run, the median of runs",
            "tokens per second",
            "more",
            page=Column("tokens/s", lambda row: number(row.tokens_per_second)),
            terminal=Column(
                "tokens/s", lambda row: DASH if row.tokens_per_second is None else f"{row.tokens_per_second:,.1f}"
            ),
            drawn=True,
            timed=True,
            comparable=False,
        ),
    ] = None
    peak_memory_bytes: Annotated[
        int | None,
        Quantity(
            "memory",
            "memory of a run: of the device, or of the cache",
            "bytes",
            "less",
            page=Column("memory", lambda row: row.memory or size(row.peak_memory_bytes)),
            terminal=Column("memory", lambda row: row.memory or f"{row.peak_memory_bytes:,}"),
            timed=True,
        ),
    ] = None
    peak_memory_of: Annotated[
        str | None,
        Quantity(
            "kind of memory",
            f"{'; '.join(f'`{kind}`: {words}' for kind, words in MEMORY.items())}; or that it is not available",
            timed=True,
        ),
    ] = None
    nll_sums: Annotated[
        Blocks, Quantity("sums of the NLL", "sums over blocks of scored tokens, a list per sample", "nats")
    ] = ()
    token_counts: Annotated[
        Blocks, Quantity("tokens of the sums", "scored tokens of each block, a list per sample", "tokens")
    ] = ()
    kl_sums: Annotated[Blocks, Quantity("sums of the KL divergence", "over the same blocks", "nats")] = ()
    agreement_counts: Annotated[
        Blocks, Quantity("tokens that agree", "tokens of the same blocks with the uncompressed prediction", "tokens")
    ] = ()
    unreadable_tokens: Annotated[
        int,
        Quantity(
            "unreadable tokens",
            "scored tokens of which it is not known whether they were affected, if observed",
            "tokens",
        ),
    ] = 0
    altered: Annotated[
        bool | None,
        Quantity("altered", "whether the NLL differs from the uncompressed run's by more than rounding, if observed"),
    ] = None
    method: str = ONE_PASS
    convention: str = ""
    package: str = ""
    left: str = ""
    samples: int = 0
    tokens: int = 0
    prompt: int = 0
    text_sha256: str = ""
    weights_sha256: str = ""
    parameters: int = 0
    warnings: tuple[str, ...] = ()
    bands: tuple[float, ...] = BANDS
    metrics: tuple[Measured, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether the perplexity and its change are finite."""
        return math.isfinite(self.ppl) and math.isfinite(self.ppl_change)

    @property
    def judged(self) -> bool:
        """Whether the verdict is one on the change: a band, or that it cannot be told."""
        return self.keep_ratio != 1 and self.finite and not self.vacuous and not self.warnings

    @property
    def band(self) -> int | None:
        """Band that contains the change in perplexity and its interval: 0 below the first of ``bands``, 1 up to the
        second, and so on; None if there is no verdict, or the interval crosses a limit."""
        if not self.judged or self.ppl_interval is None:
            return None
        found = {self._band_of(change) for change in (self.ppl_change, *self.ppl_interval)}
        return found.pop() if len(found) == 1 else None

    def _band_of(self, change: float) -> int:
        first, *others = self.bands
        return 0 if change < first else 1 + sum(change > band for band in others)

    @property
    def verdict(self) -> str:
        """``uncompressed``; ``not a number`` if the perplexity is NaN or infinite; ``vacuous``; ``no verdict`` if there
        are warnings; ``cannot be told`` if the interval of the change crosses a limit, or there is none; otherwise the
        band, by default ``within +20 %``, ``within +30 %`` or ``above``."""
        if self.keep_ratio == 1:
            return "uncompressed"
        if not self.finite:
            return "not a number"
        if self.vacuous:
            return "vacuous"
        if self.warnings:
            return "no verdict"
        return UNTOLD if self.band is None else band_names(self.bands)[self.band]

    @property
    def change(self) -> str:
        """The change in perplexity with its interval, or the verdict if there is none."""
        return self.verdict if self.verdict in CHANGELESS else interval(self.ppl_change, self.ppl_interval)

    @property
    def ratio(self) -> str:
        """The keep ratio as text; a dash if the compressor takes none."""
        return DASH if self.keep_ratio is None else f"{self.keep_ratio:g}"

    @property
    def settings(self) -> str:
        """What is known of its settings, in words: those of a press, or how a third-party compressor is used."""
        known = [self.schedule or "", f"prune_after {self.prune_after}" if self.prune_after is not None else ""]
        return ", ".join(filter(None, [self.convention, *known]))

    @property
    def sums(self) -> Sums:
        """NLL of the scored tokens, for intervals and pooling."""
        return Sums(self.nll_sums, self.token_counts)

    @property
    def memory(self) -> str:
        """Reason for a missing number of memory: not measured or not available; empty if there is a number."""
        if self.peak_memory_bytes is not None:
            return ""
        return "not available" if self.peak_memory_of else DASH

    @property
    def noise_is_even(self) -> bool:
        """Whether 1 is in the intervals of the times. If not in the row of ``keep_ratio`` 1, times are unreliable."""
        return all(at is None or at[0] <= 1 <= at[1] for at in (self.ttft_interval, self.tpot_interval))

    def as_dict(self) -> dict[str, object]:
        """The fields and the verdict, for JSON, which has neither NaN nor infinity.

        Non-finite numbers are None, like missing values, and ``not_finite`` lists them by name: ``NaN``, ``Infinity``
        or ``-Infinity``. A sum over a block that is not finite is read back as NaN.
        """
        # Of numbers, texts and tuples of them, which need no copies.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        strange = {name: at for name, at in values.items() if isinstance(at, float) and not math.isfinite(at)}
        # As Python's own JSON and JavaScript write them.
        names = {name: "NaN" if math.isnan(at) else f"{'-' * (at < 0)}Infinity" for name, at in strange.items()}
        blocks: dict[str, Any] = {
            name: [[number if math.isfinite(number) else None for number in sample] for sample in values[name]]
            for name in _SUMS
        }
        blocks["metrics"] = [metric.as_dict() for metric in self.metrics]
        return values | dict.fromkeys(strange) | blocks | {"not_finite": names, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Row":
        """The row from the JSON of its ``as_dict``."""
        values: dict[str, Any] = {field.name: data[field.name] for field in fields(cls)}
        values |= {name: float(strange) for name, strange in data["not_finite"].items()}
        for name in _SUMS:
            values[name] = [[math.nan if at is None else at for at in sample] for sample in values[name]]
        values["metrics"] = [Measured.from_dict(metric) for metric in values["metrics"]]
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    """Lists of a JSON as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


QUANTITIES = declared(Row)
"""Measured quantities, by the fields of a row."""


def measured(result: Perplexity | Observed | Timing) -> dict[str, Any]:
    """Fields of a row that a result has by the same names; the interval of a ratio is in another field."""
    found: dict[str, Any] = {name: getattr(result, name) for name in QUANTITIES if hasattr(result, name)}
    for name, value in list(found.items()):
        if isinstance(value, Ratio):
            found |= {name: value.median, QUANTITIES[name].interval: value.interval}
    return found


def _origin(press: Press | Compressor) -> dict[str, Any]:
    """Fields of a row about where a third-party compressor comes from."""
    if isinstance(press, Compressor):
        return {"convention": press.adapter.words, "package": press.version}
    return {"convention": "", "package": ""}


def _distance(result: Perplexity | Observed, tokens: Blocks) -> dict[str, Any]:
    """Fields of a row on the distance from the uncompressed run, besides the means."""
    if result.kl is None or result.agrees is None:
        return {}
    kl, agreeing = block_sums(result.kl, result.scored), block_sums(result.agrees, result.scored)
    return {
        "kl_sums": kl,
        "kl_interval": mean(kl, tokens, 0.0, math.inf).interval,
        "agreement_counts": agreeing,
        "agreement_interval": mean(agreeing, tokens, 0.0, 1.0).interval,
    }


def make_row(
    name: str,
    press: Press | Compressor | Settings,
    source: Source,
    result: Perplexity | Observed,
    uncompressed: Row | None = None,
    timing: Timing | None = None,
) -> Row:
    """The row of one result.

    Args:
        name: name of the press.
        press: the press, or its settings.
        source: model, text, dtype and device.
        result: perplexity under the press.
        uncompressed: row that it is compared with; by default itself.
        timing: times, if they were taken.
    """
    settings = press if isinstance(press, Settings) else Settings.of(press)
    own = sums(result.nll, result.scored)
    against = change(own if uncompressed is None else uncompressed.sums, own)
    return Row(
        press=name,
        keep_ratio=settings.keep_ratio,
        method=OBSERVED if isinstance(result, Observed) else ONE_PASS,
        left=result.left if isinstance(result, Observed) else "",
        **settings.fields,
        **asdict(source),
        ppl_change=0.0 if uncompressed is None else result.ppl / uncompressed.ppl - 1,
        ppl_interval=against.interval,
        ppl_interval_units=against.units,
        nll_sums=own.nll,
        token_counts=own.tokens,
        **measured(result),
        **_distance(result, own.tokens),
        **({} if timing is None else measured(timing)),
    )
