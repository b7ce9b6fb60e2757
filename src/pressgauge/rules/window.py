"""Sliding windows and chunks of a model's attention, as eviction by age. Integers only, no torch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Window:
    """The tokens that the queries of a layer see: query t sees token j iff ``j <= t < end(j)``.

    Positions count a row's own tokens.

    Attributes:
        size: tokens of a sliding window, the query's own included, or of a chunk.
        chunked: whether a query sees the tokens of its own chunk, instead of the last ``size`` tokens.
    """

    size: int
    chunked: bool = False

    def end(self, position: Any) -> Any:
        """Position of the first query that no longer sees the token at ``position``; integers or tensors."""
        return (position // self.size + 1) * self.size if self.chunked else position + self.size

    def first(self, seen: int) -> int:
        """Position of the first token that the query at position ``seen`` sees."""
        return seen - seen % self.size if self.chunked else max(0, seen - self.size + 1)

    def holds(self, seen: int) -> int:
        """Number of the ``seen`` tokens that the next query sees."""
        return seen - self.first(seen)

    def stores(self, seen: int) -> int:
        """Number of the ``seen`` tokens that transformers' cache stores."""
        return min(seen, self.size - 1)

    def __str__(self) -> str:
        return f"{'chunks' if self.chunked else 'a window'} of {self.size}"
