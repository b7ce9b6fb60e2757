"""The registry of tasks, and the parts that they share."""

import subprocess
import sys

import pytest

from pressgauge.tasks import TASKS, check_task_name
from pressgauge.tasks.counting import counts
from pressgauge.tasks.needles import hide
from pressgauge.tasks.sample import depth, spelled
from pressgauge.tasks.words import WORDS


def test_the_tasks_are_those_of_ruler_the_pass_key_and_that_of_the_reference_language() -> None:
    assert list(TASKS) == ["niah", "niah-multikey", "vt", "cwe", "fwe", "passkey", "recall"]
    with pytest.raises(ValueError, match=r"--task must be one of niah, .*, recall, got 'needle'"):
        check_task_name("needle")


def test_names_of_tasks_are_known_without_torch() -> None:
    code = "import sys, pressgauge.tasks; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_are_different_and_plain() -> None:
    assert len(set(WORDS)) == len(WORDS) > 700
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


@pytest.mark.parametrize(("at", "text"), [(0, "N a b c d"), (0.5, "a b N c d"), (1, "a b c d N"), (0.3, "a N b c d")])
def test_a_needle_is_hidden_at_its_depth(at: float, text: str) -> None:
    assert hide(["a", "b", "c", "d"], ["N"], [at]) == text


def test_needles_at_one_place_keep_their_order() -> None:
    assert hide(["a", "b"], ["M", "N", "O"], [0.5, 0.5, 0.4]) == "a O M N b"


@pytest.mark.parametrize("samples", [4, 10, 50])
def test_depths_are_spread_over_the_haystack(samples: int) -> None:
    """Each half of the haystack has about half of the needles, each quarter about a quarter."""
    found = sorted(depth(seed) for seed in range(samples))
    assert all(abs(at - (place + 0.5) / samples) < 1 / samples for place, at in enumerate(found))
    assert 0 <= found[0] < found[-1] < 1


def test_numbers_have_two_spellings() -> None:
    assert spelled(1234567) == ("1234567", "1,234,567")
    assert spelled(123) == ("123",)


def test_the_three_most_frequent_coded_words_are_unique() -> None:
    """The dots come first; then three words, each more frequent than all that follow."""
    for size in range(TASKS["fwe"].least, 5000):
        own, *words = counts(size)
        assert own > words[0] > words[1] > words[2] > words[3] > 0


@pytest.mark.parametrize("size", [20, 200, 720, 800, 2000, 5000])
def test_common_words_occur_six_times_as_often(size: int) -> None:
    """At any length, also where the list is longer than all words."""
    sample = TASKS["cwe"].draw(0, size, 0)
    listed = sample.context.splitlines()[1].split()[1::2]
    common = {spellings[0] for spellings in sample.hidden}
    times = {word: listed.count(word) for word in set(listed)}
    (most,) = {times[word] for word in common}
    assert {number for word, number in times.items() if word not in common} == {most // 6}
