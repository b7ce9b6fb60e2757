"""Needles in a haystack, and the pass key.

The tasks are those of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3) and of Landmark Attention (Mohtashami and
Jaggi 2023, arXiv 2305.16300, section 4.2). All wording is our own.
"""

from collections.abc import Sequence
from itertools import cycle, islice

from pressgauge.tasks.draw import Draw
from pressgauge.tasks.sample import Sample, Task, depth, spelled
from pressgauge.tasks.words import ADJECTIVES, NOISE, NOUNS, sentences

KEYS = 4
"""Needles of ``niah-multikey``, of which one is asked for."""


def hide(haystack: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> str:
    """Put each needle between two sentences of a haystack, at its depth from 0 to 1."""
    parts = list(haystack)
    # From the end, so that places stay valid.
    for at, index in sorted(zip(depths, range(len(needles)), strict=True), reverse=True):
        parts.insert(round(at * len(haystack)), needles[index])
    return " ".join(parts)


def _needles(seed: int, size: int, hiding: int, number: int) -> Sample:
    draw = Draw(seed, 0)
    pairs = zip(draw.sample(ADJECTIVES, number), draw.sample(NOUNS, number), strict=True)
    keys = [f"{adjective}-{noun}" for adjective, noun in pairs]
    depths = [depth(seed), *(draw.below(1000) / 1000 for _ in keys[1:])]
    # One in each tenth of the range, so that they differ.
    tenths = Draw(hiding, 1).sample(range(9), number)
    below = Draw(hiding, 2).below
    values = [(1 + tenth) * 10**6 + below(10**6) for tenth in tenths]
    needles = [f"The secret number of {key} is {value}." for key, value in zip(keys, values, strict=True)]
    text = hide(list(islice(sentences(Draw(seed, 3)), size)), needles, depths)
    return Sample(
        f"Remember the secret numbers in this text.\n{text}\n",
        f"Question: What is the secret number of {keys[0]}?\nAnswer: The secret number of {keys[0]} is",
        (spelled(values[0]),),
    )


def _passkey(seed: int, size: int, hiding: int) -> Sample:
    key = 10**4 + Draw(hiding, 1).below(9 * 10**4)
    needle = f"The pass key is {key}. Remember that {key} is the pass key."
    text = hide(list(islice(cycle(NOISE), size)), [needle], [depth(seed)])
    return Sample(
        f"Somewhere in this text is a pass key. Remember it.\n{text}\n",
        "Question: What is the pass key?\nAnswer: The pass key is",
        (spelled(key),),
    )


NIAH = Task(
    "niah",
    "the number of 7 digits that one sentence gives to a key, in a text of generated sentences",
    lambda seed, size, hiding: _needles(seed, size, hiding, 1),
)
MULTIKEY = Task(
    "niah-multikey",
    f"the number of one of {KEYS} keys, each with a number of its own",
    lambda seed, size, hiding: _needles(seed, size, hiding, KEYS),
)
PASSKEY = Task("passkey", "the number of 5 digits in a text of four sentences that are repeated", _passkey)
