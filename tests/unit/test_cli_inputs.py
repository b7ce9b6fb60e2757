"""Bad input of any kind: one line with the value, the rule and the way out, code 2, and nothing changed."""

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pressgauge.bench import sweep
from pressgauge.cli import app
from pressgauge.models import location

SMALL = ("--tokens", "40", "--samples", "1", "--prune-after", "16", "--device", "cpu", "--keep-ratios", "0.5")
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
    "report: a pipe": (made(os.mkfifo, "--report"), "--report must be a folder, got "),
    "report: a page of another origin": (
        made(lambda path: (path.mkdir(), (path / "report.html").write_text("<html>my year</html>")), "--report"),
        "report.html' of another origin: give another folder, or move it away",
    ),
    "report: a folder in place of the page": (
        made(lambda path: (path / "report.html").mkdir(parents=True), "--report"),
        "with 'report.html' and without a page: give another folder, or move it away",
    ),
    "journal: a folder": (
        lambda folder: ((folder / "a.json.unfinished").mkdir(), ["measure", *SMALL, "--json", str(folder / "a.json")])[
            1
        ],
        "a.json.unfinished' must be a file, where unfinished results are kept: move it away",
    ),
    **{
        f"journal: {name}": (
            lambda folder, content=content: (
                (folder / "a.json.unfinished").write_bytes(content),
                ["measure", *SMALL, "--resume", "--json", str(folder / "a.json")],
            )[1],
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


# Files of results


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    """A copy of a file of results with a change."""

    def make(path: Path, whole: Path) -> None:
        data = json.loads(whole.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return make


def holding(content: bytes | str) -> Callable[[Path, Path], None]:
    """A file with this content."""
    return lambda path, whole: path.write_bytes(content.encode() if isinstance(content, str) else content) and None


OURS = "must be a file that `pressgauge measure --json` of this version wrote, and is not one: "
FILES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda path, whole: None, "rows.json': No such file or directory"),
    "a folder": (lambda path, whole: path.mkdir(), "rows.json': Is a directory"),
    "a link to itself": (lambda path, whole: loop(path), "Too many levels of symbolic links"),
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
    "no provenance": (changed(lambda data: data.pop("provenance")), f"{OURS}it has no 'provenance'"),
    "provenance that is a list": (changed(lambda data: data.update(provenance=[])), OURS),
    "a row without a press": (changed(lambda data: data["rows"][1].pop("press")), f"{OURS}it has no 'press'"),
    "a row of another version": (changed(lambda data: data["rows"][1].pop("nll_sums")), f"{OURS}it has no 'nll_sums'"),
    **{
        f"{name} of {value!r}": (
            changed(lambda data, name=name, value=value: data["rows"][1].update({name: value})),
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
            ("skip_layers", None),
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
