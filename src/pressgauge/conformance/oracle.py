"""Plain-Python oracle, independent of the product and too simple to be wrong.

Computes what a press evicts from one head of one layer, by the rules as written in docs/rules.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

NEVER = 2**31 - 1

Key = Sequence[float]
Scores = Callable[[list[int]], list[float]]
"""Scores of the tokens at given positions, if exactly these are retained."""


def ceil_of(ratio: float, count: int) -> int:
    """``ratio * count`` rounded up, exact for the decimal value as written."""
    return int((Decimal(str(ratio)) * count).to_integral_value(rounding=ROUND_CEILING))


def rounded(score: float) -> float:
    """A score rounded to 10 significant bits, half to even; NaN becomes minus infinity."""
    if math.isnan(score):
        return -math.inf
    if math.isinf(score) or score == 0:
        # Minus infinity ranks above NaN.
        return max(score, -1.7976931348623157e308)
    mantissa, exponent = math.frexp(score)
    return math.ldexp(round(mantissa * 2**10), exponent - 10)


def norm_scores(keys: Sequence[Key]) -> Scores:
    """KnormPress: minus the L2 norm."""
    return lambda held: [-math.sqrt(math.fsum(x * x for x in keys[position])) for position in held]


def position_scores(keys: Sequence[Key]) -> Scores:
    """StreamingLLMPress: the position."""
    return lambda held: [float(position) for position in held]


def keydiff_scores(keys: Sequence[Key]) -> Scores:
    """KeyDiffPress: minus the cosine similarity to the mean of the retained, normalised keys."""

    def unit(vector: Key) -> list[float]:
        length = max(math.sqrt(math.fsum(x * x for x in vector)), 1e-12)
        return [x / length for x in vector]

    def scores(held: list[int]) -> list[float]:
        units = [unit(keys[position]) for position in held]
        mean = unit([math.fsum(column) for column in zip(*units, strict=True)])
        return [-math.fsum(a * b for a, b in zip(vector, mean, strict=True)) for vector in units]

    return scores


class Attention:
    """Attention of one row in one layer.

    Args:
        keys: per KV head and token.
        queries: per query head and token; of H query heads and K KV heads, ``k * H / K`` to ``(k + 1) * H / K - 1``
            read KV head k.
        scale: scaling factor of the query-key products.
    """

    def __init__(self, keys: Sequence[Sequence[Key]], queries: Sequence[Sequence[Key]], scale: float) -> None:
        self.keys, self.queries, self.scale = keys, queries, scale
        self.group = len(queries) // len(keys)

    def _softmax(self, query: Key, head: int, present: Sequence[int]) -> list[float]:
        keys = self.keys[head]
        products = [self.scale * math.fsum(a * b for a, b in zip(query, keys[j], strict=True)) for j in present]
        most = max(products)
        weights = [math.exp(product - most) for product in products]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    def given(self, head: int, token: int, held: Sequence[int]) -> dict[int, float]:
        """Attention from a token to retained entries up to itself, by position.

        Averaged over the query heads of a KV head; empty if there are no such entries.
        """
        present = [j for j in held if j <= token]
        if not present:
            return {}
        heads = range(head * self.group, (head + 1) * self.group)
        each = [self._softmax(self.queries[one][token], head, present) for one in heads]
        return {j: math.fsum(column) / self.group for j, column in zip(present, zip(*each, strict=True), strict=True)}


Held = list[list[int]]
"""Per KV head, the tokens present in a pass: those retained before it, and its own."""
Voted = list[dict[int, float]]
"""Per KV head, the score of each of these tokens."""


class Voter:
    """Attention-based scores of one row.

    Args:
        attention: attention of the row.
        window: number of protected newest tokens, which for SnapKV is the observation window.
    """

    def __init__(self, attention: Attention, window: int) -> None:
        self.attention, self.window = attention, window

    def feed(self, held: Held, start: int, end: int) -> Voted:
        """Scores after a pass of the tokens ``start`` to ``end - 1``."""
        raise NotImplementedError


class Accumulated(Voter):
    """H2OPress: cumulative attention that an entry has received since it was added."""

    def __init__(self, attention: Attention, window: int) -> None:
        super().__init__(attention, window)
        self.sums: Voted = [{} for _ in attention.keys]

    def feed(self, held: Held, start: int, end: int) -> Voted:
        for head, present in enumerate(held):
            for token in range(start, end):
                for j, weight in self.attention.given(head, token, present).items():
                    self.sums[head][j] = self.sums[head].get(j, 0.0) + weight
        return [{j: sums[j] for j in present} for sums, present in zip(self.sums, held, strict=True)]


class Window(Voter):
    """SnapKVPress: attention from the observation window, sum-pooled over neighbours.

    The window's own entries count as zero.
    """

    neighbours = 5

    def feed(self, held: Held, start: int, end: int) -> Voted:
        first, half, found = max(0, end - self.window), self.neighbours // 2, []
        for head, present in enumerate(held):
            each = [self.attention.given(head, token, present) for token in range(first, end)]
            votes = [math.fsum(one.get(j, 0.0) for one in each) if j < first else 0.0 for j in present]
            pooled = [math.fsum(votes[max(0, i - half) : i + half + 1]) for i in range(len(votes))]
            found.append(dict(zip(present, pooled, strict=True)))
        return found


class Last(Voter):
    """TOVAPress: attention from the last query, summed over all heads."""

    def feed(self, held: Held, start: int, end: int) -> Voted:
        each = [self.attention.given(head, end - 1, present) for head, present in enumerate(held)]
        return [{j: math.fsum(one.get(j, 0.0) for one in each) for j in present} for present in held]


def random_scores(seed: int, layer: int, head: int) -> Scores:
    """RandomPress: a hash of seed, layer, head and position, in unsigned 64-bit arithmetic."""

    def score(position: int) -> float:
        full = (1 << 64) - 1
        x = position * 0x9E3779B97F4A7C15 + head * 0xC2B2AE3D27D4EB4F
        x = (x + layer * 0x165667B19E3779F9 + seed * 0x27D4EB2F165667C5) & full
        x = ((x ^ (x >> 33)) * 0xFF51AFD7ED558CCD) & full
        x = ((x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53) & full
        return float((x ^ (x >> 33)) & 0x3FFFFFF)

    return lambda held: [score(position) for position in held]


Rounding = Callable[[float, int], int]
"""Rounding of ``ratio * count`` to an integer."""

ROUNDINGS: dict[str, Rounding] = {
    "ceil": ceil_of,
    "floor": lambda ratio, count: int(Decimal(str(ratio)) * count),
    "float-ceil": lambda ratio, count: math.ceil(ratio * count),
}


@dataclass(frozen=True)
class Rules:
    """When a press evicts, and how many entries it retains; defaults as in docs/rules.md."""

    keep_ratio: float
    prune_after: int = 512
    schedule: str = "budget"
    sinks: int = 0
    recent: int = 0
    recent_share: float = 0.0
    """Share of retained entries reserved for the newest tokens, rounded down.

    Sinks take precedence.
    """
    interval: int = 1
    boundary: str = ">"
    rounding: Rounding = ceil_of
    size: Callable[[int, int], int] | None = None
    """``(seen, held) -> held``, replacing a schedule's target, for a rule of the subject's own."""

    def may_prune(self, held: int) -> bool:
        """Whether a layer with ``held`` entries may evict."""
        return held > self.prune_after or (self.boundary == ">=" and held == self.prune_after)

    def newest(self, kept: int) -> int:
        """Number of newest tokens protected in a pass that retains ``kept`` entries."""
        return max(self.recent, min(int(Decimal(str(self.recent_share)) * kept), kept - self.sinks))

    def target(self, seen: int, held: int) -> int:
        """Number of ``held`` entries that an evicting pass retains, after ``seen`` tokens."""
        if self.keep_ratio == 1:
            return held
        if self.size is not None:
            return min(held, self.size(seen, held))
        if not self.may_prune(held):
            return held
        protected = self.sinks + self.recent
        if self.schedule in ("budget", "decoding"):
            wanted = max(1, self.prune_after, protected, self.rounding(self.keep_ratio, seen))
        else:
            wanted = max(1, protected, self.rounding(self.keep_ratio, held))
        return min(held, wanted)

    def acts(self, passes: Sequence[int], number: int, prompt_length: int | None) -> bool:
        """Whether pass ``number``, counted from 0, evicts."""
        prompt = passes[0] if prompt_length is None else prompt_length
        starts = [sum(passes[:index]) for index in range(number + 1)]
        later = sum(start >= prompt for start in starts)
        if self.schedule == "prefill":
            return not later and starts[-1] + passes[number] >= prompt
        if self.schedule == "decoding" and not later:
            return False
        return later % self.interval == 0


def counts(rules: Rules, passes: Sequence[int], prompt_length: int | None = None) -> list[int]:
    """Number of retained entries after each pass."""
    held = seen = 0
    after = []
    for number, length in enumerate(passes):
        held, seen = held + length, seen + length
        if rules.acts(passes, number, prompt_length):
            held = rules.target(seen, held)
        after.append(held)
    return after


def retained(
    rules: Rules, held: Sequence[int], scores: Sequence[float], size: int, seen: int, *, exact: bool = False
) -> list[int]:
    """The ``size`` of the ``held`` tokens of one head that an eviction after ``seen`` tokens retains, ascending.

    Args:
        rules: the rules.
        held: the tokens before the eviction.
        scores: the score of each.
        size: the number of tokens retained.
        seen: the tokens seen so far.
        exact: whether scores are integers, which are not rounded.
    """
    newest = seen - rules.newest(size)
    # Best first: protected, then higher scores, then earlier tokens.
    order = sorted(
        zip(held, scores, strict=True),
        key=lambda entry: (rules.sinks <= entry[0] < newest, -(entry[1] if exact else rounded(entry[1])), entry[0]),
    )
    return sorted(position for position, _ in order[:size])


def history(
    rules: Rules,
    scores: Scores,
    passes: Sequence[int],
    *,
    prompt_length: int | None = None,
    exact: bool = False,
) -> tuple[list[int], list[int]]:
    """Eviction history of one head.

    Args:
        rules: the rules.
        scores: scores of the head's tokens.
        passes: lengths of the passes.
        prompt_length: tokens of the prompt; by default the first pass is the prompt.
        exact: whether scores are integers, which are not rounded.

    Returns:
        ``evicted_at`` per token, and the number of retained entries after each pass.
    """
    evicted_at = [NEVER] * sum(passes)
    held: list[int] = []
    after = counts(rules, passes, prompt_length)
    seen = 0
    for length, size in zip(passes, after, strict=True):
        held += range(seen, seen + length)
        seen += length
        if size < len(held):
            kept = retained(rules, held, scores(held), size, seen, exact=exact)
            for position in set(held) - set(kept):
                evicted_at[position] = seen
            held = kept
    return evicted_at, after
