"""The tables of results that ``pressgauge measure`` shows."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich import box
from rich.markup import escape
from rich.table import Table

from pressgauge.bench.comparing import Beside, Comparison, against_random
from pressgauge.bench.row import MEMORY, OBSERVED, QUANTITIES, UNTOLD, Row, bands_in_words
from pressgauge.formats import DASH, interval, number


def _colour(row: Row) -> str | None:
    """Colour of a change: green in the first band, red above all, yellow between or if the band cannot be told."""
    if row.band is None:
        return {"not a number": "red", UNTOLD: "yellow"}.get(row.verdict)
    return "green" if row.band == 0 else "red" if row.band == len(row.bands) else "yellow"


def _table(title: str, caption: str, rows: Sequence[Row], *, timed: bool) -> Table:
    columns = {
        name: one.terminal
        for name, one in QUANTITIES.items()
        if one.terminal and one.timed == timed and not one.compared
    }
    # With this box and padding, complete cells fit 80 columns.
    table = Table(title=title, caption=caption, box=box.SIMPLE, padding=0)
    for heading in ("keep\nratio", *(column.heading for column in columns.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = {name: column.text(row) for name, column in columns.items()}
        colour = _colour(row)
        if colour and not timed:
            cells["ppl_change"] = f"[{colour}]{cells['ppl_change']}[/]"
        table.add_row(row.ratio, *cells.values())
    return table


def make_table(rows: Sequence[Row]) -> Table:
    """Table of perplexity and cache: the rows of one press on one text."""
    first = rows[0]
    caption = "ppl: perplexity; affected: scored tokens that met an eviction; held: entries per KV head, emptiest to"
    caption += " fullest layer"
    if first.samples:
        caption += f"\nsamples: {first.samples} x {first.tokens} tokens, {first.prompt} in one pass"
    if any(row.judged for row in rows):
        caption += f"\nbands of change: {bands_in_words(first.bands)}"
    if any(row.ppl_interval and row.keep_ratio != 1 for row in rows):
        caption += f"\nin brackets: paired 95 % confidence interval, over {first.ppl_interval_units}"
    if any(row.verdict == "not a number" for row in rows):
        caption += "\nnot a number: the press makes the perplexity NaN or infinite"
    if any(row.vacuous for row in rows):
        caption += "\nvacuous: no scored token met an eviction, so this says nothing about the press"
    observed = [row for row in rows if row.method == OBSERVED]
    if observed:
        caption += f"\nstepwise, observed ({observed[0].package}); the row of ratio 1 in one pass"
    if left := next((row.left for row in rows if row.left), ""):
        caption += f"\nIT LEFT THE MODEL CHANGED, which was undone: {escape(left)}"
    if any(row.unreadable_tokens for row in rows):
        caption += "\n>=: what some queries met cannot be read from outside"
    if any(row.altered and not row.affected_tokens for row in rows):
        caption += "\naltered: no eviction was seen, but the NLL is not that of the uncompressed run"
    caption += "".join(f"\nNO VERDICT: {escape(warning)}" for warning in first.warnings)
    where = escape(f"{first.model} on {first.text}")
    title = f"{escape(first.press)}, {escape(rows[-1].settings)}: {where}"
    return _table(title, caption, rows, timed=False)


def make_timing_table(rows: Sequence[Row]) -> Table:
    """Table of times and memory: the timed rows of one press on one text."""
    first = rows[0]
    caption = "to uncompressed, medians of pairs with 95 % intervals; in the first row both arms are uncompressed"
    if first.peak_memory_of in MEMORY:
        caption += f"\nmemory: {MEMORY[first.peak_memory_of]}"
    if not first.noise_is_even:
        caption += "\nNOT TO BE TRUSTED: two uncompressed arms differ by more than noise; take times on a quiet machine"
    return _table(f"{first.press}: times", caption, rows, timed=True)


def to_random(found: Beside | None) -> str:
    """Change in perplexity from ``random``, with its interval."""
    return DASH if found is None else interval(found.change.change, found.change.interval)


def make_distance_table(rows: Sequence[Row]) -> Table:
    """Table of the distances from the uncompressed run: the rows of all presses on one text."""
    columns = [one.terminal for one in QUANTITIES.values() if one.terminal and one.compared]
    caption = "KL divergence from the uncompressed distribution, in nats per token; share of tokens with the same top-1"
    table = Table(title=escape(f"to uncompressed: {rows[0].model} on {rows[0].text}"), box=box.SIMPLE, padding=0)
    table.caption = f"{caption} prediction; in brackets: 95 % confidence intervals"
    own = list(dict.fromkeys(metric.name for row in rows for metric in row.metrics))
    random = against_random(rows)
    if random:
        table.caption += f"; ppl: change in perplexity from random to the press, {SIMULTANEOUS}"
        table.caption += "".join(f"\n{escape(line)}" for line in random_notes(rows))
    headings = ("press", "keep\nratio", *(column.heading for column in columns), *["ppl to random"][: len(random)])
    for heading in (*headings, *map(escape, own)):
        own_line = heading == "press"
        table.add_column(heading, justify="left" if own_line else "right", overflow="fold" if own_line else "ellipsis")
    for index, row in enumerate(rows):
        values = {metric.name: metric.text for metric in row.metrics}
        cells = [column.text(row) for column in columns]
        cells += [to_random(random.get(index))] if random else []
        cells += [values.get(name, DASH) for name in own]
        table.add_row(escape(row.press), row.ratio, *cells)
    return table


SIMULTANEOUS = "with intervals that hold together at 95 %"


def random_notes(rows: Sequence[Row]) -> Iterator[str]:
    """For each press, at which ratios it loses less or more than ``random``, a line each."""
    for press in dict.fromkeys(row.press for row in rows):
        said: dict[str, list[str]] = {}
        for index, found in against_random(rows).items():
            if rows[index].press == press:
                said.setdefault(found.words, []).append(rows[index].ratio)
        if said:
            yield f"{press}: " + "; ".join(f"{words} at {', '.join(ratios)}" for words, ratios in said.items())


def make_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """All tables of a sweep: by press, and for each text one of the distances from the uncompressed run."""
    for _, group in groupby(rows, key=lambda row: (row.model, row.text)):
        text = list(group)
        for _, rows_of_press in groupby(text, key=lambda row: row.press):
            same = list(rows_of_press)
            yield make_table(same)
            if same[-1].ttft is not None:
                yield make_timing_table(same)
        compared = [row for row in text if row.keep_ratio != 1 and row.kl_divergence is not None]
        if compared:
            yield make_distance_table(compared)


def make_comparison(found: Comparison) -> Table:
    """Table of the measurements that two files of results share."""
    caption = "change: from the first file to the second, with its paired 95 % confidence interval"
    table = Table(caption=caption, box=box.SIMPLE, padding=0)
    for heading in ("measurement", "ppl", "ppl", "change"):
        table.add_column(heading, justify="left" if heading == "measurement" else "right")
    for cell in found.cells:
        change = DASH if cell.change is None else interval(cell.change.change, cell.change.interval)
        table.add_row(escape(_cell(cell.before)), number(cell.before.ppl, 4), number(cell.after.ppl, 4), change)
    return table


def comparison_notes(found: Comparison) -> Iterator[str]:
    """What two files of results do not share, a line each."""
    if not found.cells and (found.missing or found.new):
        yield "nothing was measured in both files"
    if any(cell.change is None for cell in found.cells):
        yield f"{DASH}: the files scored other tokens, so their perplexities cannot be compared"
    for name, (one, other) in found.differences.items():
        yield f"differs: {name}: {one} and {other}"
    for rows, which in ((found.missing, "first"), (found.new, "second")):
        yield from (f"only in the {which} file: {_cell(row)}" for row in rows)


def _cell(row: Row) -> str:
    settings = [f"{row.schedule or row.convention}, {row.ratio}"]
    if row.prune_after is not None:
        settings[0] += f" from {row.prune_after}"
    if row.skip_layers is not None:
        settings.append(f"layers skipped: {','.join(map(str, row.skip_layers)) or 'none'}")
    return f"{row.model} on {row.text}: {row.press}, {', '.join(settings)}"
