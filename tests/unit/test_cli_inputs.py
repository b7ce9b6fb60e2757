"""Bad input of any kind: one line with the value, the rule and the way out, code 2, and nothing changed."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from pressgauge import Perplexity, perplexity
from pressgauge.bench import files, sweep
from pressgauge.cli import app
from pressgauge.models import checks, location
from pressgauge.texts import check_text_name
from support.prepared import python

SMALL = ("--tokens", "40", "--samples", "1", "--prune-after", "16", "--device", "cpu", "--keep-ratios", "0.5",
         "--no-random")  # fmt: skip
Arguments = Sequence[str]
Case = tuple[Callable[[Path], Arguments], str]


def run(*arguments: str, width: int = 80) -> Result:
    """``pressgauge`` with these arguments."""
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width)})


def refused(result: Result, sentence: str) -> None:
    """Check code 2 and one line on the standard error, with nothing on the standard output."""
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert sentence in lines[0]
    assert result.stdout == ""


def content(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: the content of files, the kind of others."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else "other"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of results, not to be changed."""
    path = tmp_path_factory.mktemp("results") / "rows.json"
    assert run("measure", *SMALL, "--json", str(path)).exit_code == 0
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before


# Texts


def text(content: bytes | str, **options: str) -> Callable[[Path], Arguments]:
    """``measure`` of a file with this content."""

    def arguments(folder: Path) -> Arguments:
        path = folder / "text.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["measure", *SMALL, "--text", str(path), *(part for one in options.items() for part in one)]

    return arguments


def made(make: Callable[[Path], object], option: str = "--text", *more: str) -> Callable[[Path], Arguments]:
    """``measure`` with a path that was made in some other way."""

    def arguments(folder: Path) -> Arguments:
        make(folder / "it")
        return ["measure", *SMALL, option, str(folder / "it"), *more]

    return arguments


def loop(path: Path) -> None:
    """A symbolic link to itself."""
    path.symlink_to(path)


def other_page(path: Path) -> None:
    """A folder with a page that is not of this package."""
    path.mkdir()
    (path / "report.html").write_text("<html>my year</html>")


def unfinished(content: bytes | None) -> Callable[[Path], Arguments]:
    """``measure --resume`` next to a journal with this content, or a folder in its place."""

    def arguments(folder: Path) -> Arguments:
        path = folder / "a.json.unfinished"
        path.mkdir() if content is None else path.write_bytes(content)
        return ["measure", *SMALL, "--resume", "--json", str(folder / "a.json")]

    return arguments


def given(*arguments: str) -> Callable[[Path], Arguments]:
    """``measure`` with these arguments."""
    return lambda folder: ["measure", *SMALL, *arguments]


