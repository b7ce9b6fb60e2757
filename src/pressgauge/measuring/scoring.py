"""What an evaluator must report: NLL of each scored token, by formula, from the text or from what its queries read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pressgauge.measuring.evaluators import Call, Declares
from pressgauge.measuring.known import frequencies, nll_of
from pressgauge.measuring.record import Query

Reads = tuple[float, ...]


@dataclass(frozen=True)
class Token:
    """A token of a text with what scores it.

    Attributes:
        row: number of its text.
        at: its index in the text.
        id: its id.
        reads: what the query before it reads; None if no query of the record could score it.
        query: that query; None for an uncompressed text.
        window: number of the window that scores it.
    """

    row: int
    at: int
    id: int
    reads: Reads | None
    query: Query | None = None
    window: int = 0

    @property
    def nll(self) -> float:
        """NLL in nats; NaN if nothing could score it."""
        return math.nan if self.reads is None else nll_of(self.reads, self.id)

    @property
    def best(self) -> int | None:
        """Id of the most likely token; None if nothing could score it."""
        return None if self.reads is None else max(range(len(self.reads)), key=self.reads.__getitem__)

    @property
    def hit(self) -> bool:
        """Whether it is the most likely token."""
        return self.best == self.id

    def among(self, number: int) -> bool:
        """Whether it is among the most likely tokens."""
        return self.reads is not None and sum(share > self.reads[self.id] for share in self.reads) < number


class Scoring:
    """Scored tokens of a call on a bag, uncompressed and as they were run."""

    def __init__(self, call: Call, declares: Declares) -> None:
        self.call, self.declares = call, declares

    def first_of(self, ids: Sequence[int]) -> int:
        """Index of the first scored token of a text."""
        prompt = self.declares.prompt
        return prompt if prompt > 0 else max(1, len(ids) + prompt)

    def window_of(self, at: int) -> int:
        """Number of the window that scores a token: the first that contains it."""
        window, stride = self.declares.window, self.declares.stride
        if window is None or stride is None or at < window:
            return 0
        return -(-(at + 1 - window) // stride)

    def begin_of(self, at: int) -> int:
        """First token of the context of a scored token."""
        return self.window_of(at) * (self.declares.stride or 0)

    @cached_property
    def plain(self) -> list[Token]:
        """Scored tokens with an uncompressed context."""
        return [
            Token(row, at, ids[at], tuple(frequencies(ids[self.begin_of(at) : at])), window=self.window_of(at))
            for row, ids in enumerate(self.call.texts)
            for at in range(self.first_of(ids), len(ids))
        ]

    @cached_property
    def run(self) -> list[Token]:
        """Scored tokens with what the record's queries read.

        Of several queries that could score a token, those of the sequence with the most evictions count.
        """
        found = []
        for token in self.plain:
            fed = [
                (misses, queries[token.at - 1 - offset])
                for row, offset, misses, queries in self.aligned
                if row == token.row and offset == self.begin_of(token.at) and 0 < token.at - offset <= len(queries)
            ]
            query = max(fed, key=lambda one: one[0])[1] if fed else None
            reads = None if query is None else query.reads
            found.append(Token(token.row, token.at, token.id, reads, query, token.window))
        return found

    @cached_property
    def aligned(self) -> list[tuple[int, int, int, list[Query]]]:
        """Text, offset, number of evictions met and real queries of every sequence that fed a part of a text."""
        found = []
        for sequence in self.call.record.sequences:
            queries = [query for query in sequence.queries if query.real]
            row, offset, length = _best_place([query.token for query in queries], self.call.texts)
            if length == len(queries) or length >= 3:
                found.append((row, offset, sum(not query.complete for query in queries), queries[:length]))
        return found

    @property
    def affected(self) -> int:
        """Number of scored tokens whose query met an eviction."""
        return sum(token.query is not None and not token.query.complete for token in self.run)


def _best_place(tokens: Sequence[int], texts: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Text and offset at which most of ``tokens`` agree with a text from the first on, and how many."""
    best = (0, 0, 0)
    for row, ids in enumerate(texts):
        for offset in range(len(ids)):
            length = 0
            for one, other in zip(tokens, ids[offset:], strict=False):
                if one != other:
                    break
                length += 1
            if length > best[2]:
                best = (row, offset, length)
    return best
