"""The command line: ``pressgauge measure``."""

import io
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from pressgauge.bench.files import check_page, check_writable
from pressgauge.bench.naming import make, only_presses, parse, schedule_of, with_options, with_random
from pressgauge.bench.progress import Progress
from pressgauge.bench.provenance import versions
from pressgauge.bench.quantities import BANDS
from pressgauge.bench.ranks import Ranks, join, launched
from pressgauge.errors import Terminated, one_line, sentence, terminable
from pressgauge.models import DTYPES, check_dtype, check_model_name
from pressgauge.presses import PRESSES
from pressgauge.rules import UNPRUNABLE, Budget, check_prompt, usual_prompt, whole_number
from pressgauge.tasks import TASKS, check_task_name
from pressgauge.texts import check_text_name

# Modules that need torch are imported after the arguments are checked, so that help and refusals are fast.
if TYPE_CHECKING:
    from pressgauge.bench.journal import Journal
    from pressgauge.bench.plan import Plan

KEPT = "; finished results are kept, and --resume continues from them"
"""What an error says of a sweep with an output."""
LEAST_WIDTH = 60
"""Columns that tables have at least, in any terminal."""
PATIENCE = 10.0
"""Seconds that a rank gives rank 0 to print an error that all of them have, and the launcher to end it."""
EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "jinja2", "matplotlib", "scipy"), "bench"),
    **dict.fromkeys(("hypothesis", "pytest"), "conformance"),
}
"""Extra that provides a package."""

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
    """Numbers separated by commas; empty for 'none'."""
    if text.strip() in ("", "none"):
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, got {text!r}") from None


def _bands(text: str) -> tuple[float, ...]:
    """Ascending changes in perplexity, from percentages separated by commas."""
    percentages = _numbers("--bands", text)
    ascending = all(one < other for one, other in pairwise(percentages))
    if not percentages or not ascending or not all(0 <= number < math.inf for number in percentages):
        raise ValueError(f"--bands must be percentages from 0 on in ascending order, such as 20,30, got {text!r}")
    return tuple(number / 100 for number in percentages)


def _layers(text: str) -> tuple[int, ...] | Literal["unprunable"]:
    """Indices of layers: numbers and ranges such as ``0-4`` separated by commas; empty for ``none``."""
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


def _split(option: str, text: str) -> tuple[str, ...]:
    """Names separated by commas, without repetitions."""
    _check_unicode(option, text)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise ValueError(f"{option} must be names with commas between them, got {text!r}")
    return names


