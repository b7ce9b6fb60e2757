"""What a task consists of, and a sample of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Hidden = tuple[tuple[str, ...], ...]
"""What a prompt hides: for each string its spellings, of which one is enough."""


@dataclass(frozen=True)
class Sample:
    """A prompt and what it hides.

    Attributes:
        context: the haystack with what is hidden in it.
        question: what is asked about it, with the beginning of the answer. It ends the prompt.
        hidden: the strings that the answer has to contain, each with its spellings.
    """

    context: str
    question: str
    hidden: Hidden

    @property
    def prompt(self) -> str:
        """The text that a model continues with its answer."""
        return self.context + self.question

    @property
    def answer(self) -> str:
        """A correct answer, as the continuation of the prompt."""
        return " " + ", ".join(spellings[0] for spellings in self.hidden)


@dataclass(frozen=True)
class Task:
    """A long-context task.

    Attributes:
        name: its name on the command line.
        meaning: what it asks for, for the docs.
        draw: the sample for a seed, a size, and a seed of what is hidden. The seed determines haystack and question,
            the size the length of the haystack. The last seed determines what is hidden, and no part of the question.
        least: smallest size.
        exact: whether the answer has no room for other words.
    """

    name: str
    meaning: str
    draw: Callable[[int, int, int], Sample]
    least: int = 4
    exact: bool = False

    def room(self, tokens: int) -> int:
        """Tokens that may be generated for an answer of this many tokens."""
        return tokens if self.exact else 2 * tokens + 16


def depth(seed: int) -> float:
    """Where in the haystack of a seed something is hidden, from 0 (the beginning) to 1 (the end).

    Depths of consecutive seeds are spread evenly, however many there are.
    """
    return math.fmod(0.5 + seed * (math.sqrt(5) - 1) / 2, 1)


def spelled(number: int) -> tuple[str, ...]:
    """Spellings of a whole number: plain, and with commas between thousands."""
    return tuple(dict.fromkeys((str(number), f"{number:,}")))