TEXT = "text must be reference, wikitext-2, pg-19 or the path of a file, got "
MEASURE: dict[str, Case] = {
    "text: a folder": (made(Path.mkdir), "it' (it is a folder): give another path"),
    "text: a pipe": (made(os.mkfifo), "it' (it is a pipe or a device): give another path"),
    "text: a device": (given("--text", os.devnull), f"{TEXT}'{os.devnull}' (it is a pipe or a device)"),
    "text: a link to itself": (made(loop), "(Too many levels of symbolic links)"),
    "text: a broken link": (made(lambda path: path.symlink_to("nowhere")), "(No such file or directory)"),
    "text: a name too long": (given("--text", "x" * 5000), "(File name too long)"),
    "text: a NUL in its name": (given("--text", "a\0b"), f"{TEXT}'a\\x00b' (a path has no NUL character)"),
    "text: a line break in its name": (given("--text", "a\nb"), f"{TEXT}'a\\nb' (No such file or directory)"),
    "text: below a file": (given("--text", f"{__file__}/x"), "(Not a directory)"),
    "text: empty": (text(""), "has too few tokens for 1 samples of 40: ask for fewer or shorter ones (it has 0 of 39)"),
    "text: a surrogate": (text(b"the sea \xed\xa0\x80"), "is not UTF-8: convert it first (byte 8: invalid"),
    "text: Latin-1": (text("é".encode("latin-1")), "is not UTF-8: convert it first (byte 0: unexpected end of data)"),
    "text: UTF-16": (text("the sea".encode("utf-16")), "is not UTF-8: convert it first (byte 0: invalid start byte)"),
    "text: NUL bytes": (text(b"\0" * 1000), "is not text: it has NUL characters, as binary files and UTF-16 do"),
    "text: weights": (given("--text", f"{location('reference')}/model.safetensors"), "model.safetensors' is not "),
    "text: too short": (text("the river " * 10), "(it has 20 of 39)"),
    "samples: a million millions": (
        text("the river " * 100, **{"--samples": "1000000000000"}),
        "has too few tokens for 1000000000000 samples of 40: ask for fewer or shorter ones (it has 200 of 39,000,000,",
    ),
    "samples: a million millions of the reference language": (
        given("--samples", "1000000000000"),
        "text 'reference' has 100,000 documents, got --samples 1000000000000",
    ),
    "tokens: a million millions": (given("--tokens", "1000000000000"), "--tokens must fit the model's context of 2048"),
    "prune after: larger than any integer of C": (given("--prune-after", "-" + "9" * 30), "prune_after must be at lea"),
    "text: a name that is not UTF-8": (given("--text", "a\udcff"), "--text must be a name in UTF-8, got 'a\\udcff'"),
    "json: a name that is not UTF-8": (given("--json", "a\udcff"), "a\\udcff': rename it, or link to it"),
    # Numbers
    "ratio: infinite": (given("--keep-ratios", "inf"), "keep_ratio must be in (0, 1], got inf"),
    "ratio: of a billion digits": (given("--keep-ratios", "1" * 400), "keep_ratio must be in (0, 1], got inf"),
    "ratio: minus zero": (given("--keep-ratios", "-0.0"), "keep_ratio must be in (0, 1], got -0.0"),
    "ratio: a comma too many": (given("--keep-ratios", "0.5,,0.6"), "--keep-ratios must be numbers with commas"),
    "ratio: complex": (given("--keep-ratios", "1j"), "--keep-ratios must be numbers with commas between them"),
    "bands: too small to tell apart": (given("--bands", "20,2e1"), "--bands must be percentages from 0 on in ascend"),
    "layers: too many digits": (given("--skip-layers", "9" * 7), "--skip-layers must be layers from 0 on"),
    "layers: a superscript": (given("--skip-layers", "²"), "--skip-layers must be layers from 0 on"),
    # Models
    "model: a NUL in its name": (given("--model", "a\0b"), "model 'a\\x00b' could not be loaded"),
    "model: a file": (given("--model", __file__), "there is no such folder, and no name on the hub has this form"),
    "model: an empty folder": (made(Path.mkdir, "--model"), "(it has no tokenizer files)"),
    "model: a link to itself": (made(loop, "--model"), "could not be loaded"),
    "model: an empty name": (given("--model", "reference,"), "--model must be names with commas between them"),
    # Devices
    **{
        f"device: {name}": (
            given("--device", name),
            f"device must be auto, cpu or an accelerator of this machine, got {name!r}",
        )
        for name in ("meta", "cpu:1", "cuda:99", "vulkan", "xla", "hpu", "mkldnn", "privateuseone", "lazy", "cpu\n", "")
    },
    # Presses
    "press: a module that fails": (given("--press", "broken_module:Press"), "KeyError: 'broken line'"),
    "press: a module that exits": (given("--press", "exiting_module:Press"), "importable without an exit, got SystemE"),
    "press: a module of bad syntax": (given("--press", "syntax_module:Press"), "was not found: SyntaxError: "),
    "press: an empty module": (given("--press", ":Press"), "must be package.module:name, got ':Press'"),
    "press: a module name of dots": (given("--press", "..:x"), "..:x was not found: TypeError: "),
    # Outputs
    "json: a folder": (made(Path.mkdir, "--json"), "--json must be a file, got "),
    "json: below a file": (given("--json", f"{__file__}/x"), "--json must be in a folder that exists"),
    "json: a name too long": (given("--json", "x" * 250), "(File name too long): give another one"),
    "json: a pipe": (made(os.mkfifo, "--json"), "--json must be a file, got "),
    "json: a link to itself": (made(loop, "--json"), "symbolic links"),
    "json: the text": (
        lambda folder: [*text("the river " * 100)(folder), "--json", str(folder / "text.txt")],
        "--json must not replace the text that is measured, got ",
    ),
    "json: a file of the model": (
        lambda folder: [
            *("measure", *SMALL, "--model", str(shutil.copytree(location("reference"), folder / "model"))),
            *("--json", str(folder / "model" / "config.json")),
        ],
        "--json must not replace a file of the model ",
    ),
    "report: a pipe": (made(os.mkfifo, "--report"), "--report must be a folder, got "),
    "report: a page of another origin": (
        made(other_page, "--report"),
        "report.html' of another origin: give another folder, or move it away",
    ),
    "report: a folder in place of the page": (
        made(lambda path: (path / "report.html").mkdir(parents=True), "--report"),
        "with 'report.html' and without a page: give another folder, or move it away",
    ),
    "journal: a folder": (
        unfinished(None),
        "a.json.unfinished' must be a file, where unfinished results are kept: move it away",
    ),
    **{
        f"journal: {name}": (
            unfinished(content),
            "a.json.unfinished' must be the journal of an interrupted sweep, and has nothing of one (line 1: ",
        )
        for name, content in {
            "an empty object": b"{}\n",
            "deep nesting": b"[" * 10**6 + b"\n",
            "garbage": b"\xff\xfe\x00\n\n\n",
            "notes": b"my notes",
        }.items()
    },
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that fail when they are imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "broken_module.py").write_text("raise KeyError('broken line')")
    (folder / "exiting_module.py").write_text("import sys\nsys.exit(3)")
    (folder / "syntax_module.py").write_text("def Press(:")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(("arguments", "sentence"), MEASURE.values(), ids=MEASURE)
