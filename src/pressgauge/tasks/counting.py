"""Aggregation: the common words of a list, and the most frequent coded words of a text.

The tasks are those of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3.3), in wording of our own and without its
worked example, which would need a thousand tokens.
"""

from string import ascii_lowercase

from pressgauge.tasks.draw import Draw
from pressgauge.tasks.sample import Sample, Task
from pressgauge.tasks.words import WORDS

COMMON = 10
"""Words to be found in the list."""
TIMES = 6
"""How many times as often as the others they occur."""
FREQUENT = 3
"""Coded words to be found in the text."""
_LETTERS = 6
_DOTS = "...."


def _common(seed: int, size: int, hiding: int) -> Sample:
    common = Draw(hiding, 1).sample(WORDS, COMMON)
    others = [word for word in Draw(seed, 0).shuffled(WORDS) if word not in common]
    # A list that is longer than all words has each of them more often.
    rounds = 1 + size // len(others)
    others = others[: size // rounds]
    listed = Draw(seed, 2).shuffled((common * TIMES + others) * rounds)
    text = " ".join(f"{place}. {word}" for place, word in enumerate(listed, 1))
    return Sample(
        f"In this list, some words occur more often than others. Remember them.\n{text}\n",
        f"Question: Which {COMMON} words occur most often in the list?\n"
        f"Answer: The {COMMON} words that occur most often are",
        tuple((word,) for word in common),
    )


def counts(size: int) -> list[int]:
    """Occurrences of each coded word, by rank from 1: a share of 1 / rank², as in a zeta distribution of 2."""
    found: list[int] = []
    while number := size // (len(found) + 1) ** 2:
        found.append(number)
    return found


def _frequent(seed: int, size: int, hiding: int) -> Sample:
    own, *numbers = counts(size)
    draws = Draw(hiding, 1)
    words: dict[str, None] = {}
    while len(words) < len(numbers):
        words["".join(draws.choose(ascii_lowercase) for _ in range(_LETTERS))] = None
    listed = [_DOTS] * own + [word for word, number in zip(words, numbers, strict=True) for _ in range(number)]
    text = " ".join(Draw(seed, 2).shuffled(listed))
    return Sample(
        f"This text is in code. Count how often each coded word occurs.\n{text}\n",
        f"Question: Which {FREQUENT} coded words occur most often? Ignore the dots.\n"
        f"Answer: The {FREQUENT} coded words that occur most often are",
        tuple((word,) for word in list(words)[:FREQUENT]),
    )


CWE = Task("cwe", f"the {COMMON} words of a numbered list that occur {TIMES} times as often as the others", _common, 20)
# From 32 on, the third coded word occurs more often than the fourth.
FWE = Task("fwe", f"the {FREQUENT} most frequent coded words of a text", _frequent, 32)
