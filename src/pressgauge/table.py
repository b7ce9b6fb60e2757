"""The table of results that ``pressgauge measure`` shows."""

from rich import box
from rich.table import Table

from pressgauge.row import Row


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
            row.change,
            f"{row.accuracy:.1%}",
            f"{row.affected_tokens}/{row.scored_tokens}",
            _span(row.held),
            f"{row.kv_bytes:,}",
        )
    return table
