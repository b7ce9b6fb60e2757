"""Random choices that stay the same in every version of Python."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
STREAMS = 8
"""Independent streams of a seed."""


class Draw:
    """Choices by a seed and the number of a stream, from 0 to ``STREAMS`` - 1.

    Uses only ``Random.random()``, whose stream Python guarantees to stay the same.
    """

    def __init__(self, seed: int, stream: int) -> None:
        self._next = random.Random(seed * STREAMS + stream).random

    def below(self, end: int) -> int:
        """A whole number from 0 to ``end`` - 1."""
        return int(self._next() * end)

    def choose(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], number: int) -> list[T]:
        """Different options, in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(number)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.below(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed
