"""``python -m tools.kill_matrix [--own] [SUITE...]``: run the laws against everything broken; writes
``docs/kill-matrix.md``.

With names of suites, such as ``"quantised caches"``, the other sections of the page stay as they are. With ``--own``,
which takes minutes instead of an hour, a mutant meets only the law that must kill it, and what is right is not run.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from rich.progress import track

from pressgauge.conformance import plugin

# How many examples a law draws is read when it is imported.
plugin.load_profile()

from harness.mutants.mutant import Mutant  # noqa: E402
from harness.mutants.registry import MUTANTS  # noqa: E402
from harness.mutants.right import RIGHT  # noqa: E402
from harness.mutants.variants import VARIANTS  # noqa: E402
from pressgauge.conformance.smoke import concerns  # noqa: E402
from pressgauge.conformance.subjects import Subject  # noqa: E402
from support.laws import LAWS, MEASURING, Law, file_of, judged_by, words  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs"
COLORS = {
    "broken": "#b2182b",
    "crashed": "#f4a582",
    "held": "#f7f7f7",
    "not applicable": "#d9d9d9",
    "not run": "#ffffff",
}

Matrix = dict[str, dict[str, tuple[str, str]]]
"""What came out, and the finding, by mutant and law in words."""


@dataclass(frozen=True)
class Suite:
    """Laws, the mutants that they must kill, and what is right."""

    what: str
    """What is under test, in the plural."""
    folder: str
    laws: list[Law]
    right: list[Any]
    quantised: bool = False
    """Whether it is about quantised caches; other compressors are in a suite of their own."""

    @property
    def mutants(self) -> list[Mutant]:
        """Those that one of its laws must kill."""
        return [one for one in MUTANTS if one.law in self.laws and is_quantised(one.subject) == self.quantised]

    @property
    def subjects(self) -> list[Any]:
        """All mutants, then all that is right."""
        return [*(mutant.subject for mutant in self.mutants), *self.right]

    @property
    def picture(self) -> str:
        """File of its matrix as a picture."""
        return f"kill-matrix{'' if self.what == 'compressors' else '-' + self.what.replace(' ', '-')}.svg"


def is_quantised(subject: Any) -> bool:
    """Whether a subject is a compressor that declares quantised entries."""
    return isinstance(subject, Subject) and subject.declares.quantised


def _compressors(what: str, quantised: bool) -> Suite:
    right = [subject for subject in VARIANTS if is_quantised(subject) == quantised]
    laws = [law for law in LAWS.values() if any(concerns(file_of(law), subject) for subject in right)]
    return Suite(what, "conformance", laws, right, quantised)


def _measuring(what: str, kind: str) -> Suite:
    laws = [law for law in MEASURING.values() if kind in signature(law).parameters]
    return Suite(what, "measuring", laws, [one for one in RIGHT if one.kind == kind])


SUITES = [
    _compressors("compressors", quantised=False),
    _compressors("quantised caches", quantised=True),
    _measuring("evaluators", "evaluator"),
    _measuring("benchmarks", "benchmark"),
    _measuring("memory figures", "memory"),
]


def outcomes(suite: int, own: bool, number: int) -> dict[str, tuple[str, str]]:
    """One subject of a suite against every law of it that concerns such subjects.

    Args:
        suite: number of the suite.
        own: whether a mutant meets only the law that must kill it.
        number: number of the subject.
    """
    this, subject = SUITES[suite], SUITES[suite].subjects[number]
    concerned = [law for law in this.laws if concerns(file_of(law), subject)]
    found = {words(law): ("not applicable", "the law concerns others") for law in this.laws}
    if own:
        found |= {words(law): ("not run", "") for law in concerned}
        concerned = [this.mutants[number].law]
    with pytest.MonkeyPatch.context() as patch:
        if number < len(this.mutants):
            # Its own law first: what a mutant keeps from the others could hide the bug behind a crash.
            concerned.sort(key=lambda law: law != this.mutants[number].law)
            this.mutants[number].breaks(patch)
        return found | judged_by(concerned, subject)


def measure(suite: int, own: bool) -> tuple[Matrix, Matrix]:
    """All mutants, and all that is right, against the laws, in as many processes as there are cores.

    Each has a process of its own, since some mutants patch classes for good.
    """
    this = SUITES[suite]
    count = len(this.mutants if own else this.subjects)
    with get_context("fork").Pool(maxtasksperchild=1) as pool:
        found = pool.imap(partial(outcomes, suite, own), range(count))
        rows = list(track(found, f"killing {this.what}", total=count))
    mutants = {mutant.id: row for mutant, row in zip(this.mutants, rows, strict=False)}
    return mutants, dict(zip(map(repr, this.right), rows[len(mutants) :], strict=not own))


def draw(suite: Suite, matrix: Matrix, path: Path) -> None:
    """A square for each mutant and law."""
    kinds, names = list(COLORS), [words(law) for law in suite.laws]
    fields = [[kinds.index(result) for result, _ in row.values()] for row in matrix.values()]
    size = (2.5 + 0.21 * len(names), 2.5 + 0.15 * len(matrix))
    with plt.rc_context({"svg.hashsalt": "pressgauge", "font.size": 7}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.imshow(fields, cmap=ListedColormap(list(COLORS.values())), vmin=0, vmax=len(kinds) - 1)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(matrix)), list(matrix))
        axes.xaxis.tick_top()
        columns = [names.index(words(mutant.law)) for mutant in suite.mutants]
        axes.scatter(columns, range(len(matrix)), s=6, color="white")
        axes.set_xticks([x - 0.5 for x in range(len(names))], minor=True)
        axes.set_yticks([y - 0.5 for y in range(len(matrix))], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.5)
        axes.tick_params(which="both", length=0)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def page(sections: Sequence[str]) -> str:
    """The page, of a section for each suite."""
    introduction = """# Kill matrix