def test_what_cannot_be_measured_is_refused_in_one_line(
    arguments: Callable[[Path], Arguments], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused before any model is loaded, and no file is changed, made or removed."""
    monkeypatch.setattr(sweep, "load", lambda *args, **options: pytest.fail("a model was loaded"))
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    line = list(arguments(folder))
    before = content(folder)
    refused(run(*line), sentence)
    assert content(folder) == before


# Limits of the machine


def failing(monkeypatch: pytest.MonkeyPatch, *errors: BaseException | None) -> None:
    """Make the passes of a sweep fail with these errors, in turn; None for a pass that does not."""
    turns = iter(errors)

    def measured(*arguments: Any, **options: Any) -> Perplexity:
        if (error := next(turns)) is not None:
            raise error
        return perplexity(*arguments, **options)

    monkeypatch.setattr(sweep, "perplexity", measured)


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (MemoryError(), ""),
        (
            MemoryError("Unable to allocate 7.28 TiB for an array with shape (10,)"),
            " (7.28 TiB were requested at once)",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 42949672960 bytes. Error code 12 (Cannot allocate memory)"
            ),
            " (40 GiB were requested at once)",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
            " (2.50 GiB were requested at once)",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    ],
    ids=["Python", "NumPy", "torch on the CPU", "torch on CUDA", "system"],
)
def test_exhausted_memory_is_one_line(error: Exception, amount: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exhausted memory has how much was requested and what to lower."""
    failing(monkeypatch, error)
    sentence = f"out of memory{amount}: lower --samples, --tokens or --prompt, give --dtype bfloat16, or take a smaller"
    refused(run("measure", *SMALL), sentence)


def test_memory_that_torch_cannot_allocate_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation that torch refuses on this machine is recognised, with its size."""
    monkeypatch.setattr(sweep, "perplexity", lambda *args, **options: torch.empty(2**50, dtype=torch.uint8))
    refused(run("measure", *SMALL), "out of memory (1.05e+06 GiB were requested at once): lower --samples")


def test_memory_exhausted_while_loading_is_not_a_defect_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the weights do not fit, the line is about memory."""
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *args, **options: torch.empty(2**60)
    )
    refused(run("measure", *SMALL), "out of memory (")


