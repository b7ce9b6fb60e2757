"""Every broken memory function is found by its law, which names the mistake, and no right one is."""

import contextlib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measuring import test_memory

from harness.mutants.memory import MUTANTS, RIGHT, MemoryMutant
from pressgauge.conformance.session import Departure
from pressgauge.measuring.footprints import Footprint

LAWS = {name: law for name, law in vars(test_memory).items() if name.startswith("test_")}


@functools.cache
def page() -> str:
    """The pages that show what the audit says."""
    folder = Path(__file__).parents[3] / "docs"
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("measuring-audit*.md")))


def found(law: Callable[[Footprint], None], function: Footprint) -> str:
    """The finding; empty if the law holds. Fails if it does not apply."""
    try:
        law(function)
    except Departure as finding:
        return str(finding)
    except pytest.skip.Exception as reason:
        pytest.fail(f"the law is {reason}")
    return ""


held = functools.cache(found)
"""The finding of a sound twin, which several mutants share."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_law_names_the_mistake_and_spares_the_twin(mutant: MemoryMutant) -> None:
    """A mutant is killed by a finding that says what its figure is; the law applies to its twin, and holds."""
    finding = found(mutant.law, mutant.function)
    assert mutant.says in finding
    assert f"| {mutant.id} | {mutant.what} | {finding} |" in page(), f"the page lacks {finding}"
    assert held(mutant.law, mutant.twin) == ""


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("function", RIGHT, ids=str)
def test_no_law_is_broken_by_a_right_function(function: Footprint, law: str) -> None:
    """Whatever its style, a right function holds every law that applies."""
    LAWS[law](function)


def test_every_law_of_memory_kills_a_mutant() -> None:
    """A law that no mutant breaks has not shown that it can fail."""
    assert {mutant.law.__name__ for mutant in MUTANTS} == set(LAWS)
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)


def test_the_example_of_the_page_is_broken_as_it_says_and_mended_as_it_says() -> None:
    """The first finding is the one that is shown, and with a second reset every law holds or does not apply."""
    text = page().partition("<!-- example: not-reset -->")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    shown = re.search(r"<!-- finding: not-reset -->\n`(.*)`\n", text)
    reset = "    torch.cuda.reset_peak_memory_stats()\n"
    assert shown is not None
    broken, mended = (
        Footprint.of(name, example(source))
        for name, source in (("broken", code), ("mended", code.replace("    with Knorm", f"{reset}    with Knorm")))
    )
    assert found(test_memory.test_the_peak_is_the_most_that_was_allocated, broken) == shown[1]
    for law in LAWS.values():
        with contextlib.suppress(pytest.skip.Exception):
            law(mended)


def example(source: str) -> Callable[..., float]:
    """The function that an example defines."""
    names: dict[str, Any] = {}
    exec(source, names)
    function: Callable[..., float] = names["peak"]
    return function
