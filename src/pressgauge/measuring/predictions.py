"""Sets of predictions that an evaluator may have scored instead of the right ones, the likeliest mistakes first."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pressgauge.measuring.evaluators import Call, Declares
from pressgauge.measuring.known import PAD, frequencies
from pressgauge.measuring.scoring import Scoring, Token, best_place

EVICTED = "a cache from which entries were evicted"
UNCOMPRESSED = "the uncompressed cache"


@dataclass(frozen=True)
class Predictions:
    """A set of predictions.

    Attributes:
        what: what differs from the right set, as the end of "the perplexity ..."; empty if nothing does.
        nll: NLL in nats.
        groupings: numbers of the text, of the window, of the query's pass and window, and of the token's own pass and
            window.
    """

    what: str
    nll: tuple[float, ...]
    groupings: tuple[tuple[int, ...], ...]

    @property
    def usable(self) -> bool:
        """Whether there is a prediction, and no NLL is NaN."""
        return bool(self.nll) and not any(map(math.isnan, self.nll))


class Mistakes:
    """Sets of predictions of a call on a bag.

    Args:
        call: the call.
        declares: declarations of the evaluator.
    """

    def __init__(self, call: Call, declares: Declares) -> None:
        self.call, self.declares = call, declares
        self.scoring = Scoring(call, declares)

    @cached_property
    def passes(self) -> dict[tuple[int, int], int]:
        """Number of the pass that fed a token first, by text and index."""
        found: dict[tuple[int, int], int] = {}
        for row, offset, _, queries in self.scoring.aligned:
            for index, query in enumerate(queries):
                found.setdefault((row, offset + index), query.pass_number)
        return found

    @cached_property
    def seams(self) -> set[tuple[int, int]]:
        """Text and index of tokens that were the first of a pass, those of a text's first pass excepted."""
        found = set()
        for row, offset, _, queries in self.scoring.aligned:
            last = None
            for index, query in enumerate(queries):
                if query.pass_number != last and offset + index:
                    found.add((row, offset + index))
                last = query.pass_number
        return found

    def sources(self) -> list[tuple[str, list[Token]]]:
        """The scored tokens as they should be, and the other way: without evictions, or with them."""
        run, plain = self.scoring.run, self.scoring.plain
        if not any(token.query for token in run):
            return [("", plain)]
        return [("", plain), (EVICTED, run)] if self.call.keep_ratio == 1 else [("", run), (UNCOMPRESSED, plain)]

    def sets(self) -> Iterator[Predictions]:
        """All sets."""
        for source, tokens in self.sources():
            of = f" of {source}" if source else ""
            yield self._set(of, tokens)
            yield from self._shifted(source, of)
            yield from self._subsets(of, tokens, uncompressed=source != "" or self.call.keep_ratio == 1)
            twice = self._set(f"{of} of probabilities that are taken for logits: the softmax is taken twice", tokens)
            yield replace(twice, nll=tuple(token.nll_of_probabilities for token in tokens))
            own = [replace(token, id=token.id if token.best is None else token.best) for token in tokens]
            yield self._set(f"{of} of the model's own choices, not of the text", own)
        yield from self._contexts()
        yield from self._padded()

    def parts(self) -> Iterator[Predictions]:
        """Any beginning or end of the scored tokens, and pieces of any length: mistakes without a better name."""
        for source, tokens in self.sources():
            of = f" of {source}" if source else ""
            for number in range(1, len(tokens)):
                yield self._set(f"{of} without the first {number} scored tokens", tokens[number:])
                yield self._set(f"{of} of the first {number} scored tokens only", tokens[:number])

    def pieces(self) -> Iterator[tuple[str, int, list[list[float]]]]:
        """The NLL of the scored tokens in pieces of each length: of which source, the length, and the pieces."""
        for source, tokens in self.sources():
            nll = [token.nll for token in tokens]
            for length in range(2, len(nll)):
                pieces = [nll[start : start + length] for start in range(0, len(nll), length)]
                yield f" of {source}" if source else "", length, pieces

    def _set(self, what: str, tokens: Sequence[Token]) -> Predictions:
        def grouped(lag: int) -> tuple[int, ...]:
            return _numbers([(token.window, self.passes.get((token.row, token.at - lag), -1)) for token in tokens])

        rows = tuple(token.row for token in tokens)
        windows = _numbers([(token.row, token.window) for token in tokens])
        return Predictions(what, tuple(token.nll for token in tokens), (rows, windows, grouped(1), grouped(0)))

    def _shifted(self, source: str, of: str) -> Iterator[Predictions]:
        """Queries that are paired with another token than the next."""
        texts = self.call.texts
        reads = {
            (row, at): tuple(frequencies(ids[: at + 1])) for row, ids in enumerate(texts) for at in range(len(ids))
        }
        if source != UNCOMPRESSED:
            for row, offset, _, queries in self.scoring.aligned:
                reads |= {(row, offset + index): query.reads for index, query in enumerate(queries)}
        none = "no shift: each logit is scored on the token that was fed, not on the next"
        twice = "a double shift: each logit is scored on the token after the next"
        for what, lag, begin, end in (
            (none, 0, -1, 1),
            (none, 0, -1, 0),
            (none, 0, 0, 0),
            (twice, 2, 1, 0),
            (twice, 2, 0, 0),
        ):
            pairs = [
                Token(row, at, ids[at], reads.get((row, at - lag)))
                for row, ids in enumerate(texts)
                for at in range(max(self.scoring.first_of(ids) + begin, lag), len(ids) - end)
            ]
            yield self._set(f"{of} with {what}", pairs)

    def _subsets(self, of: str, tokens: list[Token], *, uncompressed: bool) -> Iterator[Predictions]:
        """Other tokens than the declared ones."""
        texts, first = self.call.texts, self.scoring.first_of
        if any(first(ids) > 1 for ids in texts):
            every = Scoring(self.call, replace(self.declares, prompt=1))
            yield self._set(f"{of} with the prompt scored as well", every.plain if uncompressed else every.run)
        later = [token for token in tokens if token.at > first(texts[token.row])]
        yield self._set(f"{of} without the first scored token of each text", later)
        yield self._set(f"{of} without the last token", [t for t in tokens if t.at < len(texts[t.row]) - 1])
        missed = {
            (token.row, token.at) for token in self.scoring.run if token.query is not None and not token.query.complete
        }
        affected = [token for token in tokens if (token.row, token.at) in missed]
        yield self._set(f"{of} of the affected tokens only", affected)
        for lag, what in ((0, "the first token of each pass"), (1, "the last token of each pass")):
            lost = [token for token in tokens if (token.row, token.at + lag) not in self.seams]
            if len(lost) < len(tokens):
                yield self._set(f"{of} without {what}: a token is lost at each seam", lost)
        begins = {(token.row, token.window): token.at for token in reversed(tokens)}
        inner = [token for token in tokens if not token.window or begins[token.row, token.window] != token.at]
        if len(inner) < len(tokens):
            yield self._set(f"{of} without the first token of each window: a token is lost at each seam", inner)
        fed = max((offset + len(queries) for _, offset, _, queries in self.scoring.aligned), default=0)
        for end in (fed + 1, fed):
            part = [token for token in tokens if token.at < end]
            if len(part) < len(tokens):
                yield self._set(f"{of} of the first {end} tokens of the text only", part)
        for row in range(len(texts) if len(texts) > 1 else 0):
            yield self._set(f"{of} of text {row} alone", [token for token in tokens if token.row == row])

    def _contexts(self) -> Iterator[Predictions]:
        """Contexts that are not those of the text."""
        texts, first = self.call.texts, self.scoring.first_of
        if any(first(ids) > 1 for ids in texts):
            for back, what in ((0, "the prompt"), (1, "the prompt but for its last token")):
                tokens = [
                    Token(row, at, ids[at], tuple(frequencies(ids[first(ids) - back : at])))
                    for row, ids in enumerate(texts)
                    for at in range(first(ids) - back + 1, len(ids))
                ]
                yield self._set(f" of the rest of the text without {what} in its context", tokens)
        window, stride = self.declares.window, self.declares.stride
        if window is not None and stride is not None:
            twice = [
                Token(row, at, ids[at], tuple(frequencies(ids[begin:at])), window=begin)
                for row, ids in enumerate(texts)
                for begin in range(0, max(1, len(ids) - window + stride), stride)
                for at in range(begin + 1, min(begin + window, len(ids)))
            ]
            yield self._set(" of windows in which the tokens of overlaps are scored twice", twice)
        if any(offset for _, offset, _, _ in self.scoring.aligned):
            for less, what in ((1, ", which loses a token at each seam"), (0, "")):
                pieces = [
                    Token(row, offset + index + 1, texts[row][offset + index + 1], query.reads, window=offset)
                    for row, offset, _, queries in self.scoring.aligned
                    for index, query in enumerate(queries[: len(queries) - less])
                    if first(texts[row]) <= offset + index + 1 < len(texts[row])
                ]
                yield self._set(f" of pieces that do not see each other{what}", pieces)
        if len(texts) == 1:
            yield from self._foreign(texts[0])

    def _foreign(self, ids: Sequence[int]) -> Iterator[Predictions]:
        """Tokens before the only text or in its place."""
        first = self.scoring.first_of(ids)
        for sequence in self.call.record.sequences:
            fed = sequence.tokens
            if sequence.earlier:
                before = fed[: len(fed) - len(ids)]
                behind = [
                    Token(0, at, ids[at], tuple(frequencies([*before, *ids[:at]]))) for at in range(first, len(ids))
                ]
                yield self._set(" of the text behind that of an earlier call, whose cache was used again", behind)
            elif len(fed) > 1 and tuple(fed) != tuple(ids[: len(fed)]):
                queries = [query for query in sequence.queries if query.real]
                written = [Token(0, at, fed[at], queries[at - 1].reads) for at in range(first, len(fed))]
                yield self._set(" of other tokens than the text's, such as those that the model wrote", written)

    def _padded(self) -> Iterator[Predictions]:
        """Padding slots that are scored or read."""
        texts = self.call.texts
        longest = max(map(len, texts))
        if min(map(len, texts)) == longest:
            return
        columns: list[tuple[Token, bool, bool]] = []
        for sequence in self.call.record.sequences:
            # Without a mask the model takes padding for tokens.
            own = [query.real and query.token != PAD for query in sequence.queries]
            real = [query.token for query, is_own in zip(sequence.queries, own, strict=True) if is_own]
            row, offset, _ = best_place(real, texts)
            following = [(query.token, is_own) for query, is_own in zip(sequence.queries, own, strict=True)][1:]
            if offset + len(real) < len(texts[row]):
                # The last token was not fed.
                following.append((texts[row][offset + len(real)], True))
            elif len(sequence.queries) < longest:
                following.append((PAD, False))
            for index, (query, is_own, (token, next_own)) in enumerate(
                zip(sequence.queries, own, following, strict=False)
            ):
                columns.append((Token(row, index + 1, token, query.reads), is_own, next_own))
        many = " with one token too many for each short text"
        if any(after and not before for _, before, after in columns):
            yield self._set(f"{many}: its first one, behind padding", [token for token, _, after in columns if after])
        if any(before and not after for _, before, after in columns):
            yield self._set(f"{many}: padding, behind its last one", [token for token, before, _ in columns if before])
        yield self._set(" with the padding scored", [token for token, _, _ in columns])
        read = [
            Token(row, at, ids[at], tuple(frequencies([PAD] * (longest - len(ids)) + list(ids[:at]))))
            for row, ids in enumerate(texts)
            for at in range(self.scoring.first_of(ids), len(ids))
        ]
        yield self._set(" with the padding read: no attention mask was given", read)


def _numbers(parts: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    numbers = {part: number for number, part in enumerate(dict.fromkeys(parts))}
    return tuple(numbers[part] for part in parts)
