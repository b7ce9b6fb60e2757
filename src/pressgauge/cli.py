"""The command line: ``pressgauge measure``."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from transformers.utils.logging import disable_progress_bar

from pressgauge.budget import UNPRUNABLE
from pressgauge.journal import Journal
from pressgauge.models import DTYPES, pick_device
from pressgauge.press import (
    H2OPress,
    KeyDiffPress,
    KnormPress,
    Press,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from pressgauge.report import write_report
from pressgauge.sweep import Plan, prepare, run_sweep, versions
from pressgauge.table import make_tables

PRESSES: dict[str, type[Press]] = {
    "knorm": KnormPress,
    "streaming-llm": StreamingLLMPress,
    "random": RandomPress,
    "keydiff": KeyDiffPress,
    "h2o": H2OPress,
    "snapkv": SnapKVPress,
    "tova": TOVAPress,
}

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pressgauge {versions()['pressgauge']}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """The bench for KV-cache compression."""


def _numbers(option: str, text: str) -> list[float]:
    """A comma-separated list; empty for 'none'."""
    if text.strip() in ("", "none"):
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, got {text!r}") from None


def _layers(text: str) -> tuple[int, ...] | Literal["unprunable"]:
    """Indices of layers: numbers and ranges such as ``0-4`` with commas between them; empty for ``none``."""
    if text.strip() == UNPRUNABLE:
        return UNPRUNABLE
    layers: list[int] = []
    for part in [] if text.strip() in ("", "none") else text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part)
        if found is None:
            raise ValueError(
                f"--skip-layers must be layers from 0 on such as 0,2 or 0-4,6, or none, or {UNPRUNABLE}, got {text!r}"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"--skip-layers has ranges from the lower layer to the higher, got {part.strip()!r}")
        layers += range(first, last + 1)
    return tuple(layers)


def _write_json(path: Path, rows: list[dict[str, object]]) -> None:
    """Write the file whole or not at all."""
    text = json.dumps({"rows": rows}, indent=1, allow_nan=False) + "\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _split(option: str, text: str) -> tuple[str, ...]:
    """Names with commas between them, each once."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise ValueError(f"{option} must be names with commas between them, got {text!r}")
    return names


def _presses(names: str, ratios: list[float], **options: Any) -> dict[str, tuple[Press, ...]]:
    """By name, one press per ratio; a ratio of 1 always comes first, since changes are relative to it."""
    chosen = _split("--press", names)
    for name in chosen:
        if name not in PRESSES:
            raise ValueError(f"press must be one of {', '.join(PRESSES)}, got {name!r}")
    ordered = list(dict.fromkeys([1.0, *ratios]))
    return {name: tuple(PRESSES[name](ratio, **options) for ratio in ordered) for name in chosen}


def _journal(json_file: Path | None, report: Path | None, resume: bool) -> Journal | None:
    """The journal of a sweep whose results are written somewhere. It lies beside them."""
    if json_file is not None and json_file == report:
        raise ValueError(f"--json is a file and --report a folder, got {str(report)!r} for both")
    if json_file is not None and json_file.exists() and not json_file.is_file():
        raise ValueError(f"--json must be a file, got {str(json_file)!r}")
    if json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"--json must be in a folder that exists, got {str(json_file)!r}")
    if report is not None and not report.parent.is_dir():
        raise ValueError(f"--report must be in a folder that exists, got {str(report)!r}")
    if report is not None and report.exists() and not report.is_dir():
        raise ValueError(f"--report must be a folder, got the file {str(report)!r}")
    if json_file is not None:
        return Journal(json_file.with_name(f"{json_file.name}.unfinished"), resume=resume)
    if report is not None:
        return Journal(report.with_name(f"{report.name}.unfinished"), resume=resume)
    if resume:
        raise ValueError("--resume goes on with a sweep that was to write --json or --report: give the same one again")
    return None


@app.command()
def measure(
    model: Annotated[
        str, typer.Option(help="reference, reference-neox, a folder, or a hub's name; several with commas")
    ] = "reference",
    text: Annotated[
        str, typer.Option(help="reference, wikitext-2, pg-19, or a text file; several with commas")
    ] = "reference",
    press: Annotated[str, typer.Option(help=", ".join(PRESSES) + "; several with commas")] = "knorm",
    keep_ratios: Annotated[str, typer.Option(help="shares of the tokens that are kept")] = "1.0,0.9,0.8,0.7",
    prune_after: Annotated[int, typer.Option(help="a layer with this many entries or fewer is never pruned")] = 512,
    skip_layers: Annotated[
        str, typer.Option(help="layers that are never pruned, such as 0,2 or 0-4,6; or none, or unprunable")
    ] = "0",
    schedule: Annotated[
        str | None, typer.Option(help="budget, step or prefill (default: prefill for snapkv, else budget)")
    ] = None,
    prompt: Annotated[
        int | None,
        typer.Option(help="tokens fed in one pass (default: 1; 3/4 of them if a press acts under prefill)"),
    ] = None,
    samples: Annotated[int, typer.Option(help="samples of the text")] = 3,
    tokens: Annotated[int, typer.Option(help="tokens per sample")] = 1024,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    timing: Annotated[bool, typer.Option("--timing", help="also take times, beside the uncompressed model")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows to this file")] = None,
    report: Annotated[Path | None, typer.Option(help="write a page with pictures to this folder")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a sweep that was interrupted")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="run the model's own code")] = False,
) -> None:
    """Measure the perplexity of texts under compressed caches, for several shares of tokens kept."""
    console = Console()
    json_file, report = (path and path.resolve() for path in (json_file, report))
    try:
        ratios = _numbers("--keep-ratios", keep_ratios)
        if not ratios:
            raise ValueError("--keep-ratios must name at least one ratio, got none")
        skipped = _layers(skip_layers)
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        given = {} if schedule is None else {"schedule": schedule}
        presses = _presses(press, ratios, prune_after=prune_after, skip_layers=skipped, **given)
        if prompt is None:
            once = any(one.schedule == "prefill" for several in presses.values() for one in several)
            prompt = tokens * 3 // 4 if once and tokens > 1 else 1
        plan = Plan(
            presses=presses,
            models=_split("--model", model),
            texts=_split("--text", text),
            samples=samples,
            tokens=tokens,
            prompt=prompt,
            device=pick_device(device),
            dtype=dtype,
            timing=timing,
            trust_remote_code=trust_remote_code,
        )
        journal = _journal(json_file, report, resume)
        disable_progress_bar()
        found = prepare(plan)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("measuring", total=plan.steps)
            sweep = run_sweep(
                plan,
                found,
                journal,
                pictures=report is not None,
                advance=lambda what, steps: bar.update(task, description=escape(what), advance=steps),
            )
        if json_file is not None:
            _write_json(json_file, [row.as_dict() for row in sweep.rows])
        page = None
        if report is not None:
            page = write_report(
                report, sweep.rows, maps=sweep.maps, correlations=sweep.correlations, provenance=plan.provenance()
            )
        if journal is not None:
            journal.close()
    except (ValueError, TypeError, OSError, ImportError, torch.OutOfMemoryError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        kept = "; what was measured is kept, and --resume goes on with it" if json_file or report else ""
        Console(stderr=True).print(f"[bold red]interrupted[/]{kept}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    for table in make_tables(sweep.rows):
        console.print(table)
    if page is not None:
        console.print(f"report: {escape(str(page))}", highlight=False, soft_wrap=True)
