"""The command line: ``pressgauge measure``."""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from transformers.utils.logging import disable_progress_bar

from pressgauge.models import DTYPES, load, pick_device
from pressgauge.perplexity import perplexity
from pressgauge.press import KeyDiffPress, KnormPress, Press, RandomPress, StreamingLLMPress
from pressgauge.row import Source, make_row
from pressgauge.table import make_table
from pressgauge.text import load_text

PRESSES: dict[str, type[Press]] = {
    "knorm": KnormPress,
    "streaming-llm": StreamingLLMPress,
    "random": RandomPress,
    "keydiff": KeyDiffPress,
}

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """The bench for KV-cache compression."""


def _numbers(option: str, text: str, kind: type[float] | type[int]) -> list[Any]:
    """A comma-separated list; empty for 'none'."""
    if text.strip() in ("", "none"):
        return []
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, got {text!r}") from None


def _write_json(path: Path, rows: list[dict[str, object]]) -> None:
    """Write the file whole or not at all. A perplexity beyond all floats is written as null, which JSON has."""
    finite = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]
    text = json.dumps({"rows": finite}, indent=1, allow_nan=False) + "\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@app.command()
def measure(
    model: Annotated[str, typer.Option(help="reference, reference-neox, a folder, or a hub's name")] = "reference",
    text: Annotated[str, typer.Option(help="reference, wikitext-2, pg-19, or a text file")] = "reference",
    press: Annotated[str, typer.Option(help=", ".join(PRESSES))] = "knorm",
    keep_ratios: Annotated[str, typer.Option(help="shares of the tokens that are kept")] = "1.0,0.9,0.8,0.7",
    prune_after: Annotated[int, typer.Option(help="a layer with this many entries or fewer is never pruned")] = 512,
    skip_layers: Annotated[str, typer.Option(help="layers that are never pruned, or none")] = "0",
    schedule: Annotated[str, typer.Option(help="budget, step or prefill")] = "budget",
    prompt: Annotated[
        int | None, typer.Option(help="tokens fed in one pass (default: 1; prefill: 3/4 of them)")
    ] = None,
    samples: Annotated[int, typer.Option(help="samples of the text")] = 3,
    tokens: Annotated[int, typer.Option(help="tokens per sample")] = 1024,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows to this file")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="run the model's own code")] = False,
) -> None:
    """Measure the perplexity of a text under a compressed cache, for several shares of tokens kept."""
    console = Console()
    try:
        if press not in PRESSES:
            raise ValueError(f"press must be one of {', '.join(PRESSES)}, got {press!r}")
        ratios = _numbers("--keep-ratios", keep_ratios, float)
        if not ratios:
            raise ValueError("--keep-ratios must name at least one ratio, got none")
        skipped = tuple(_numbers("--skip-layers", skip_layers, int))
        # Changes are relative to the uncompressed run, so there always is one.
        ratios = list(dict.fromkeys([1.0, *ratios]))
        presses = [
            PRESSES[press](ratio, prune_after=prune_after, skip_layers=skipped, schedule=schedule)  # type: ignore[arg-type]
            for ratio in ratios
        ]
        if json_file is not None and not json_file.parent.is_dir():
            raise ValueError(f"--json must be in a folder that exists, got {str(json_file)!r}")
        place = pick_device(device)
        disable_progress_bar()
        loaded, tokenizer = load(model, device=place, dtype=dtype, trust_remote_code=trust_remote_code)
        limit = getattr(loaded.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise ValueError(f"--tokens must fit the model's context of {limit} tokens, got {tokens}")
        ids = load_text(text, tokenizer, samples=samples, tokens=tokens).to(place)
        if prompt is None:
            prompt = tokens * 3 // 4 if schedule == "prefill" else 1
        source = Source(model, text, dtype, str(place))
        rows = []
        uncompressed = None
        for candidate in presses:
            result = perplexity(loaded, ids, candidate, prompt, progress=console.is_terminal)
            uncompressed = uncompressed or result
            rows.append(make_row(press, candidate, source, result, uncompressed.ppl))
        if json_file is not None:
            _write_json(json_file, [row.as_dict() for row in rows])
    except (ValueError, TypeError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    console.print(make_table(rows))
