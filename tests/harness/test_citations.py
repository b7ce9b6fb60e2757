"""Citations resolve within the project: rules by number, bugs by id, pages by name."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(path for folder in ("src", "tests", "tools") for path in (ROOT / folder).rglob("*.py")),
    *(path for folder in ("docs", "baselines") for path in (ROOT / folder).rglob("*.md")),
    *(path for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.txt")),
    *ROOT.glob("*.md"),
    *(ROOT / name for name in ("noxfile.py", "mkdocs.yml", "pyproject.toml")),
]
RULES = re.findall(r"^## Rule (\d+):", (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
BUGS = re.findall(r"^\| ([SCM]\d+) \|", (ROOT / "docs" / "bug-catalogue.md").read_text(encoding="utf-8"), flags=re.M)

_NUMBERS = r"\d+(?:(?:, | and |, and )\d+)*"
_ABSENT = re.compile(r"\bdesign(?:\.md|,? section)|[Ss]ection \d+ of the design|catalogue of bugs")


def unresolved(text: str) -> Iterator[str]:
    """Unresolved citations in a text."""
    text = re.sub(r"\s+#? *", " ", text)
    for numbers in re.findall(rf"\b[Rr]ules? ({_NUMBERS})\b", text):
        yield from (f"rule {number}" for number in re.findall(r"\d+", numbers) if number not in RULES)
    # Excluding ids of mutants, such as M2-cache, and parts of plots.
    yield from (bug for bug in re.findall(r"(?<![\w./#-])([SCM]\d{1,2})(?![\w.-])", text) if bug not in BUGS)
    for page, anchor in re.findall(r"\bdocs/([\w/-]+\.md)(?:#([\w-]+))?", text):
        path = ROOT / "docs" / page
        if not path.is_file():
            yield f"docs/{page}"
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            yield f"docs/{page}#{anchor}"
    yield from (found.group() for found in _ABSENT.finditer(text))


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings, as the site generates them."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


def test_every_citation_resolves() -> None:
    # The examples below are unresolved citations.
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES if path != Path(__file__)}
    assert {str(path): found for path, text in texts.items() if (found := list(unresolved(text)))} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Rule 4: of equal scores the earlier", []),
        ("Rules 4, 5 and 11: per row", []),
        ("rule 99", ["rule 99"]),
        ("Rules 1, 6 and 77: each pass", ["rule 77"]),
        ("(C3 and C8 of the bug catalogue)", []),
        ("C3 and C88 of the bug\n    catalogue", ["C88"]),
        ("at most 2 % more (C44).", ["C44"]),
        ("Rule\n    99: nothing", ["rule 99"]),
        ("the mutant M77-cache", []),
        ("docs/rules.md#rule-99-nothing", ["docs/rules.md#rule-99-nothing"]),
        ("docs/rules.md has the figures", []),
        ("see docs/nothing.md", ["docs/nothing.md"]),
        ("Section 3 of the design: query t", ["Section 3 of the design"]),
        ("(design, section 4)", ["design, section"]),
    ],
)
def test_a_citation_of_what_is_not_there_is_found(text: str, found: list[str]) -> None:
    assert list(unresolved(text)) == found


def test_ids_of_mutants_begin_with_ids_of_the_catalogue() -> None:
    """Ids of mutants begin with an id of the bug catalogue, or with a prefix for bugs not listed in it."""
    from harness.mutants.registry import MUTANTS

    names = [mutant.id for mutant in MUTANTS]
    ids = {match[0] for name in names if (match := re.match(r"[SCM]\d+", name))}
    assert ids
    assert ids <= set(BUGS)


def test_the_catalogue_lists_the_mutants_of_each_bug() -> None:
    """Each bug of the catalogue is listed with exactly the mutants whose ids begin with its id."""
    from harness.mutants.registry import MUTANTS

    page = (ROOT / "docs" / "bug-catalogue.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([SCM]\d+) \|.*\| ([^|]*) \|$", page, flags=re.MULTILINE)
    found = {bug: [mutant.id for mutant in MUTANTS if mutant.id.partition("-")[0] == bug] for bug in BUGS}
    assert {bug: names.split(", ") if names else [] for bug, names in rows} == found


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_to_headings_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for page, anchor in re.findall(r"\]\(([\w-]*\.?m?d?)#([\w-]+)\)", text):
        target = path if not page else path.parent / page
        assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}#{anchor}"
