"""``python -m tools.comparison``: measure all presses on the same documents, and write ``docs/comparison.md``."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track

from pressgauge.models import load
from pressgauge.presses import PRESSES
from pressgauge.report.figures import to_svg
from pressgauge.rules import Schedule
from pressgauge.timing import Ratio, measure_timing
from regression.provenance import processor
from tools.comparison.measurements import (
    PRUNE_AFTER,
    RATIOS,
    SAMPLED,
    SCHEDULES,
    Case,
    Effect,
    effect,
    prepare,
    press_of,
    texts,
)
from tools.comparison.page import Comparison, Key, page, picture

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared"
DOCUMENTS = 16
PROMPT, NEW_TOKENS, PAIRS = 512, 16, 5
"""Settings of timing."""
ELSEWHERE = (
    "**Gemma 3 270M on WikiText-2**: the same claims on [a real model](real-model.md#claims-of-reports), "
    "whose weights are fetched by `nox -s real`."
)


def usual() -> list[Case]:
    """The reference model on its language, and a pretrained model on its own stories and on WikiText-2."""
    stories = SHARED / "models" / "tinystories-260k"
    wikitext = SHARED / "data" / "wikitext-2" / "test.txt"
    for path in (stories, wikitext):
        if not path.exists():
            raise typer.BadParameter(f"{path} was not found: give --model and --text")
    return [
        Case("reference", "reference", "reference", DOCUMENTS, 1024),
        Case("tinystories on its own stories", str(stories), SAMPLED, DOCUMENTS, 512),
        Case(
            "tinystories on WikiText-2",
            str(stories),
            str(wikitext),
            DOCUMENTS,
            512,
            "The model was trained on stories only. Distant context is noise to it here, so evictions lower "
            "perplexity, and a claim of an upper bound holds for the wrong reason.",
        ),
    ]


def timings(case: Case) -> Iterator[tuple[tuple[str, str], Ratio]]:
    """Time per token for each press and schedule, with ``keep_ratio`` .5, in float32."""
    _, ids = texts(case)
    model, _ = load(case.model)
    ids = ids[:1, :PROMPT]
    runs = list(product(PRESSES, SCHEDULES))
    for name, schedule in track(runs, "timing"):
        press = press_of(name, schedule, 0.5)
        yield (name, schedule), measure_timing(model, ids, press, NEW_TOKENS, pairs=PAIRS).tpot_ratio


def main(
    model: Annotated[
        str | None, typer.Option(help="a folder or a name on the hub, instead of the usual models")
    ] = None,
    text: Annotated[str, typer.Option(help="with --model: its text")] = "wikitext-2",
    documents: Annotated[int, typer.Option(help="documents of each text, at least 2")] = DOCUMENTS,
    tokens: Annotated[int, typer.Option(help="with --model: tokens per document, at least 128")] = 1024,
    folder: Annotated[
        Path | None, typer.Option(help="folder for the page and its plots (default: docs, without --model)")
    ] = None,
    timing: Annotated[bool, typer.Option(help="also measure time per token")] = True,
) -> None:
    """Measure the claims of the reports, and write the page."""
    if documents < 2:
        raise typer.BadParameter(f"--documents must be at least 2, for a confidence interval, got {documents}")
    if tokens < 2 * PRUNE_AFTER:
        raise typer.BadParameter(f"--tokens must be at least {2 * PRUNE_AFTER}, got {tokens}")
    if folder is None:
        if model is not None:
            raise typer.BadParameter("--model needs --folder, so that the page of the usual models is not overwritten")
        folder = PROJECT / "docs"
    if not folder.is_dir():
        raise typer.BadParameter(f"--folder must be a folder that exists, got {str(folder)!r}")
    cases = usual() if model is None else [Case(f"{model} on {text}", model, text, documents, tokens)]
    cases = [replace(case, documents=documents) for case in cases]
    prepare()
    for case in cases:
        try:
            texts(case)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{case.name}: {error}") from error
    keys: list[tuple[Case, str, Schedule, float]] = list(product(cases, PRESSES, SCHEDULES, RATIOS))
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=prepare) as pool:
        found: list[Effect] = list(track(pool.map(effect, *zip(*keys, strict=True)), "measuring", total=len(keys)))
    effects: dict[Key, Effect] = {
        (case.name, press, schedule, ratio): one
        for (case, press, schedule, ratio), one in zip(keys, found, strict=True)
    }
    tpot = dict(timings(cases[0])) if timing else {}
    machine = f"{processor(torch.device('cpu'))}, one thread"
    comparison = Comparison(cases, effects, tpot, machine, ELSEWHERE if model is None else "")
    names = {case.name: f"comparison-{number}.svg" for number, case in enumerate(cases)}
    for case in cases:
        (folder / names[case.name]).write_text(to_svg(picture(comparison, case), "comparison"), encoding="utf-8")
    options = {} if model is None else {"model": model, "text": text, "tokens": tokens}
    options |= {} if documents == DOCUMENTS else {"documents": documents}
    command = " ".join(["nox -s comparison", *(["--"] if options else [])])
    command = " ".join([command, *(f"--{name} {value}" for name, value in options.items())])
    path = folder / "comparison.md"
    path.write_text("\n".join(page(comparison, command, names)) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    typer.run(main)