Generated by `nox -s kills`. Each mutant, which has one deliberate bug, is tested against each law for its
kind. Red: the assertion of the law fails. Orange: a crash, which does not count as a kill. White: the law
holds. Grey: not applicable. A white dot marks the law that must kill the mutant. Every test run checks this
law on the mutant and on its correct twin. All laws also run against compressors and measuring code that are
right, each in a different way, and none fails."""
    return "\n\n".join([introduction, *sections]) + "\n"


def sections_of(text: str) -> dict[str, str]:
    """Sections of the page, by the suite in their heading."""
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0].lower(): f"## {part}".rstrip("\n") for part in parts}


def section(suite: Suite, matrix: Matrix) -> Iterator[str]:
    """The part of the page about a suite."""
    yield f"## {suite.what.capitalize()}"
    yield ""
    yield f"{len(matrix)} mutants, {len(suite.laws)} laws in `tests/{suite.folder}/`, and {len(suite.right)}"
    yield f"{suite.what} that are right."
    if any(result == "not run" for row in matrix.values() for result, _ in row.values()):
        yield "Written with `--own`: a mutant met only the law that must kill it, and what is right was not run."
    yield ""
    yield f"![kill matrix of {suite.what}]({suite.picture})"
    yield ""
    yield "| law | kills | killed mutants |"
    yield "| --- | ---: | --- |"
    for law in map(words, suite.laws):
        killed = [mutant for mutant, row in matrix.items() if row[law][0] == "broken"]
        yield f"| {law} | {len(killed)} | {', '.join(killed)} |"
    yield ""
    findings = suite.folder == "measuring"
    yield f"| mutant | bug | seen in | laws that kill it |{' finding |' if findings else ''}"
    yield f"| --- | --- | --- | ---: |{' --- |' if findings else ''}"
    for mutant in suite.mutants:
        row = matrix[mutant.id]
        count = sum(result == "broken" for result, _ in row.values())
        finding = f" {row[words(mutant.law)][1].replace('|', '/')} |" if findings else ""
        yield f"| {mutant.id} | {mutant.what} | {mutant.seen_in} | {count} |{finding}"


def faults(suite: Suite, matrix: Matrix, right: Matrix) -> Iterator[str]:
    """What must not be: laws that fail for what is right, mutants that live, laws that kill nothing."""
    for name, row in right.items():
        yield from (f"{law} fails for {name}" for law, (result, _) in row.items() if result in ("broken", "crashed"))
    for mutant in suite.mutants:
        if matrix[mutant.id][words(mutant.law)][0] != "broken":
            yield f"{mutant.id} is not killed by its law"


def main(names: Sequence[str] = ()) -> None:
    """Measure, write, and say what survives.

    Raises:
        SystemExit: for the name of an unknown suite, and with what is wrong.
    """
    own, names = "--own" in names, [name for name in names if name != "--own"]
    if unknown := set(names) - {suite.what for suite in SUITES}:
        raise SystemExit(f"suites are {', '.join(suite.what for suite in SUITES)}, got {min(unknown)!r}")
    path = DOCS / "kill-matrix.md"
    sections, wrong = sections_of(path.read_text(encoding="utf-8")), []
    for number, suite in enumerate(SUITES):
        if names and suite.what not in names:
            continue
        matrix, right = measure(number, own)
        draw(suite, matrix, DOCS / suite.picture)
        sections[suite.what] = "\n".join(section(suite, matrix))
        wrong += list(faults(suite, matrix, right))
    path.write_text(page([sections[suite.what] for suite in SUITES if suite.what in sections]), encoding="utf-8")
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