@pytest.mark.parametrize("output", ["--json", "--report"])
def test_a_full_disk_names_the_file_and_keeps_the_rows(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an output cannot be written at the end, its file is named, and resuming needs no new pass."""
    path, whole = tmp_path / "out", tmp_path / "whole.json"
    assert run("measure", *SMALL, "--json", str(whole)).exit_code == 0
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        # The first file is what is tried before the work.
        if self.parent.name.startswith(files.UNFINISHED) and self.name != "file":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    name = path if output == "--json" else path / "overview-1.svg"
    result = run("measure", *SMALL, output, str(path))
    refused(result, f"{str(name)!r}: No space left on device: free some space, or write elsewhere; finished results ")
    assert [one.name for one in tmp_path.iterdir() if one != whole] == ["out.unfinished"]
    monkeypatch.setattr(Path, "write_bytes", write)
    if output == "--json":
        failing(monkeypatch)
    assert run("measure", *SMALL, output, str(path), "--resume").exit_code == 0
    assert path.is_dir() or json.loads(path.read_text())["rows"] == json.loads(whole.read_text())["rows"]


@pytest.mark.parametrize("output", ["--json", "--report"])
@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_refused_before_any_model(
    output: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs are tried before the work: in the folder of a file, of a new report, and of an old one."""
    monkeypatch.setattr(sweep, "load_parts", lambda *arguments, **options: pytest.fail("a model was loaded"))

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(error, os.strerror(error), str(tmp_path))

    monkeypatch.setattr(files, "TemporaryDirectory", refuse)
    sentence = f"{output} must be in a folder that can be written, got {str(tmp_path / 'out')!r} ({os.strerror(error)})"
    refused(run("measure", *SMALL, output, str(tmp_path / "out")), sentence)
    assert content(tmp_path) == {}


def test_an_unreadable_text_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text without permission is refused with this reason."""
    path = tmp_path / "text.txt"
    path.write_text("the river")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ValueError, match=r"text.txt' \(Permission denied\): give another path, or mend this one"):
        check_text_name(str(path))


def test_unreadable_weights_are_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without permission are refused with this reason, which safetensors does not give."""

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*model\.safetensors'"):
        checks.shapes(Path(location("reference")))


# The process

LIBRARY = str(Path(files.__file__).parents[2])


def process(*arguments: str, program: Sequence[str] = (), **options: Any) -> "subprocess.Popen[str]":
    """``pressgauge measure`` in a process of its own, with pipes unless given; by a prepared one unless given."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*(program or python()), "-m", "pressgauge", "measure", *SMALL, *arguments],
        # A shell lets what it starts in the background ignore interrupts, and the tests with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **{**pipes, "text": True, "env": os.environ | {"PYTHONPATH": LIBRARY}, **options},
    )


def test_a_full_standard_output_is_one_line() -> None:
    """If the tables cannot be written, the line says so, and nothing follows at the end of the process."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        running = process(stdout=full)
        _, error = running.communicate(timeout=120)
    assert error == "error: 'standard output': No space left on device: free some space, or write elsewhere\n"
    assert running.returncode == 2


FIGURES = re.compile(r"\d+\.\d+|uncompressed|cannot|told|within")


def test_tables_are_whole_in_one_column() -> None:
    """A terminal that is too narrow for any table loses no figure."""
    usual, narrow = run("measure", *SMALL).stdout, run("measure", *SMALL, width=1).stdout
    assert sorted(FIGURES.findall(narrow)) == sorted(FIGURES.findall(usual))
    assert len(FIGURES.findall(narrow)) > 4


def test_tables_are_whole_in_any_surroundings() -> None:
    """Neither an encoding nor a missing home nor a missing cache loses a figure."""
    environment = {"PYTHONIOENCODING": "ascii", "HOME": "/nonexistent", "HF_HOME": "/proc/none", "TERM": ""}
    running = process(program=[sys.executable], env=os.environ | {"PYTHONPATH": LIBRARY} | environment)
    shown, error = running.communicate(timeout=120)
    assert (running.returncode, error) == (0, "")
    assert sorted(FIGURES.findall(shown)) == sorted(FIGURES.findall(run("measure", *SMALL).stdout))


def test_a_closed_pipe_is_no_error() -> None:
    """If the reader of the tables has gone, nothing is said."""
    reader, writer = os.pipe()
    os.close(reader)
    running = process(stdout=writer)
    os.close(writer)
    _, error = running.communicate(timeout=120)
    assert error == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_is_asked_to_end_keeps_its_rows(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """SIGTERM and SIGINT end a sweep with one line; nothing but its journal is left, from which it is resumed."""
    path, unfinished = tmp_path / "rows.json", tmp_path / "rows.json.unfinished"
    ratios = ",".join(f"0.{ratio}" for ratio in range(20, 90))
    running = process("--keep-ratios", ratios, "--tokens", "200", "--json", str(path))
    deadline = time.monotonic() + 120
    while not (unfinished.exists() and unfinished.stat().st_size):
        assert running.poll() is None, "the sweep ended before the signal"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.send_signal(number)
    shown, error = running.communicate(timeout=120)
    assert (running.returncode, shown) == (code, "")
    assert error == "interrupted; finished results are kept, and --resume continues from them\n"
    assert [one.name for one in tmp_path.iterdir()] == ["rows.json.unfinished"]
    assert unfinished.read_bytes().endswith(b"\n")


# Errors of the package


def test_an_internal_error_asks_for_a_report_with_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error has its traceback, then one line with the versions, and code 1."""
    failing(monkeypatch, KeyError("what\never"))
    result = run("measure", *SMALL)
    assert (result.exit_code, result.stdout) == (1, "")
    *lines, last = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert last.startswith("internal error: KeyError: 'what\\never'. Unless it is from code of your own, please report")
    assert re.search(r": python [\d.]+, pressgauge \S+, torch \S+, transformers \S+$", last)


# Journals


def test_a_damaged_line_costs_its_row_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed sweep names the damaged line, measures its row anew, and writes what an uninterrupted one does."""
    options = ("measure", *SMALL, "--keep-ratios", "0.7,0.5,0.3")
    whole, path = tmp_path / "whole.json", tmp_path / "rows.json"
    assert run(*options, "--json", str(whole)).exit_code == 0
    failing(monkeypatch, None, None, None, KeyboardInterrupt())
    stopped = run(*options, "--json", str(path))
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    unfinished = tmp_path / "rows.json.unfinished"
    lines = unfinished.read_bytes().split(b"\n")
    assert len(lines) == 5
    lines[2] = lines[2].replace(b'"ppl": ', b'"ppl": 1')
    unfinished.write_bytes(b"\n".join(lines))
    # The damaged one and the last one.
    failing(monkeypatch, None, None)
    resumed = run(*options, "--json", str(path), "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert (
        resumed.stderr
        == f"note: line 3 of {str(unfinished)!r} is left out: it was changed: its digest does not match\n"
    )
    assert json.loads(path.read_text())["rows"] == json.loads(whole.read_text())["rows"]
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--keep-ratios", "0.4"), "presses knorm 0.5: only there; presses knorm 0.4: only now"),
        (("--tokens", "41"), "tokens: 40 there and 41 now"),
        (("--press", "random"), "presses knorm: only there; presses random: only now"),
        (("--model", "reference-neox"), "models: reference there and reference-neox now"),
        (("--dtype", "float64"), "dtype: float32 there and float64 now"),
    ],
)
def test_results_of_another_sweep_are_not_resumed(
    changed: Arguments, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--resume`` with another plan names what differs, and leaves the file as it is."""
    path = tmp_path / "rows.json"
    failing(monkeypatch, None, KeyboardInterrupt())
    assert run("measure", *SMALL, "--json", str(path)).exit_code == 130
    before = content(tmp_path)
    refused(run("measure", *SMALL, *changed, "--json", str(path), "--resume"), f"another sweep ({words}): repeat its")
    assert content(tmp_path) == before


# Files of results


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], object]:
    """A copy of a file of results with a change."""

    def make(path: Path, whole: Path) -> None:
        data = json.loads(whole.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return make


def holding(content: bytes | str) -> Callable[[Path, Path], object]:
    """A file with this content."""
    return lambda path, whole: path.write_bytes(content.encode() if isinstance(content, str) else content)


def with_value(name: str, value: Any) -> Callable[[Path, Path], object]:
    """A copy of a file of results with this value in its second row."""
    return changed(lambda data: data["rows"][1].update({name: value}))


OURS = "must be a file that `pressgauge measure --json` of this version wrote, and is not one: "
FILES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda path, whole: None, "rows.json': No such file or directory"),
    "a folder": (lambda path, whole: os.mkdir(path), "rows.json': Is a directory"),
    "a link to itself": (lambda path, whole: loop(path), "Too many levels of symbolic links"),
    "a device": (lambda path, whole: path.symlink_to("/dev/zero"), "wrote, and is a device"),
    "empty": (holding(""), OURS),
    "binary": (holding(bytes(range(256))), OURS),
    "NUL bytes": (holding(b"\0" * 100), OURS),
    "a truncated file": (lambda path, whole: path.write_bytes(whole.read_bytes()[:500]), OURS),
    "a list": (holding("[]"), OURS),
    "a number": (holding("5"), OURS),
    "null": (holding("null"), OURS),
    "an empty object": (holding("{}"), f"{OURS}it has no 'rows'"),
    "deep nesting": (holding("[" * 10**5), OURS),
    "a number of many digits": (holding('{"rows": ' + "1" * 10**5 + "}"), OURS),
    "rows that are a number": (changed(lambda data: data.update(rows=5)), OURS),
    "rows that are numbers": (changed(lambda data: data.update(rows=[5])), OURS),
    "rows that are an object": (changed(lambda data: data.update(rows={"a": 1})), OURS),
    "a surrogate": (
        changed(lambda data: data["provenance"].update(date="\udcff")),
        f"{OURS}'utf-8' codec can't encode character '\\udcff'",
    ),
    "no provenance": (changed(lambda data: data.pop("provenance")), f"{OURS}it has no 'provenance'"),
    "provenance that is a list": (changed(lambda data: data.update(provenance=[])), OURS),
    "a row without a press": (changed(lambda data: data["rows"][1].pop("press")), f"{OURS}it has no 'press'"),
    "a row of another version": (changed(lambda data: data["rows"][1].pop("nll_sums")), f"{OURS}it has no 'nll_sums'"),
    **{
        f"{name} of {value!r}": (
            with_value(name, value),
            f"{OURS}{name} ",
        )
        for name, value in (
            ("keep_ratio", "half"),
            ("keep_ratio", 7),
            ("ppl", "low"),
            ("ppl", [1]),
            ("ppl_interval", 3),
            ("ppl_interval", [1, 2, 3]),
            ("held", "many"),
            ("nll_sums", 5),
            ("nll_sums", [["a"]]),
            ("token_counts", [[]]),
            ("press", 5),
            ("bands", ["low"]),
            ("bands", []),
            ("warnings", 5),
            ("vacuous", "yes"),
            ("skip_layers", "all"),
            ("not_finite", {"ppl": "huge"}),
            ("not_finite", {"nothing": "NaN"}),
            ("scored_tokens", 1.5),
        )
    },
}


@pytest.mark.parametrize("command", ["compare", "report"])
@pytest.mark.parametrize(("make", "sentence"), FILES.values(), ids=FILES)
def test_a_file_of_results_that_is_none_is_refused_in_one_line(
    make: Callable[[Path, Path], object], sentence: str, command: str, tmp_path: Path, results: Path
) -> None:
    """Files of other kinds, of other versions and damaged ones are named with what is wrong, and no page is written."""
    path = tmp_path / "rows.json"
    make(path, results)
    before = content(tmp_path)
    arguments = [str(results), str(path)] + (["--to", str(tmp_path / "page")] if command == "report" else [])
    refused(run(command, *arguments), sentence)
    assert content(tmp_path) == before
