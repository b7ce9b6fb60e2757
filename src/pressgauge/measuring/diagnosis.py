"""Diagnosis by hypothesis: which known mistake gives exactly the figure that an evaluator reported."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pressgauge.measuring.evaluators import Call, Declares
from pressgauge.measuring.known import PAD, frequencies
from pressgauge.measuring.scoring import Scoring, Token

TOLERANCE = 5e-4
"""Relative difference up to which a figure is the expected one; rounding of float32 norms is below 1e-5."""


def same(reported: float, expected: float) -> bool:
    """Whether a reported figure is the expected one, up to rounding, also to two decimals."""
    if math.isnan(expected) or math.isnan(reported):
        return False
    return abs(reported - expected) <= TOLERANCE * abs(expected) or reported == round(expected, 2)


@dataclass(frozen=True)
class Scored:
    """A set of predictions and what they are: NLL in nats, text, part of the text (a pass or a window)."""

    what: str
    nll: tuple[float, ...]
    rows: tuple[int, ...]
    parts: tuple[int, ...]

    @property
    def usable(self) -> bool:
        """Whether there is a prediction, and no NLL is NaN."""
        return bool(self.nll) and not any(map(math.isnan, self.nll))


def _of(what: str, tokens: Sequence[Token]) -> Scored:
    parts = [(token.window, token.query.pass_number if token.query else 0) for token in tokens]
    numbers = {part: number for number, part in enumerate(dict.fromkeys(parts))}
    return Scored(
        what,
        tuple(token.nll for token in tokens),
        tuple(token.row for token in tokens),
        tuple(numbers[part] for part in parts),
    )


def divisor(call: Call, declares: Declares, tokens: int) -> int:
    """What a sum of NLL is divided by: scored tokens, words (of which each is a token here) or bytes."""
    if declares.unit == "byte":
        return sum(call.bytes_of)
    if declares.unit == "word":
        return sum(len(ids) - declares.bos for ids in call.texts)
    return tokens


def right(name: str, tokens: Sequence[Token], call: Call, declares: Declares) -> float:
    """The right value of ``ppl``, ``nll``, ``accuracy`` or ``tokens`` for these scored tokens."""
    total = math.fsum(token.nll for token in tokens)
    if name == "ppl":
        return math.exp(total / divisor(call, declares, len(tokens)))
    if name == "nll":
        base = 1 if declares.logarithm == "e" else math.log(2)
        return total / base / (1 if declares.nll == "sum" else divisor(call, declares, len(tokens)))
    if name == "accuracy":
        return fmean(token.hit for token in tokens)
    return float(len(tokens))


class Diagnosis:
    """Values that known mistakes give for a call on a bag.

    Args:
        call: the call.
        declares: declarations of the evaluator.
        earlier: calls before it, whose figures may have been returned again.
    """

    def __init__(self, call: Call, declares: Declares, earlier: Sequence[Call] = ()) -> None:
        self.call, self.declares, self.earlier = call, declares, earlier
        self.scoring = Scoring(call, declares)
        self.compressed = call.keep_ratio != 1

    def of(self, name: str, reported: float) -> str:
        """The mistake that explains a reported figure, in words; empty if none is known."""
        for earlier in self.earlier:
            own = earlier.number(name)
            if own is not None and reported == own and not self.call.record.passes:
                return f"is the result of an earlier call ({earlier.label}), returned again: no pass was run"
        if math.isnan(reported):
            return ""
        candidates = self._counts() if name == "tokens" else self._accuracies() if name == "accuracy" else None
        if candidates is None:
            candidates = self._values(name)
        for what, value in candidates:
            if same(reported, value):
                return f"is {what}"
        return ""

    # Sets of predictions

    def _sources(self) -> Iterator[tuple[str, list[Token]]]:
        """The run as it was, and the same uncompressed."""
        run = self.scoring.run
        ways = [("", self.scoring.plain)]
        if any(token.query for token in run):
            evicted = "a cache from which entries were evicted"
            ways = [("", run), ("the uncompressed cache", self.scoring.plain)]
            if not self.compressed:
                ways = [("", self.scoring.plain), (evicted, run)]
        yield from ways

    def _sets(self) -> Iterator[Scored]:
        """Sets of predictions, the likeliest mistakes first."""
        for source, tokens in self._sources():
            of = f" of {source}" if source else ""
            yield _of(f"the perplexity{of}" if source else "", tokens)
            yield from self._shifted(of, tokens)
            yield from self._subsets(of, tokens)
        yield from self._contexts()
        yield from self._padded()

    def _shifted(self, of: str, tokens: list[Token]) -> Iterator[Scored]:
        """Queries that are paired with another token than the next."""
        reads: dict[tuple[int, int], tuple[float, ...] | None] = {}
        for row, ids in enumerate(self.call.texts):
            for at in range(len(ids)):
                reads[row, at] = tuple(frequencies(ids[: at + 1]))
        if not of:
            for row, offset, queries in self.scoring.aligned:
                for index, query in enumerate(queries):
                    reads[row, offset + index] = query.reads
        texts = self.call.texts
        prompt = self.declares.prompt
        for what, lag, begin in (
            ("no shift: each logit is scored on the token that was fed, not on the next", 0, prompt),
            ("no shift: each logit is scored on the token that was fed, not on the next", 0, prompt - 1),
            ("a double shift: each logit is scored on the token after the next", 2, prompt + 1),
            ("a double shift: each logit is scored on the token after the next", 2, prompt),
        ):
            pairs = [
                Token(row, at, ids[at], reads.get((row, at - lag)))
                for row, ids in enumerate(texts)
                for at in range(max(begin, lag), len(ids))
            ]
            yield _of(f"the perplexity{of} with {what}", pairs)

    def _subsets(self, of: str, tokens: list[Token]) -> Iterator[Scored]:
        """Other tokens than the declared ones."""
        texts, declares = self.call.texts, self.declares
        if declares.prompt > 1:
            every = Scoring(self.call, replace(declares, prompt=1))
            scored = every.plain if of else every.run
            yield _of(f"the perplexity{of} with the prompt scored as well", scored)
        if declares.prompt > 1 or len(texts) > 1 or declares.bos:
            later = [token for token in tokens if token.at > declares.prompt]
            yield _of(f"the perplexity{of} without the first scored token of each text", later)
        yield _of(f"the perplexity{of} without the first scored token", tokens[1:])
        yield _of(f"the perplexity{of} without the last token", [t for t in tokens if t.at < len(texts[t.row]) - 1])
        hit = {
            (token.row, token.at) for token in self.scoring.run if token.query is not None and not token.query.complete
        }
        affected = [token for token in tokens if (token.row, token.at) in hit]
        yield _of(f"the perplexity{of} of the affected tokens only", affected)
        seams = self._seams()
        for inside, what in ((1, "the first token of each pass"), (0, "the last token of each pass")):
            lost = [token for token in tokens if (token.row, token.at + 1 - inside) not in seams]
            if len(lost) < len(tokens):
                yield _of(f"the perplexity{of} without {what}: a token is lost at each seam", lost)
        fed = max((offset + len(queries) for _, offset, queries in self.scoring.aligned), default=0)
        part = [token for token in tokens if token.at < fed]
        if 0 < len(part) < len(tokens):
            yield _of(f"the perplexity{of} of the first {fed} tokens of the text only", part)
        for row in range(len(texts) if len(texts) > 1 else 0):
            own = [token for token in tokens if token.row == row]
            yield _of(f"the perplexity{of} of text {row} alone", own)

    def _seams(self) -> set[tuple[int, int]]:
        """Text and index of tokens that were the first of a pass, that of the text excepted."""
        seams = set()
        for row, offset, queries in self.scoring.aligned:
            last = None
            for index, query in enumerate(queries):
                if query.pass_number != last and offset + index:
                    seams.add((row, offset + index))
                last = query.pass_number
        return seams

    def _contexts(self) -> Iterator[Scored]:
        """Contexts that are not those of the text."""
        declares, texts = self.declares, self.call.texts
        if declares.prompt > 1:
            for begin, what in (
                (declares.prompt, "the prompt"),
                (declares.prompt - 1, "all of the prompt but its end"),
            ):
                tokens = [
                    Token(row, at, ids[at], tuple(frequencies(ids[begin:at])))
                    for row, ids in enumerate(texts)
                    for at in range(begin + 1, len(ids))
                ]
                yield _of(f"the perplexity of the rest of the text without {what} in its context", tokens)
        pieces = [
            Token(row, offset + index + 1, texts[row][offset + index + 1], query.reads, query, window=offset)
            for row, offset, queries in self.scoring.aligned
            for index, query in enumerate(queries[:-1])
            if offset + index + 1 >= declares.prompt
        ]
        if any(offset for _, offset, _ in self.scoring.aligned):
            yield _of("the perplexity of pieces that do not see each other, which loses a token at each seam", pieces)
        for sequence in self.call.record.sequences:
            if sequence.earlier:
                yield from self._with_earlier(sequence.tokens)

    def _with_earlier(self, tokens: Sequence[int]) -> Iterator[Scored]:
        (ids, *_) = self.call.texts
        before = tokens[: len(tokens) - len(ids)]
        found = [
            Token(0, at, ids[at], tuple(frequencies([*before, *ids[:at]])))
            for at in range(self.declares.prompt, len(ids))
        ]
        yield _of("the perplexity of the text behind that of an earlier call, whose cache was used again", found)

    def _padded(self) -> Iterator[Scored]:
        """Padding slots that are scored or read."""
        texts = self.call.texts
        longest = max(map(len, texts))
        if min(map(len, texts)) == longest:
            return
        every: list[Token] = []
        first: list[Token] = []
        for row, sequence in enumerate(self.call.record.sequences[: len(texts)]):
            queries = sequence.queries
            for index, (query, after) in enumerate(zip(queries, queries[1:], strict=False)):
                token = Token(row, index + 1, after.token, query.reads)
                every.append(token)
                if after.real:
                    first.append(token)
        yield _of("the perplexity with one token too many for each short text: its first one, behind padding", first)
        yield _of("the perplexity with the padding scored", every)
        read = [
            Token(row, at, ids[at], tuple(frequencies([PAD] * (longest - len(ids)) + list(ids[:at]))))
            for row, ids in enumerate(texts)
            for at in range(self.declares.prompt, len(ids))
        ]
        yield _of("the perplexity with the padding read: no attention mask was given", read)

    # Figures of a set

    def _values(self, name: str) -> Iterator[tuple[str, float]]:
        """What each mistake reports for ``ppl`` or ``nll``."""
        sets = [one for one in self._sets() if one.usable]
        right_number = len(self.scoring.plain)
        for scored in sets:
            if scored.what:
                yield scored.what, self._figure(name, math.fsum(scored.nll), len(scored.nll))
        for scored in sets:
            of = scored.what.removeprefix("the perplexity")
            total, number = math.fsum(scored.nll), len(scored.nll)
            mean = total / number
            for groups, what in ((scored.rows, "texts"), (scored.parts, "passes or windows")):
                split: dict[int, list[float]] = defaultdict(list)
                for group, nll in zip(groups, scored.nll, strict=True):
                    split[group].append(nll)
                if len(split) > 1:
                    means = [fmean(own) for own in split.values()]
                    yield (
                        f"the mean of the perplexities of {len(split)} {what}{of}",
                        self._exp(name, fmean(map(math.exp, means))),
                    )
                    yield f"the exponential of the mean of the means of {len(split)} {what}{of}, long or short", self._exp(name, math.exp(fmean(means)))  # fmt: skip
            yield (
                f"2 to the power of the mean NLL in nats{of}: the base of the logarithm is e",
                self._exp(name, 2**mean),
            )
            yield f"e to the power of the mean NLL in bits{of}", self._exp(name, _exp(mean / math.log(2)))
            yield f"10 to the power of the mean NLL in nats{of}", self._exp(name, 10**mean)
            if name == "ppl":
                yield f"the mean NLL{of}, not its exponential", mean
                yield f"the mean of the inverse probabilities of the tokens{of}", fmean(map(_exp, scored.nll))
                yield f"the exponential of the sum of NLL{of}", _exp(total)
            else:
                yield f"the perplexity{of}, not its logarithm", math.exp(mean)
                yield f"the sum of NLL{of}", total
                yield f"the mean NLL{of} in nats", mean
                yield f"the mean NLL{of} in bits", mean / math.log(2)
                yield f"the sum of NLL{of} in bits", total / math.log(2)
            longest = max(map(len, self.call.texts))
            for count, what in (
                (sum(map(len, self.call.texts)), "all tokens, the first of each text included"),
                (right_number, "the number of all tokens that should be scored"),
                (longest * len(self.call.texts), "all columns, padding included"),
                ((longest - 1) * len(self.call.texts), "all columns but the first, padding included"),
                (number + 1, "one token too many"),
                (number - 1, "one token too few"),
                (len(self.call.texts), "the number of texts"),
                (sum(self.call.bytes_of), "the number of bytes"),
            ):
                if count and count != number:
                    yield (
                        f"the sum of NLL{of} divided by {what} ({count}, not {number})",
                        self._exp(name, _exp(total / count)),
                    )

    def _figure(self, name: str, total: float, number: int) -> float:
        """A figure of a sum of NLL, as it is declared."""
        unit = divisor(self.call, self.declares, number)
        if name == "ppl":
            return _exp(total / unit)
        return self._exp(name, _exp(total / unit)) * (unit if self.declares.nll == "sum" else 1)

    def _exp(self, name: str, ppl: float) -> float:
        """A perplexity, or the mean NLL that it belongs to."""
        base = 1 if self.declares.logarithm == "e" else math.log(2)
        return ppl if name == "ppl" else math.log(ppl) / base

    def _accuracies(self) -> Iterator[tuple[str, float]]:
        for source, tokens in self._sources():
            of = f" of {source}" if source else ""
            hits = [token.hit for token in tokens]
            if source:
                yield f"the accuracy{of}", fmean(hits)
            for count in {sum(map(len, self.call.texts)), max(map(len, self.call.texts)) * len(self.call.texts)}:
                yield f"{sum(hits)} hits{of} divided by {count} tokens, not by the {len(hits)} that are scored", sum(hits) / count  # fmt: skip
            top = [token.reads is not None and token.id in sorted(range(len(token.reads)), key=lambda i: -token.reads[i])[:5] for token in tokens]  # fmt: skip  # noqa: B023
            yield f"the share of tokens{of} among the 5 most likely", fmean(top)
            same_ = [
                token.reads is not None
                and max(range(len(token.reads)), key=token.reads.__getitem__)
                == self.call.texts[token.row][token.at - 1]
                for token in tokens
            ]
            yield f"the accuracy{of} with no shift: predictions are compared with the token that was fed", fmean(same_)

    def _counts(self) -> Iterator[tuple[str, float]]:
        texts = self.call.texts
        longest = max(map(len, texts))
        scored = len(self.scoring.plain)
        yield "all tokens, the first of each text included", float(sum(map(len, texts)))
        yield "one token too many for each text", float(scored + len(texts))
        yield "one token too few for each text", float(scored - len(texts))
        yield "all columns, padding included", float(longest * len(texts))
        yield "all columns but the first, padding included", float((longest - 1) * len(texts))
        yield "the tokens that were fed", float(len(self.call.record.fed))
        if self.declares.prompt > 1:
            yield "the prompt's tokens as well", float(sum(len(ids) - 1 for ids in texts))
        seams = len(self._seams())
        yield f"one token too few at each of {seams} seams", float(scored - seams)
        yield "the affected tokens only", float(self.scoring.affected)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
