"""Terminal tables of ``pressgauge measure``."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich import box
from rich.markup import escape
from rich.table import Table

from pressgauge.bench.row import Row, bands_in_words


def _colour(row: Row) -> str | None:
    """Colour of the change: green in the first band, red above all, yellow in between."""
    if row.band is None:
        return "red" if row.verdict == "not a number" else None
    return "green" if row.band == 0 else "red" if row.band == len(row.bands) else "yellow"


def _span(numbers: tuple[int, ...]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}-{high}"


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    # With this box and padding, tables fit 80 columns without truncated cells.
    table = Table(title=title, caption=caption, box=box.SIMPLE, padding=0)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def make_table(rows: Sequence[Row]) -> Table:
    """Table of perplexity and cache size, for the rows of one press on one text."""
    first = rows[0]
    caption = "affected: scored tokens that met an eviction; held: entries per KV head, emptiest to fullest layer"
    if any(row.band is not None for row in rows):
        caption += f"\nbands of change: {bands_in_words(first.bands)}"
    if any(row.verdict == "not a number" for row in rows):
        caption += "\nnot a number: the press makes the perplexity NaN or infinite"
    if any(row.vacuous for row in rows):
        caption += "\nvacuous: no scored token met an eviction, so this says nothing about the press"
    caption += "".join(f"\nNO VERDICT: {escape(warning)}" for warning in first.warnings)
    where = escape(f"{first.model} on {first.text}")
    table = _table(
        f"{first.press}, {first.schedule}, prune_after {first.prune_after}: {where}",
        caption,
        ("keep ratio", "perplexity", "change", "accuracy", "affected", "held", "KV bytes"),
    )
    for row in rows:
        colour = _colour(row)
        table.add_row(
            f"{row.keep_ratio:g}",
            f"{row.ppl:.3f}",
            f"[{colour}]{row.change}[/]" if colour else row.change,
            f"{row.accuracy:.1%}",
            f"{row.affected_tokens}/{row.scored_tokens}",
            _span(row.held),
            f"{row.kv_bytes:,}",
        )
    return table


def _ratio(median: float | None, interval: tuple[float, float] | None) -> str:
    return "-" if median is None or interval is None else f"{median:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def make_timing_table(rows: Sequence[Row]) -> Table:
    """Table of times and memory, for the timed rows of one press on one text."""
    first = rows[0]
    memory = {"device": "peak device memory", "cache": "storage of the cache at the end"}
    caption = "to uncompressed, medians of pairs with 95 % intervals; in the first row both arms are uncompressed"
    if first.peak_memory_of in memory:
        caption += f"\nmemory: {memory[first.peak_memory_of]}, in bytes"
    if not first.noise_is_even:
        caption += "\nNOT TO BE TRUSTED: two uncompressed arms differ by more than noise; take times on a quiet machine"
    table = _table(f"{first.press}: times", caption, ("keep ratio", "TTFT", "TPOT", "tokens/s", "memory"))
    for row in rows:
        table.add_row(
            f"{row.keep_ratio:g}",
            _ratio(row.ttft_ratio, row.ttft_interval),
            _ratio(row.tpot_ratio, row.tpot_interval),
            "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.1f}",
            "n/a" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes:,}",
        )
    return table


def make_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield all tables of a sweep, press by press."""
    for _, group in groupby(rows, key=lambda row: (row.model, row.text, row.press)):
        same = list(group)
        yield make_table(same)
        if same[0].ttft is not None:
            yield make_timing_table(same)
