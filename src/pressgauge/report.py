"""Rows of results: what was measured, as data and as a table."""

from dataclasses import asdict, dataclass

from rich import box
from rich.table import Table

from pressgauge.perplexity import Perplexity
from pressgauge.press import Press


@dataclass(frozen=True)
class Row:
    """One measurement: a press on a text. ``ppl_change`` is relative to the uncompressed run, .05 for 5 % more."""

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

    @property
    def label(self) -> str:
        """What the change in perplexity is called: a percentage only where a press was at work."""
        if self.keep_ratio == 1:
            return "uncompressed"
        return "vacuous" if self.vacuous else f"{self.ppl_change:+.1%}"

    def as_dict(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self)


def make_row(name: str, press: Press, source: dict[str, str], result: Perplexity, uncompressed: Perplexity) -> Row:
    """The row of one result. ``source`` has ``model``, ``text``, ``dtype`` and ``device``."""
    return Row(
        press=name,
        schedule=press.schedule,
        keep_ratio=float(press.keep_ratio),
        prune_after=press.prune_after,
        skip_layers=press.skip_layers,
        **source,
        ppl=result.ppl,
        ppl_change=result.ppl / uncompressed.ppl - 1,
        accuracy=result.accuracy,
        scored_tokens=result.scored_tokens,
        affected_tokens=result.affected_tokens,
        evictions=result.evictions,
        held=result.held,
        kv_bytes=result.kv_bytes,
        vacuous=result.vacuous,
    )


def _span(numbers: tuple[int, ...]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}-{high}"


def make_table(rows: list[Row]) -> Table:
    """The table that ``pressgauge measure`` shows."""
    first = rows[0]
    vacuous = any(row.vacuous for row in rows)
    table = Table(
        title=f"{first.press}, {first.schedule}, prune_after {first.prune_after}: {first.model} on {first.text}",
        caption="affected: scored tokens that met an eviction; held: entries per KV head, emptiest to fullest layer"
        + ("\nvacuous: no scored token met an eviction, so this says nothing about the press" * vacuous),
        box=box.SIMPLE,  # fits 80 columns, in which no cell may be cut short
        padding=0,
    )
    for heading in ("keep ratio", "perplexity", "change", "accuracy", "affected", "held", "KV bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.keep_ratio:g}",
            f"{row.ppl:.3f}",
            row.label,
            f"{row.accuracy:.1%}",
            f"{row.affected_tokens}/{row.scored_tokens}",
            _span(row.held),
            f"{row.kv_bytes:,}",
        )
    return table
