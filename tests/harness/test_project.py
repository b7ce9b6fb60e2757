"""Metadata of the project agree with each other."""

import datetime
import re
import tomllib
from pathlib import Path

import yaml

import pressgauge
from pressgauge import presses

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_there_is_one_version() -> None:
    """The package, its citation and the top of the changelog have the same version."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert changelog is not None
    assert PROJECT["version"] == str(citation["version"]) == changelog[1]
    assert PROJECT["license"] == citation["license"]


def test_the_citation_follows_its_format() -> None:
    """CITATION.cff has the keys that version 1.2.0 of the format requires, and values of its types."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert all(isinstance(citation[key], str) and citation[key] for key in ("message", "title"))
    assert citation["authors"]
    for author in citation["authors"]:
        assert {"name"} & set(author) or {"family-names", "given-names"} <= set(author)
        assert all(isinstance(value, str) and value for value in author.values())
    assert citation.get("type", "software") in ("software", "dataset")
    assert isinstance(citation.get("date-released", datetime.date.min), datetime.date)
    assert all(isinstance(word, str) for word in citation.get("keywords", []))
    assert re.fullmatch(r"https?://\S+", citation.get("repository-code", "https://localhost"))


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "pressgauge" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_public_names_exist() -> None:
    """Public names can be imported, and ``dir`` lists them."""
    for name in pressgauge.__all__:
        assert getattr(pressgauge, name) is not None
    assert set(pressgauge.__all__) <= set(dir(pressgauge))


def test_hooks_run_what_the_session_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        assert f'"{program}"' in noxfile
        assert not arguments or f'"{arguments[0]}"' in noxfile


def test_the_registry_is_the_list_of_presses() -> None:
    """The registry contains exactly the public presses."""
    assert set(presses.__all__) == {"PRESSES", *presses.PUBLIC}
    assert set(presses.PUBLIC) <= set(pressgauge.__all__)
    assert {press.__name__ for press in presses.PRESSES.values()} | {"Press"} == set(presses.PUBLIC)
    files = {path.stem for path in (ROOT / "src" / "pressgauge" / "presses").glob("*.py")}
    assert files - {"__init__", "ranking", "attention_scores"} == set(presses.PUBLIC.values())