def _check_unicode(option: str, text: str) -> None:
    """Raise ``ValueError`` if a name has bytes that are not UTF-8, which no table or page could show."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} must be a name in UTF-8, got {text!r}: rename it, or link to it") from None


def _resolved(option: str, path: Path | None) -> Path | None:
    """An absolute path without symbolic links.

    Raises:
        ValueError: if its links lead to each other, or its name is not Unicode.
    """
    _check_unicode(option, str(path))
    try:
        return path and path.resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{option} must be a path without a loop of symbolic links, got {str(path)!r}: give another one"
        ) from error


def _check_places(json_file: Path | None, report: Path | None, resume: bool, option: str = "--report") -> None:
    """Raise ``ValueError`` if results cannot be written to the given paths."""
    if json_file is not None and json_file == report:
        raise ValueError(f"--json is a file and --report a folder, got {str(report)!r} for both")
    if json_file is not None and json_file.exists() and not json_file.is_file():
        raise ValueError(f"--json must be a file, got {str(json_file)!r}")
    if json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"--json must be in a folder that exists, got {str(json_file)!r}")
    if report is not None and not report.parent.is_dir():
        raise ValueError(f"{option} must be in a folder that exists, got {str(report)!r}")
    if report is not None and report.exists() and not report.is_dir():
        raise ValueError(f"{option} must be a folder, got the file {str(report)!r}")
    if json_file is not None:
        check_writable("--json", json_file)
    if report is not None:
        check_page(report, option=option)
        check_writable(option, report / "report.html" if report.exists() else report)
    if resume and json_file is None and report is None:
        raise ValueError("--resume continues a sweep that writes --json or --report: give the same one again")


def _check_not_replaced(json_file: Path | None, models: tuple[str, ...], texts: tuple[str, ...]) -> None:
    """Raise ``ValueError`` if the file of results would replace a text or a file of a model."""
    if json_file is None or not json_file.exists():
        return
    for name in texts:
        if Path(name).exists() and json_file.samefile(name):
            raise ValueError(f"--json must not replace the text that is measured, got {str(json_file)!r} for both")
    for name in models:
        folder = Path(name).is_dir() and json_file.is_relative_to(Path(name).resolve())
        if folder or (Path(name).exists() and json_file.samefile(name)):
            raise ValueError(f"--json must not replace a file of the model {name!r}, got {str(json_file)!r}")


def _journal(json_file: Path | None, report: Path | None, resume: bool, plan: "Plan", ranks: Ranks) -> "Journal | None":
    """The journal of a sweep with outputs, in a file next to them, with as many threads as it was begun with."""
    import torch

    from pressgauge.bench.journal import Journal, threads_of

    place = json_file or report
    if place is None:
        return None
    path = place.with_name(f"{place.name}.unfinished")
    if resume and (threads := [one for one in ranks.gather(threads_of(path)) if one is not None]):
        torch.set_num_threads(threads[0])
    journal = Journal(path, resume=resume, plan=plan.as_dict(), rank=ranks.index)
    for (file, line), reason in journal.damaged.items():
        _note(f"line {line} of {str(file)!r} is left out: {reason}", ranks)
    return journal


def _stderr(ranks: Ranks) -> Console:
    """The standard error of rank 0; nothing on others."""
    return Console(stderr=True, quiet=ranks.index > 0)


def _missing(lines: Sequence[str]) -> None:
    for line in lines:
        Console(stderr=True).print(f"[bold red]missing:[/] {escape(line)}", highlight=False, soft_wrap=True)


def _note(text: str, ranks: Ranks) -> None:
    """Print a note that is neither a result nor an error."""
    _stderr(ranks).print(f"[yellow]note:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _sentence(error: Exception) -> str | None:
    """Message of an error for the user, with the way out for a missing package; None for an internal error."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        extra = EXTRAS[error.name]
        return (
            f"this command needs {error.name}, which is not installed: install the extra {extra}, "
            f"python -m pip install 'path/to/pressgauge[{extra}]'"
        )
    return sentence(error)


def _fail(error: Exception, note: str = "") -> NoReturn:
    """Print the message of an error and exit with code 2; an internal error has a traceback and code 1."""
    text, code, kind = _sentence(error), 2, "error"
    if rank := launched()[0]:
        # An error that rank 0 has as well ends all ranks, and is printed once.
        time.sleep(PATIENCE)
        note = f" (rank {rank}){note}"
    if text is None:
        traceback.print_exception(error)
        code, kind = 1, "internal error"
        releases = ", ".join(f"{name} {number}" for name, number in versions().items())
        text = (
            f"{type(error).__name__}: {one_line(str(error))}. Unless it is from code of your own, please report it "
            f"with the lines above: {releases}"
        )
    Console(stderr=True).print(f"[bold red]{kind}:[/] {escape(text)}{note}", highlight=False, soft_wrap=True)
    raise typer.Exit(code) from None


def _console() -> Console:
    """The standard output, as wide as a table needs to be readable."""
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    return console


