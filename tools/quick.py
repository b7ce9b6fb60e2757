"""``python -m tools.quick``: choose the tests of ``nox -s quick``; writes ``tests/quick.txt``.

The kills are those of the kill matrix, the times are taken here. A greedy set cover takes the test that kills most
remaining mutants per second, until all are killed.
"""

import inspect
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from pressgauge.conformance import plugin

# Which of our subjects a law meets is decided when they are imported.
plugin.load_profile()

from harness.mutants.registry import MUTANTS  # noqa: E402
from pressgauge.conformance.subjects import Subject  # noqa: E402
from pressgauge.presses import PRESSES  # noqa: E402
from support.laws import words  # noqa: E402
from tools.kill_matrix import sections_of  # noqa: E402

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "quick.txt"
MATRIX = ROOT / "docs" / "kill-matrix.md"
FOLDERS = ("conformance", "measuring", "properties", "harness/mutants/test_mutants.py")
KILLING = "test_the_law_kills_the_mutant_and_spares_its_twin"
SUBJECTS = ("knorm-budget", "tova-budget", "plain-KnormPress-budget", "compress-function")
"""Compressors on which a law may run."""
FOR_EACH = "the best entries of a long text are retained"
"""The law that every other press meets, the one for presses that kills most."""
SECONDS = 45.0
"""Limit of the sum of the times of all tests."""
SHARE = 0.9
"""Share of the mutants that must be killed."""

IDS = {mutant.id: words(mutant.law) for mutant in MUTANTS}
"""The law, in words, that must kill a mutant, by the mutant's id."""

PLACES = {(Path(inspect.getfile(mutant.law)), mutant.law.__name__) for mutant in MUTANTS}
"""File and name of each law: other tests have the same names."""

Kills = Mapping[str, set[str]]
"""Ids of mutants by the law, in words, that kills them."""


def kills() -> dict[str, set[str]]:
    """What the kill matrix found, and the own law of each mutant that is in none of its suites."""
    found: dict[str, set[str]] = {}
    for section in sections_of(MATRIX.read_text(encoding="utf-8")).values():
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 3 and cells[1].isdigit():
                found.setdefault(cells[0], set()).update(name for name in cells[2].split(", ") if name)
    for mutant in MUTANTS:
        found.setdefault(words(mutant.law), set()).add(mutant.id)
    return found


@dataclass
class Candidate:
    """A test that may be chosen."""

    law: str
    """The law that it runs, in words."""
    subject: str
    """Name of the compressor, of the measuring function, or of the mutant whose twin the law runs on; else empty."""
    seconds: float = 0.0
    passed: bool = True


@dataclass(eq=False)
class Stopwatch:
    """Plugin of pytest that runs the candidates only, and takes their times on the CPU."""

    found: dict[str, Candidate] = field(default_factory=dict)
    """By the test's id."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = [(item, candidate) for item in items if (candidate := candidate_of(item))]
        own = {candidate.law for _, candidate in known if candidate.subject not in IDS}
        # A law that concerns none of our subjects runs on what a mutant has in its place when it is right.
        kept = [(item, one) for item, one in known if one.subject not in IDS or one.law not in own]
        self.found = {item.nodeid: candidate for item, candidate in kept}
        items[:] = [item for item, _ in kept]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        start = process_time()
        result = yield
        self.found[item.nodeid].seconds = process_time() - start
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.found[report.nodeid].passed &= report.passed


def candidate_of(item: pytest.Item) -> Candidate | None:
    """The law and the subject of a test; None for one that may not be chosen."""
    if not isinstance(item, pytest.Function):
        return None
    given: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    if item.originalname == KILLING:
        return Candidate(words(given["mutant"].law), given["mutant"].id)
    if given.get("model", "llama") != "llama" or (item.path, item.originalname) not in PLACES:
        return None
    law = item.originalname.removeprefix("test_").replace("_", " ")
    for one in given.values():
        if isinstance(one, Subject):
            wanted = one.name in SUBJECTS or (law == FOR_EACH and one.name.rpartition("-")[0] in PRESSES)
            return Candidate(law, one.name) if wanted else None
    return Candidate(law, next((str(getattr(one, "name", "")) for one in given.values()), ""))


def cover(candidates: Mapping[str, Candidate], killing: Kills, seconds: float) -> list[str]:
    """Tests that kill all that the candidates can kill, by greedy set cover, as far as the time suffices."""
    chosen: list[str] = []
    alive = {mutant for one in candidates.values() for mutant in killing.get(one.law, ())}

    def gain(test: str) -> float:
        one = candidates[test]
        return len(killing.get(one.law, set()) & alive) / (one.seconds + 0.01)

    while alive and (left := [test for test, one in candidates.items() if one.seconds <= seconds]):
        best = max(left, key=gain)
        if not gain(best):
            break
        chosen.append(best)
        seconds -= candidates[best].seconds
        alive -= killing[candidates[best].law]
    return chosen


def law_of(test: str) -> str:
    """The law, in words, that a test of the list runs."""
    name, _, parameters = test.rpartition("::")[2].partition("[")
    return IDS[parameters.removesuffix("]")] if name == KILLING else name.removeprefix("test_").replace("_", " ")


def killed(laws: Iterable[str], killing: Kills) -> set[str]:
    """Mutants that are killed by one of these laws."""
    return {mutant for law in laws for mutant in killing.get(law, ())}


def each_press(candidates: Mapping[str, Candidate]) -> Iterator[str]:
    """For each press, its fastest test of ``FOR_EACH``."""
    for press in PRESSES:
        own = [test for test, one in candidates.items() if one.law == FOR_EACH and one.subject.startswith(f"{press}-")]
        yield min(own, key=lambda test: candidates[test].seconds)


def main() -> None:
    """Measure, choose and write.

    Raises:
        SystemExit: if too few mutants are killed in the time.
    """
    stopwatch = Stopwatch()
    pytest.main(["-p", "no:randomly", "-q", *(str(ROOT / "tests" / name) for name in FOLDERS)], plugins=[stopwatch])
    candidates = {test: one for test, one in stopwatch.found.items() if one.passed}
    killing = kills()
    chosen = {*cover(candidates, killing, SECONDS), *each_press(candidates)}
    LIST.write_text("".join(f"{test}\n" for test in sorted(chosen)), encoding="utf-8")
    dead, seconds = (
        killed((candidates[test].law for test in chosen), killing),
        sum(candidates[t].seconds for t in chosen),
    )
    print(f"{len(chosen)} tests of {seconds:.0f} s kill {len(dead)} of {len(MUTANTS)} mutants")
    if len(dead) < SHARE * len(MUTANTS):
        raise SystemExit(f"at least {SHARE:.0%} of the mutants must be killed in {SECONDS:g} s")


if __name__ == "__main__":
    main()
