"""What the project says of itself in several places is the same."""

import re
import tomllib
from pathlib import Path

import yaml

import pressgauge
from pressgauge import presses

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_there_is_one_version() -> None:
    """Of the package, of its citation, and at the top of the changelog."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert changelog is not None
    assert PROJECT["version"] == str(citation["version"]) == changelog[1]
    assert PROJECT["license"] == citation["license"]
    assert citation["cff-version"] == "1.2.0"


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "pressgauge" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_public_names_are_there() -> None:
    """Each can be imported, and ``dir`` lists it."""
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
    """Its classes are what the package offers, and nothing else is a press of the package."""
    assert set(presses.__all__) == {"PRESSES", *presses.PUBLIC}
    assert set(presses.PUBLIC) <= set(pressgauge.__all__)
    assert {press.__name__ for press in presses.PRESSES.values()} | {"Press"} == set(presses.PUBLIC)
    files = {path.stem for path in (ROOT / "src" / "pressgauge" / "presses").glob("*.py")}
    assert files - {"__init__", "ranking", "attention_scores"} == set(presses.PUBLIC.values())