@contextmanager
def _printing() -> Iterator[None]:
    """Print results; if the standard output takes none, exit with a message."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An encoding without a character loses it, and not the table.
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    except OSError as error:
        # Python would try again to write what is left.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
        error.filename = "standard output"
        _fail(error)


@app.command()
def measure(
    model: Annotated[
        str, typer.Option(help="reference, reference-neox, a folder, a GGUF file, or a hub's name; several with commas")
    ] = "reference",
    text: Annotated[
        str | None,
        typer.Option(
            help="reference, wikitext-2, pg-19, or a text file; several with commas (default: reference, or no text "
            "with --task)"
        ),
    ] = None,
    task_names: Annotated[
        str | None, typer.Option("--task", help=f"recall in long contexts: {', '.join(TASKS)}; several with commas")
    ] = None,
    press: Annotated[
        str,
        typer.Option(
            help=", ".join(PRESSES)
            + ", or your_module:YourPress, or your_module:factory of any other compressor; several with commas, with "
            "options of their own such as 'snapkv(recent=32)'"
        ),
    ] = "knorm",
    keep_ratios: Annotated[str, typer.Option(help="shares of the tokens that are kept")] = "1.0,0.9,0.8,0.7",
    prune_after: Annotated[int, typer.Option(help="a layer with this many entries or fewer evicts nothing")] = 512,
    skip_layers: Annotated[
        str, typer.Option(help="layers that never evict, such as 0,2 or 0-4,6; or none, or unprunable")
    ] = "0",
    schedule: Annotated[
        str | None, typer.Option(help="budget, step or prefill (default: prefill for snapkv, else budget)")
    ] = None,
    sinks: Annotated[
        int | None, typer.Option(help="first tokens that are never evicted (default: the press's)")
    ] = None,
    recent: Annotated[
        int | None, typer.Option(help="last tokens that are never evicted (default: the press's)")
    ] = None,
    interval: Annotated[int | None, typer.Option(help="evict after every k-th later pass (default: 1)")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of random (default: 0)")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="option of compressors named by their module; may be repeated"),
    ] = None,
    prompt: Annotated[
        int | None,
        typer.Option(help="tokens fed in one pass (default: 1; 3/4 of them if a press acts under prefill)"),
    ] = None,
    samples: Annotated[int, typer.Option(help="samples of the text")] = 3,
    tokens: Annotated[int, typer.Option(help="tokens per sample")] = 1024,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    device_map: Annotated[
        str, typer.Option(help="auto: layers of a model on all devices, in main memory and on disk, as they fit")
    ] = "",
    tensor_parallel: Annotated[
        int, typer.Option(help="share each model among this many processes, which torchrun starts")
    ] = 1,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    timing: Annotated[
        bool, typer.Option("--timing", help="also measure times, relative to the uncompressed model")
    ] = False,
    random: Annotated[
        bool, typer.Option("--random/--no-random", help="also measure random, which a press has to beat")
    ] = True,
    metric: Annotated[
        str | None, typer.Option(help="your_module:function of a result and the uncompressed one; several with commas")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", readable=False, help="write the rows to this file")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(readable=False, help="write a page with pictures to this folder")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a sweep that was interrupted")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="run the model's own code")] = False,
    bands: Annotated[str, typer.Option(help="changes in perplexity, in %, that verdicts are told apart by")] = ",".join(
        f"{100 * band:g}" for band in BANDS
    ),
) -> None:
    """Measure the perplexity of texts, and recall in tasks, under compressed caches, for several keep ratios."""
    console = _console()
    journal = None
    ranks = Ranks()
    try:
        json_file, report = _resolved("--json", json_file), _resolved("--report", report)
        ratios = _numbers("--keep-ratios", keep_ratios)
        if not ratios:
            raise ValueError("--keep-ratios must name at least one ratio, got none")
        skipped = _layers(skip_layers)
        check_dtype(dtype)
        limits = _bands(bands)
        named = parse(press)
        # A ratio of 1 always comes first, since changes are relative to it.
        ratios = list(dict.fromkeys([1.0, *ratios]))
        options: dict[str, Any] = {"prune_after": prune_after, "skip_layers": skipped}
        options |= {} if schedule is None else {"schedule": schedule}
        shared = {"sinks": sinks, "recent": recent, "interval": interval}
        named = tuple(one.given(**shared, seed=seed if one.name == "random" else None) for one in named)
        named = with_options(named, option or ())
        known = {field.name for field in fields(Budget)}
        for ratio in ratios:
            for one in (one for one in named if ":" not in one.name):
                Budget(ratio, **options | {name: value for name, value in one.options.items() if name in known})
        whole_number("samples", samples, 1)
        whole_number("tokens", tokens, 2)
        check_prompt(None, 1 if prompt is None else prompt, tokens)
        _check_places(json_file, report, resume)
        own_metrics = () if metric is None else _split("--metric", metric)
        tasks = () if task_names is None else _split("--task", task_names)
        for name in tasks:
            check_task_name(name)
        models = _split("--model", model)
        texts = () if tasks and text is None else _split("--text", "reference" if text is None else text)
        if not texts and (timing or prompt is not None):
            raise ValueError(
                f"{'--timing' if timing else '--prompt'} is for texts, and --task alone measures none: give --text too"
            )
        for name in models:
            check_model_name(name)
        for name in texts:
            check_text_name(name)
        _check_not_replaced(json_file, models, texts)
        from transformers.utils.logging import disable_progress_bar

        from pressgauge.bench.metrics import find_metric
        from pressgauge.bench.plan import Plan, TaskPlan
        from pressgauge.bench.sharing import missing, run_shared, share_of
        from pressgauge.bench.sweep import prepare
        from pressgauge.bench.task_sweep import prepare_tasks, under_schedules
        from pressgauge.models import pick_device

        ranks = join(cpu=device == "cpu", together=tensor_parallel > 1)
        presses = {one.label: make(one, ratios, options) for one in named}
        if random:
            presses = with_random(presses, ratios, options, **shared, seed=seed)
        if prompt is None:
            prompt = usual_prompt([schedule_of(one) for several in presses.values() for one in several], tokens)
        own = only_presses(presses, "--task") if tasks else {}
        lines = {
            one.label: under_schedules(own[one.label], given=schedule is not None or "schedule" in one.options)
            for one in named
            if tasks
        }
        if random and tasks:
            flat = {f"{name} {place}": line for name, each in lines.items() for place, line in enumerate(each)}
            more = only_presses(with_random(flat, ratios, options, **shared, seed=seed), "--task")
            lines["random"] = (*lines.get("random", ()), *(line for name, line in more.items() if name not in flat))
        of_tasks = TaskPlan(tasks, lines, samples, tokens) if tasks else TaskPlan()
        plan = Plan(
            presses=presses if texts else {},
            models=models,
            texts=texts,
            samples=samples,
            tokens=tokens,
            prompt=prompt,
            device=pick_device(device),
            dtype=dtype,
            timing=timing,
            trust_remote_code=trust_remote_code,
            bands=limits,
            metrics=tuple(map(find_metric, own_metrics)),
            of_tasks=of_tasks,
            device_map=device_map,
            tensor_parallel=whole_number("--tensor-parallel", tensor_parallel, 1),
        )
        plan.check_spread(ranks.count)
        journal = _journal(json_file, report, resume, plan, ranks)
        share = share_of(plan, journal, ranks)
        # Processes that share a model measure all of it together.
        sharing = ranks if tensor_parallel == 1 else Ranks()
        share = share if tensor_parallel == 1 else share_of(plan, journal, sharing)
        disable_progress_bar()
        with terminable(), Progress(len(share), plan.steps_per_row, _stderr(ranks)) as bar:
            found = prepare(plan)
            prompts = {name: prepare_tasks(of_tasks, name, trust_remote_code=trust_remote_code) for name in models}
            sweep = run_shared(
                plan,
                share,
                found,
                journal,
                sharing,
                prompts=prompts,
                pictures=report is not None,
                advance=bar.advance,
                resume=bar.resume,
            )
            if sweep is None or ranks.index:
                # Rank 0 has the results of all.
                written = ranks.gather(False)[0]
                if journal is not None and written:
                    journal.path.unlink(missing_ok=True)
                return
            provenance = plan.provenance()
            if sweep.missing:
                provenance["missing"] = "; ".join(sweep.missing)
            if json_file is not None:
                from pressgauge.bench.results import write_results

                write_results(json_file, sweep.rows, provenance, sweep.tasks)
            page = None
            if report is not None:
                from pressgauge.report.page import write_report

                page = write_report(
                    report,
                    sweep.rows,
                    maps=sweep.maps,
                    correlations=sweep.correlations,
                    provenance=provenance,
                    tasks=sweep.tasks,
                )
            if journal is not None and not sweep.missing:
                journal.close()
            ranks.gather(not sweep.missing)
    except Exception as error:
        _missing(getattr(error, "missing", ()))
        _fail(error, KEPT if journal is not None and len(journal) else "")
    except KeyboardInterrupt as error:
        kept = KEPT if json_file or report else ""
        if ranks.count > 1 and not ranks.index:
            _missing(missing(plan, journal))
        _stderr(ranks).print(f"[bold red]interrupted[/]{kept}", highlight=False, soft_wrap=True)
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None
    from pressgauge.report.table import make_tables
    from pressgauge.report.tasks import make_task_tables

    with _printing():
        for table in make_tables(sweep.rows):
            console.print(table)
        for table in make_task_tables(sweep.tasks):
            console.print(table)
        if page is not None:
            console.print(f"report: {escape(str(page))}", highlight=False, soft_wrap=True)
    if sweep.missing:
        _missing(sweep.missing)
        if journal is not None:
            console.print("finished results are kept, and --resume measures what is missing", highlight=False)
        raise typer.Exit(1)


FILES = Annotated[
    list[Path], typer.Argument(metavar="FILE...", readable=False, help="files that `pressgauge measure --json` wrote")
]


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(readable=False, help="a file that `pressgauge measure --json` wrote")],
    after: Annotated[Path, typer.Argument(readable=False, help="another one")],
) -> None:
    """Compare two files of results: changes in perplexity of the same measurements, paired, with 95 % intervals."""
    console = _console()
    try:
        from pressgauge.bench import comparing
        from pressgauge.bench.results import read_results
        from pressgauge.bench.task_comparing import compare_tasks
        from pressgauge.report.table import comparison_notes, make_comparison
        from pressgauge.report.tasks import make_task_comparison, task_comparison_notes

        both = read_results(before), read_results(after)
        found, of_tasks = comparing.compare(*both), compare_tasks(*both)
    except Exception as error:
        _fail(error)
    with _printing():
        if found.cells:
            console.print(make_comparison(found))
        if of_tasks.cells:
            console.print(make_task_comparison(of_tasks))
        for line in (*comparison_notes(found), *task_comparison_notes(of_tasks)):
            console.print(escape(line), highlight=False, soft_wrap=True)


@app.command("report")
def report_of(
    files: FILES,
    to: Annotated[Path, typer.Option(readable=False, help="folder of the page; its parent must exist")] = Path(
        "report"
    ),
) -> None:
    """Write the page from files of results, without measuring anything."""
    try:
        place = _resolved("--to", to) or to
        _check_places(None, place, resume=False, option="--to")
        from pressgauge.bench.results import read_results, told_apart
        from pressgauge.report.page import write_report

        found = [read_results(path) for path in files]
        names = dict.fromkeys(name for results in found for name in results.provenance)
        provenance = {
            name: "; ".join(dict.fromkeys(results.provenance.get(name, "missing") for results in found))
            for name in names
        }
        rows = told_apart([row for results in found for row in results.rows])
        tasks = [row for results in found for row in results.tasks]
        page = write_report(place, rows, maps={}, correlations={}, provenance=provenance, tasks=tasks)
    except Exception as error:
        _fail(error)
    with _printing():
        Console().print(f"report: {escape(str(page))}", highlight=False, soft_wrap=True)


audit = typer.Typer(no_args_is_help=True, help="Run the laws on a compressor, or on code that measures one.")
app.add_typer(audit, name="audit")

PYTEST = Annotated[list[str] | None, typer.Argument(metavar="[-- PYTEST...]", help="options of pytest")]
FUNCTION = Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="the measuring function")]


KNOWN = Annotated[
    Path | None,
    typer.Option(
        "--known", metavar="FILE", readable=False, help="TOML file of known findings, which do not fail the run"
    ),
]
SUMMARY = Annotated[
    list[Path] | None,
    typer.Option(
        "--summary",
        metavar="FILE",
        readable=False,
        help="write the outcomes to this file, .json or .md; may be repeated",
    ),
]


def _audit(kind: str, subject: str, options: list[str] | None, known: Path | None, summary: list[Path] | None) -> None:
    given = [*(["--pressgauge-known", str(known)] if known else [])]
    for path in summary or []:
        given += ["--pressgauge-summary", str(path)]
    try:
        from pressgauge.conformance.running import run

        code = run(kind, subject, [*given, *(options or ())])
    except Exception as error:
        _fail(error)
    # pytest has a code of its own for wrong usage.
    raise typer.Exit(2 if code == 4 else code)


@audit.command()
def compressor(
    subject: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="the factory of the compressor")],
    options: PYTEST = None,
    known: KNOWN = None,
    summary: SUMMARY = None,
) -> None:
    """Run every law on a compressor, and list broken laws with their findings, laws that hold, and those not
    applicable."""
    _audit("subject", subject, options, known, summary)


@audit.command()
def evaluator(function: FUNCTION, options: PYTEST = None, known: KNOWN = None, summary: SUMMARY = None) -> None:
    """Run every law on a function that computes perplexity or accuracy, and name the mistakes that explain its
    figures."""
    _audit("evaluator", function, options, known, summary)


@audit.command()
def benchmark(function: FUNCTION, options: PYTEST = None, known: KNOWN = None, summary: SUMMARY = None) -> None:
    """Run every law on a function that measures times, and name the mistakes that explain its figures."""
    _audit("benchmark", function, options, known, summary)


@audit.command()
def memory(function: FUNCTION, options: PYTEST = None, known: KNOWN = None, summary: SUMMARY = None) -> None:
    """Run every law on a function that measures memory, and name the mistakes that explain its figures."""
    _audit("memory", function, options, known, summary)
