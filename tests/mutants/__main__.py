"""``python -m mutants``: holds every mutant to every law, and writes the kill matrix into ``docs/``."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from rich.progress import track

from pressgauge.conformance import plugin

# How many examples a law draws is read when it is imported.
plugin.load_profile()

from laws import LAWS, judged_by_all, words  # noqa: E402

from mutants.catalogue import MUTANTS  # noqa: E402
from mutants.mutant import Mutant  # noqa: E402
from mutants.variants import VARIANTS  # noqa: E402

WORDS = [words(law) for law in LAWS.values()]
DOCS = Path(__file__).parents[2] / "docs"
COLORS = {"broken": "#b2182b", "crashed": "#f4a582", "held": "#f7f7f7", "not applicable": "#d9d9d9"}

Matrix = dict[str, dict[str, str]]
"""What came out, by mutant and law in words."""


SUBJECTS = [*(mutant.subject for mutant in MUTANTS), *VARIANTS]


def outcomes(number: int) -> dict[str, str]:
    """One subject against every law."""
    return {law: result for law, (result, _) in judged_by_all(SUBJECTS[number]).items()}


def measure() -> Matrix:
    """All mutants, then all that is right, against all laws, in as many processes as there are cores."""
    with ProcessPoolExecutor() as pool:
        found = list(track(pool.map(outcomes, range(len(SUBJECTS))), "killing", total=len(SUBJECTS)))
    names = [*(mutant.id for mutant in MUTANTS), *map(repr, VARIANTS)]
    return dict(zip(names, found, strict=True))


def draw(matrix: Matrix, path: Path) -> None:
    """A square for each mutant and law."""
    kinds = list(COLORS)
    fields = [[kinds.index(result) for result in row.values()] for row in matrix.values()]
    with plt.rc_context({"svg.hashsalt": "pressgauge", "font.size": 7}):
        figure, axes = plt.subplots(figsize=(11, 14), layout="constrained")
        axes.imshow(fields, cmap=ListedColormap(list(COLORS.values())), vmin=0, vmax=3)
        axes.set_xticks(range(len(LAWS)), WORDS, rotation=90)
        axes.set_yticks(range(len(matrix)), list(matrix))
        axes.xaxis.tick_top()
        columns = [WORDS.index(words(mutant.law)) for mutant in MUTANTS]
        axes.scatter(columns, range(len(MUTANTS)), s=6, color="white")
        axes.set_xticks([x - 0.5 for x in range(len(LAWS))], minor=True)
        axes.set_yticks([y - 0.5 for y in range(len(matrix))], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.5)
        axes.tick_params(which="both", length=0)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def page(matrix: Matrix) -> Iterator[str]:
    """The page in words."""
    kills = {law: [mutant for mutant, row in matrix.items() if row[law] == "broken"] for law in WORDS}
    yield "# Kill matrix"
    yield ""
    yield f"Written by `nox -s kills`. Each of {len(matrix)} mutants, compressors in which one thing is broken, is held"
    yield f"to each of the {len(LAWS)} laws of `tests/conformance/`. Red: its own assertion fails. Orange: something"
    yield "crashes, which does not count. White: the law holds. Grey: it is not applicable. A white dot marks the law"
    yield "that has to kill the mutant; every run of the tests looks at that one, and at the sound twin of the mutant."
    yield f"{len(VARIANTS)} compressors that are right, each in its own way, are held to all laws too, and none breaks."
    yield ""
    yield "![the kill matrix](kill-matrix.svg)"
    yield ""
    yield "| law | kills | of these |"
    yield "| --- | ---: | --- |"
    for law, killed in kills.items():
        yield f"| {law} | {len(killed)} | {', '.join(killed)} |"
    yield ""
    yield "| mutant | what is broken | seen in | killed by so many laws |"
    yield "| --- | --- | --- | ---: |"
    for mutant in MUTANTS:
        count = sum(result == "broken" for result in matrix[mutant.id].values())
        yield f"| {mutant.id} | {mutant.what} | {mutant.seen_in} | {count} |"


def survivors(matrix: Matrix) -> list[Mutant]:
    """Mutants that their own law lets live."""
    return [mutant for mutant in MUTANTS if matrix[mutant.id][words(mutant.law)] != "broken"]


def main() -> None:
    """Measure, write, and say what survives."""
    matrix = measure()
    right = {repr(variant): matrix.pop(repr(variant)) for variant in VARIANTS}
    if wrongly := [(law, name) for name, row in right.items() for law in row if row[law] in ("broken", "crashed")]:
        raise SystemExit(f"laws that break on what is right: {', '.join(map(' on '.join, wrongly))}")
    draw(matrix, DOCS / "kill-matrix.svg")
    lines = list(page(matrix))
    (DOCS / "kill-matrix.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    idle = [law for law in WORDS if all(row[law] != "broken" for row in matrix.values())]
    if lives := survivors(matrix):
        raise SystemExit(f"not killed by their laws: {', '.join(mutant.id for mutant in lives)}")
    if idle:
        raise SystemExit(f"laws that kill nothing: {', '.join(idle)}")


if __name__ == "__main__":
    main()
