"""Recall of what was hidden, not of wording."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressgauge.tasks.sample import Hidden
from pressgauge.tasks.scoring import contains, recall

Score = Callable[[str, Hidden], float]

KNOWN: list[tuple[str, Hidden, float]] = [
    # answer, hidden, recall
    ("1234567", (("1234567",),), 1),
    (" 1234567.", (("1234567",),), 1),
    ("The number is **1234567**!", (("1234567",),), 1),
    ("It's 1,234,567, I think", (("1234567", "1,234,567"),), 1),
    ("(1234567)", (("1234567",),), 1),
    ("\uff11\uff12\uff13\uff14\uff15", (("12345",),), 1),
    ("", (("1234567",),), 0),
    ("7654321", (("1234567",),), 0),
    ("12345678", (("1234567",),), 0),
    ("01234567", (("1234567",),), 0),
    ("123", (("12",),), 0),
    ("12.5", (("12",),), 0),
    ("0.12", (("12",),), 0),
    ("12,000", (("12",),), 0),
    ("1,123", (("123",),), 0),
    ("12, 13", (("12",),), 1),
    ("12,13", (("13",), ("12",)), 1),
    ("12,13,14", (("13",),), 1),
    ("the 12th", (("12",),), 0),
    ("River", (("river",),), 1),
    ("RIVER.", (("river",),), 1),
    ("rivers", (("river",),), 0),
    ("driver", (("river",),), 0),
    ("river-bank", (("river",),), 0),
    ("- river\n- lake", (("river",), ("lake",), ("hill",), ("rain",)), 0.5),
    ("1. river 2. lake", (("river",), ("lake",)), 1),
    ("_river_", (("river",),), 1),
    ("river_2", (("river",),), 0),
    ("var abcde", (("ABCDE",), ("FGHIJ",)), 0.5),
    ("colour", (("color", "colour"),), 1),
    ("neither", (("color", "colour"),), 0),
    ("color colour", (("color", "colour"), ("blue",)), 0.5),
    ("a.b", (("a.b",),), 1),
    ("axb", (("a.b",),), 0),
]


def check(score: Score) -> None:
    """A score is the share of hidden strings in an answer, as whole words or numbers and in one of their spellings."""
    for answer, hidden, expected in KNOWN:
        assert score(answer, hidden) == expected, (answer, hidden)


def test_known_answers_have_known_recalls() -> None:
    check(recall)


def _substring(answer: str, hidden: Hidden) -> float:
    return sum(any(one in answer for one in spellings) for spellings in hidden) / len(hidden)


def _wording(answer: str, hidden: Hidden) -> float:
    return float(answer.strip() == ", ".join(spellings[0] for spellings in hidden))


def _first_spelling(answer: str, hidden: Hidden) -> float:
    return recall(answer, tuple(spellings[:1] for spellings in hidden))


def _any(answer: str, hidden: Hidden) -> float:
    return float(recall(answer, hidden) > 0)


def _all(answer: str, hidden: Hidden) -> float:
    return float(recall(answer, hidden) == 1)


def _per_spelling(answer: str, hidden: Hidden) -> float:
    return recall(answer, tuple((one,) for spellings in hidden for one in spellings))


def _cased(answer: str, hidden: Hidden) -> float:
    return sum(any(one in re.findall(r"\w+", answer) for one in spellings) for spellings in hidden) / len(hidden)


def _empty_is_right(answer: str, hidden: Hidden) -> float:
    return recall(answer, hidden) if answer else 1.0


@pytest.mark.parametrize(
    "score", [_substring, _wording, _first_spelling, _any, _all, _per_spelling, _cased, _empty_is_right]
)
def test_a_wrong_score_is_found(score: Score) -> None:
    """Scores of substrings, of wording, of one spelling, of any or all of the strings, or by case are found out."""
    with pytest.raises(AssertionError):
        check(score)


WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)


@given(st.lists(WORD, min_size=1, unique=True), st.lists(WORD))
def test_recall_is_that_of_a_set_of_words(hidden: list[str], answer: list[str]) -> None:
    """For plain words it is the share of hidden words in the set of the answer's words."""
    expected = len(set(hidden) & set(answer)) / len(hidden)
    assert recall(" ".join(answer), tuple((word,) for word in hidden)) == expected


@given(st.integers(0, 10**8), st.integers(0, 10**8))
def test_a_number_is_found_only_whole(number: int, other: int) -> None:
    """A number is found in a sentence with itself, and in none with another one."""
    assert contains(f"It is {number}, or so.", str(number))
    assert contains(f"It is {other}, or so.", str(number)) == (number == other)
