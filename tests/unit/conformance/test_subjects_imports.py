"""Modules that fail when they are imported are the user's: one sentence, not an internal error of pytest."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pressgauge.conformance import subjects
from pressgauge.measuring import subjects as measurements
from support.processes import run_together

MODULES: dict[str, tuple[str | bytes, str]] = {
    "raises_key_error": ("raise KeyError('one\\ntwo')", r"could not be imported: KeyError: 'one\ntwo'"),
    "raises_of_many_lines": ("raise RuntimeError('one\\ntwo')", "could not be imported: RuntimeError: one two"),
    "exits": ("import sys; sys.exit(3)", "exits must be importable without an exit, got SystemExit: 3"),
    "exits_by_an_exception": (
        "class Stop(BaseException): ...\nraise Stop('now')",
        "must be importable without an exit, got Stop: now",
    ),
    "has_bad_syntax": ("def make(:", "could not be imported: SyntaxError: invalid syntax (has_bad_syntax.py, line 1)"),
    "has_nul": ("a = 1\0", "could not be imported: SyntaxError: source code string cannot contain null bytes"),
    "is_no_utf_8": (b"a = '\xff'", "could not be imported: SyntaxError: (unicode error) 'utf-8' codec"),
    "recurses": ("def f(): f()\nf()", "could not be imported: RecursionError: maximum recursion depth"),
    "asserts": ("assert False", "could not be imported: AssertionError: "),
    "imports_itself": ("from imports_itself import make", "could not be imported: ImportError: cannot import name"),
    "needs_another": ("import no_such_module", "was not found: No module named 'no_such_module'"),
    "has_no_factory": ("", "was not found: module 'has_no_factory' has no attribute 'make'"),
    "is_five": ("make = 5", "5"),
}
FINDS: dict[str, Callable[[str], Any]] = {
    "subject": subjects.find,
    **{kind: partial(measurements.find, kind) for kind in measurements.KINDS},
}


def write(folder: Path, name: str, content: str | bytes) -> None:
    """A module of this name."""
    (folder / f"{name}.py").write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("kind", FINDS)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_fails_is_a_usage_error_of_one_line(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a module raises or lacks, the error names the option, the module and the reason."""
    text, sentence = MODULES[name]
    write(tmp_path, name, text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(pytest.UsageError) as error:
        FINDS[kind](f"{name}:make")
    assert str(error.value).startswith(f"--{kind} {name}:make ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    sys.modules.pop(name, None)


def test_a_factory_that_exits_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory that exits when it is called cannot be used."""
    write(tmp_path, "exits_later", "def make(keep_ratio, **options):\n    raise SystemExit(4)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(pytest.UsageError, match="--subject exits_later:make cannot be used: it exits with code 4"):
        subjects.find("exits_later:make")


def test_an_audit_of_a_failing_module_has_code_2_and_one_line(tmp_path: Path) -> None:
    """``pressgauge audit`` prints the sentence alone, and ends with the code of wrong usage; with a worker of
    pytest-xdist, which alone loads the module, a session begins before."""
    audits = {
        "raises_key_error": ([], "KeyError: 'one\\ntwo'"),
        "exits": (["--", "-n", "1"], f"ImportError: {MODULES['exits'][1]}"),
    }
    for name in audits:
        write(tmp_path, name, MODULES[name][0])
    lines = [["pressgauge", "audit", "compressor", f"{name}:make", *options] for name, (options, _) in audits.items()]
    alone, by_worker = run_together(*((tmp_path, line) for line in lines))
    for result, (name, (_, sentence)) in zip((alone, by_worker), audits.items(), strict=True):
        assert result.returncode == 2, result.stdout + result.stderr
        assert [line for line in result.stderr.splitlines() if line] == [
            f"ERROR: --subject {name}:make could not be imported: {sentence}"
        ]
    assert alone.stdout == ""
    assert "1 worker" in by_worker.stdout
