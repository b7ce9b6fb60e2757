"""Diagnosis by hypothesis: which known mistake gives exactly the figure that an evaluator reported."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from pressgauge.measuring.evaluators import Call, Declares
from pressgauge.measuring.predictions import Mistakes, Predictions
from pressgauge.measuring.scoring import Token

RIGHT = 5e-4
"""Relative difference up to which a figure is right; rounding of norms in float32 gives less than 1e-5."""
EXPLAINED = 1e-5
"""Relative difference up to which a mistake explains a figure: smaller, since there are many mistakes."""


def same(reported: float, expected: float, tolerance: float = RIGHT) -> bool:
    """Whether a reported figure is the expected one, up to rounding, also to two decimals."""
    if not (math.isfinite(expected) and math.isfinite(reported)):
        return False
    rounded = reported == round(reported, 2) and reported == round(expected, 2)
    return rounded or abs(reported - expected) <= tolerance * abs(expected)


def divisor(call: Call, declares: Declares, tokens: int) -> int:
    """What a sum of NLL is divided by: scored tokens, words (each a token here) or bytes."""
    if declares.unit == "byte":
        return sum(call.bytes_of)
    if declares.unit == "word":
        return sum(len(ids) - declares.bos for ids in call.texts)
    return tokens


def right(name: str, tokens: Sequence[Token], call: Call, declares: Declares) -> float:
    """The right value of ``ppl``, ``nll``, ``accuracy`` or ``tokens`` for these scored tokens."""
    if name == "accuracy":
        return fmean(token.hit for token in tokens)
    if name == "tokens":
        return float(len(tokens))
    return _figure(name, math.fsum(token.nll for token in tokens), len(tokens), call, declares)


def _figure(name: str, total: float, number: int, call: Call, declares: Declares) -> float:
    """``ppl`` or ``nll`` of a sum of NLL in nats."""
    unit = divisor(call, declares, number)
    if name == "ppl":
        return _exp(total / unit)
    return total / (1 if declares.logarithm == "e" else math.log(2)) / (1 if declares.nll == "sum" else unit)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


class Diagnosis:
    """Values that known mistakes give for a call on a bag.

    Args:
        call: the call.
        declares: declarations of the evaluator.
        earlier: other calls, whose figures may have been returned again.
    """

    def __init__(self, call: Call, declares: Declares, earlier: Sequence[Call] = ()) -> None:
        self.call, self.declares, self.earlier = call, declares, earlier
        self.mistakes = Mistakes(call, declares)

    def of(self, name: str, reported: float) -> str:
        """The mistake that explains a reported figure, in words; empty if none is known."""
        for earlier in self.earlier:
            if reported == earlier.number(name) and not self.call.record.passes:
                return f"is the result of an earlier call ({earlier.label}), returned again: no pass was run"
        ways = {"tokens": self._counts, "accuracy": self._accuracies}
        for what, value in ways[name]() if name in ways else self._values(name):
            if same(reported, value, EXPLAINED):
                return f"is {what}"
        return ""

    def _values(self, name: str) -> Iterator[tuple[str, float]]:
        """What each mistake reports for ``ppl`` or ``nll``: first other predictions, then other means as well."""
        called = "the perplexity" if name == "ppl" else "the NLL"
        sets = [one for one in self.mistakes.sets() if one.usable]
        for one in sets:
            if one.what:
                total = math.fsum(one.nll)
                yield called + one.what, _figure(name, total, len(one.nll), self.call, self.declares)
        for one in sets:
            yield from self._aggregates(name, one)
            yield from self._divisors(name, one)
        for one in self.mistakes.parts():
            if one.usable:
                yield called + one.what, _figure(name, math.fsum(one.nll), len(one.nll), self.call, self.declares)
        for of, length, pieces in self.mistakes.pieces():
            means = [fmean(piece) for piece in pieces]
            if not any(map(math.isnan, means)):
                many = f"{len(pieces)} pieces of {length} tokens{of}"
                yield f"the mean of the perplexities of {many}", self._as(name, fmean(map(_exp, means)))
                yield f"the mean of the means of {many}, long or short", self._as(name, _exp(fmean(means)))

    def _aggregates(self, name: str, one: Predictions) -> Iterator[tuple[str, float]]:
        """Other ways to put the NLL of a set together."""
        of, total = one.what, math.fsum(one.nll)
        mean = total / len(one.nll)
        if name == "nll":
            for value, what in ((mean, "mean NLL"), (total, "sum of NLL")):
                yield f"the {what}{of} in nats", value
                yield f"the {what}{of} in bits", value / math.log(2)
        yield f"the mean of the inverse probabilities of the tokens{of}", self._as(name, fmean(map(_exp, one.nll)))
        for numbers, what in zip(one.groupings, ("texts", "windows", *2 * ["passes or windows"]), strict=True):
            groups: dict[int, list[float]] = defaultdict(list)
            for number, nll in zip(numbers, one.nll, strict=True):
                groups[number].append(nll)
            if len(groups) > 1:
                means = [fmean(group) for group in groups.values()]
                many = f"{len(groups)} {what}{of}"
                yield f"the mean of the perplexities of {many}", self._as(name, fmean(map(_exp, means)))
                yield f"the mean of the means of {many}, long or short", self._as(name, _exp(fmean(means)))
        yield f"2 to the power of the mean NLL in nats{of}: the base of the logarithm is e", self._as(name, 2**mean)
        yield f"e to the power of the mean NLL in bits{of}", self._as(name, _exp(mean / math.log(2)))
        yield f"10 to the power of the mean NLL in nats{of}", self._as(name, 10**mean)
        if name == "ppl":
            yield f"the mean NLL{of}, not its exponential", mean
            yield f"the mean NLL{of} in bits, not its exponential", mean / math.log(2)
            yield f"the exponential of the sum of NLL{of}", _exp(total)
            yield f"the inverse of the perplexity{of}", math.exp(-mean)
        else:
            yield f"the perplexity{of}, not its logarithm", math.exp(mean)
            yield f"the mean log-likelihood{of}: its sign is that of a likelihood", -mean
            yield f"the log-likelihood{of}: its sign is that of a likelihood", -total

    def _divisors(self, name: str, one: Predictions) -> Iterator[tuple[str, float]]:
        """Other numbers that the sum is divided by."""
        texts, number = self.call.texts, len(one.nll)
        longest = max(map(len, texts))
        for count, what in (
            (sum(map(len, texts)), "all tokens, the first of each text included"),
            (len(self.mistakes.scoring.plain), "the number of all tokens that should be scored"),
            (longest * len(texts), "all columns, padding included"),
            ((longest - 1) * len(texts), "all columns but the first, padding included"),
            (number + 1, "one token too many"),
            (number - 1, "one token too few"),
            (len(texts), "the number of texts"),
            (sum(self.call.bytes_of), "the number of bytes"),
        ):
            if count and count != number:
                value = self._as(name, _exp(math.fsum(one.nll) / count))
                yield f"the sum of NLL{one.what} divided by {what} ({count}, not {number})", value

    def _as(self, name: str, ppl: float) -> float:
        """A perplexity, or the mean NLL that it belongs to."""
        base = 1 if self.declares.logarithm == "e" else math.log(2)
        return ppl if name == "ppl" else math.log(ppl) / base if 0 < ppl < math.inf else math.nan

    def _accuracies(self) -> Iterator[tuple[str, float]]:
        texts = self.call.texts
        for source, tokens in self.mistakes.sources():
            of = f" of {source}" if source else ""
            hits = [token.hit for token in tokens]
            if source:
                yield f"the accuracy{of}", fmean(hits)
            fed = [token.best == texts[token.row][token.at - 1] for token in tokens]
            yield f"the accuracy{of} with no shift: predictions are compared with the token that was fed", fmean(fed)
            longest = max(map(len, texts)) * len(texts)
            for count in sorted({sum(map(len, texts)), longest, longest - len(texts)} - {len(hits)}):
                wrong = f"{sum(hits)} hits{of} divided by {count} tokens, not by the {len(hits)} that are scored"
                yield wrong, sum(hits) / count
            for few in (3, 5, 10):
                among = [token.among(few) for token in tokens]
                yield f"the share of tokens{of} among the {few} most likely", fmean(among)

    def _counts(self) -> Iterator[tuple[str, float]]:
        texts = self.call.texts
        longest, scored = max(map(len, texts)), len(self.mistakes.scoring.plain)
        seams = len(self.mistakes.seams)
        for what, count in (
            ("all tokens, the first of each text included", sum(map(len, texts))),
            ("one token too many for each text", scored + len(texts)),
            ("one token too few for each text", scored - len(texts)),
            ("all columns, padding included", longest * len(texts)),
            ("all columns but the first, padding included", (longest - 1) * len(texts)),
            ("the prompt's tokens as well", sum(len(ids) - 1 for ids in texts)),
            ("the affected tokens only", self.mistakes.scoring.affected),
            (f"one token too few at each of {seams} seams", scored - seams),
            ("the number of tokens that were fed", len(self.call.record.fed)),
        ):
            yield what, float(count)
