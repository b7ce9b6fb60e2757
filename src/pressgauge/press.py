"""The presses: how entries are scored, and which of them stay.

Scores follow kvpress: higher means keep. Shapes: B batch, K KV heads, N entries held, D head dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pressgauge.arguments import check_config, check_model, check_tensor, described
from pressgauge.budget import Budget, Ledger, Schedule, exact_floor
from pressgauge.votes import AttentionSums, LastQueries, Votes

if TYPE_CHECKING:
    from pressgauge.cache import PressedCache

_SIGNIFICANT_BITS = 10
"""To which scores are rounded. With fewer, distinct scores become ties; with more, ties fall apart by the noise of
another order of sums: docs/rules.md has the figures."""
_PROTECTED = 1 << 27
"""Above every score's place in the order; minus this is the place of NaN, below every score."""
_POSITIONS = (1 << 32) - 1
_KEYS = "[batch, KV heads, tokens, dimension]"
FILLER = torch.iinfo(torch.int64).min
"""The rank of filler, below every entry's."""


def wide(keys: Tensor) -> Tensor:
    """``keys`` in float32, or in float64 if that is what they are."""
    return keys if keys.dtype == torch.float64 else keys.float()


def _places(scores: Tensor) -> Tensor:
    """Scores as int64 in the same order, with equal integers where 10 significant bits are equal.

    Integer scores are exact, and are not rounded.
    """
    if not scores.is_floating_point():
        return scores.long().clamp(1 - _PROTECTED, _PROTECTED - 1)
    scores = wide(scores)
    bits = scores.view(torch.int64 if scores.dtype == torch.float64 else torch.int32)
    mantissa = 52 if scores.dtype == torch.float64 else 23
    dropped = mantissa - (_SIGNIFICANT_BITS - 1)
    whole = torch.iinfo(bits.dtype)
    size = bits & whole.max
    # Half to even, as IEEE rounds; a carry runs on into the exponent, as it should.
    odd = (size >> dropped).bitwise_and_(1)
    size.add_(odd).add_((1 << (dropped - 1)) - 1).bitwise_right_shift_(dropped)
    # In two's complement, what is less than 0 is its size with all bits turned, and 1.
    minus = bits >> (whole.bits - 1)
    return size.bitwise_xor_(minus).sub_(minus).masked_fill_(scores.isnan(), -_PROTECTED).long()


def rank(scores: Tensor, positions: Tensor, sinks: int = 0) -> Tensor:
    """One integer per entry that says which stay: the higher ones.

    Equal scores rank the earlier position higher, NaN ranks below every number, and the first ``sinks`` positions
    above all. No two entries of a head have the same rank.

    Args:
        scores: ``[B, K, N]``, of any floating or integer dtype.
        positions: ``[B, K, N]``, -1 where there is filler instead of an entry.
        sinks: number of protected first positions.

    Returns:
        ``[B, K, N]`` int64; ``FILLER`` at filler.
    """
    positions = positions.long()
    places = _places(scores)
    if sinks:
        places = places.masked_fill(positions < sinks, _PROTECTED)
    return (places << 32).add_(_POSITIONS).sub_(positions).masked_fill_(positions < 0, FILLER)


def protect(ranks: Tensor, positions: Tensor, first: Tensor | int) -> Tensor:
    """``ranks`` with the entries at positions from ``first`` (of all rows, 0 or more, or ``[B, 1, 1]``) on put above
    all; never filler, whose position -1 may lie beyond the ``first`` of a row with fewer tokens than are protected."""
    if isinstance(first, Tensor):
        first = first.clamp(min=0)
    return ranks.masked_fill(positions >= first, torch.iinfo(torch.int64).max)


def spare(budget: Budget, ranks: Tensor, positions: Tensor, ledger: Ledger) -> Tensor:
    """``ranks`` with the newest tokens of each row, as many as the budget protects, put above all."""
    first = [seen - budget.newest(held) for seen, held in zip(ledger.seen, ledger.held, strict=True)]
    if first == ledger.seen:
        return ranks
    if len(set(first)) == 1:
        return protect(ranks, positions, first[0])
    return protect(ranks, positions, torch.tensor(first, device=ranks.device)[:, None, None])


def choose(ranks: Tensor, positions: Tensor, keep: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries stay.

    Args:
        ranks: ``[B, K, N]``.
        positions: ``[B, K, N]``, -1 at filler.
        keep: per row, how many entries stay.

    Returns:
        With n the largest of ``keep``: the indices ``[B, K, n]`` of what stays, in order of position, shorter rows
        with filler in front; their positions ``[B, K, n]``, -1 at filler; and the positions of what goes
        ``[B, K, N - min(keep)]``, with -1 where nothing goes.
    """
    order = ranks.argsort(dim=-1, descending=True)
    sorted_positions = positions.gather(2, order)
    most, least = max(keep), min(keep)
    if most == least:
        stays, gone = sorted_positions[..., :most], sorted_positions[..., most:]
    else:
        place = torch.arange(ranks.shape[-1], device=ranks.device)
        staying = place < torch.tensor(keep, device=ranks.device)[:, None, None]
        stays = sorted_positions.masked_fill(~staying, -1)[..., :most]
        gone = sorted_positions.masked_fill(staying, -1)[..., least:]
    stays, by_position = stays.sort(dim=-1, stable=True)
    return order[..., :most].gather(2, by_position), stays, gone


def last_choice(ranks: Tensor) -> Tensor:
    """The index ``[B, K, 1]`` of the entry of lowest rank in each head, never of filler."""
    # One less than FILLER, the lowest of integers, is the highest of them.
    return (ranks - 1).argmin(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Press(Budget, ABC):
    """A compression method: a budget, and a score that says which entries to spend it on.

    A press is an immutable value and keeps no state: what it does to a batch is kept by the cache.
    """

    fixed_scores: ClassVar[bool] = False
    """Whether an entry's score depends on that entry alone and never changes. It lets caches and ``replay`` skip work,
    and is checked at a layer's first eviction, see ``check_fixed``."""
    needs_queries: ClassVar[bool] = False
    """Whether ``score`` needs ``votes``. Only an attached press sees queries, and such scores are not fixed."""

    def votes(self) -> Votes:
        """What a layer is to remember of queries, empty; for presses that need them."""
        raise NotImplementedError(f"{type(self).__name__} needs queries, so it has to say which: define votes()")

    @abstractmethod
    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Score entries; those of highest score stay.

        Args:
            keys: ``[B, K, N, D]``, as rotated when they were new.
            positions: ``[B, K, N]``, ascending, counted in the row's own tokens; -1 where there is filler, whose score
                is ignored: keys of zeros in front of padded rows and, for presses that need votes, anywhere.
            layer: index of the layer.
            votes: what the layer remembers of queries, the last pass's included, for presses that need them.

        Returns:
            ``[B, K, N]``. Floating scores are ranked by their first 10 significant bits, integers exactly.
        """

    def compress(self, keys: Tensor, values: Tensor, *, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Cut one layer's keys and values as if they had been fed in one pass.

        Args:
            keys: ``[B, K, N, D]``.
            values: ``[B, K, N, D']``.
            layer: index of the layer.

        Returns:
            What stays, in order of position; the arguments themselves if nothing is evicted.

        Raises:
            TypeError: if these are no tensors.
            ValueError: if the shapes do not fit, or the press needs queries.
        """
        check_tensor("keys", keys, _KEYS)
        check_tensor("values", values, _KEYS)
        if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                "keys and values must be [batch, KV heads, tokens, dimension] and agree in the first three, "
                f"got {list(keys.shape)} and {list(values.shape)}"
            )
        if self.needs_queries:
            raise ValueError(f"{type(self).__name__} needs queries, so it works attached only: with press(model):")
        rows, heads, tokens, _ = keys.shape
        if layer in self.skipped or not tokens or not rows or self.target(tokens, tokens) == tokens:
            return keys, values
        ledger = Ledger(self)
        ledger.feed(tokens, [0] * rows)
        positions = torch.arange(tokens, device=keys.device).expand(rows, heads, tokens)
        ranks = rank_entries(self, keys, positions, layer)
        kept, _, _ = choose(spare(self, ranks, positions, ledger), positions, ledger.held)
        return tuple(t.gather(2, kept[..., None].expand(-1, -1, -1, t.shape[-1])) for t in (keys, values))  # type: ignore[return-value]

    # The two ways in build on this module, so they are imported where they are used.

    def cache(
        self, config: PretrainedConfig, *, prompt_length: int | None = None, unpadded: bool = False
    ) -> "PressedCache":
        """A cache for ``model.generate`` and plain forward calls, with stock attention: ``cache=`` since transformers
        5.24, see ``pressgauge.cache_argument``.

        Args:
            config: the model's configuration.
            prompt_length: tokens of the prompt; the first pass is the prompt if it is not given.
            unpadded: a promise that no row is padded, which a cache cannot see; needed with more than one row.

        Raises:
            TypeError: if this is no configuration.
            ValueError: if this press does not support this model, or needs queries.
        """
        from pressgauge.cache import PressedCache

        check_config(config)
        if self.needs_queries:
            raise ValueError(f"{type(self).__name__} needs queries, which a cache never sees: use with press(model):")
        return PressedCache(self, config, prompt_length=prompt_length, unpadded=unpadded)

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Attach the press to a model: inside ``with press(model):`` every cache of the model is compressed.

        Raises:
            TypeError: if this is no model.
            ValueError: if this press does not support this model, or the model already carries a press.
        """
        from pressgauge.attention import attach

        check_model(model)
        return attach(self, model)

    def resolved(self, model: PreTrainedModel) -> Self:
        """This press with ``skip_layers`` as indices of layers of a model, as it would be attached to it.

        Raises:
            TypeError: if this is no model.
            ValueError: if this press does not support this model, with all reasons.
        """
        from pressgauge.support import of_model

        check_model(model)
        return of_model(model).resolve(self)


def check_press(press: object) -> None:
    """Raise a ``TypeError`` unless this is a press, or None for an uncompressed cache."""
    if press is not None and not isinstance(press, Press):
        raise TypeError(f"press must be a press such as KnormPress(0.5), or None for no press, got {described(press)}")


def rank_entries(
    press: Press, keys: Tensor, positions: Tensor, layer: int, votes: Votes | None = None, *, first: bool = False
) -> Tensor:
    """``rank`` of what a press scores, once that was checked. Arguments are those of ``Press.score``.

    Args:
        first: these are the first entries of the layer that are ranked, so that a claim of ``fixed_scores`` is checked.

    Raises:
        TypeError, ValueError: if the scores are no tensor ``[B, K, N]``, or depend on more than ``fixed_scores`` says.
    """
    scores = press.score(keys, positions=positions, layer=layer, votes=votes)
    shape = "[batch, KV heads, entries] with one score per key"
    check_tensor(f"the scores of {type(press).__name__}", scores, shape)
    if scores.shape != positions.shape:
        raise ValueError(
            f"the scores of {type(press).__name__} must be {list(positions.shape)}, {shape}, got {list(scores.shape)}"
        )
    if first and press.fixed_scores:
        check_fixed(press, scores, keys, positions, layer)
    return rank(scores, positions, press.sinks)


_LOOKED_AT = 64
"""Entries whose scores are asked for again, at most."""


def check_fixed(press: Press, scores: Tensor, keys: Tensor, positions: Tensor, layer: int) -> None:
    """Raise a ``ValueError`` if scores of a press that claims ``fixed_scores`` are others when fewer entries are asked.

    Asked again are the first entries without the later ones, and the one in the middle alone: a score that depends on
    other entries, on how many there are, or on when it is asked, changes in one of the two.

    Args:
        press: the press.
        scores: ``[B, K, N]``, what it gave for all entries.
        keys, positions, layer: what it was given for them, as in ``Press.score``.
    """
    entries = scores.shape[-1]
    middle = entries // 2
    allowed: Tensor | None = None
    if scores.is_floating_point():
        # For another shape a kernel may sum in another order, even for an honest press. The difference is in the last
        # digits of the terms, which may be larger than their sum: so it is held against the largest score of the head,
        # with 12 of the 24 bits of float32, or all but two of dtypes that have fewer.
        eps = max(torch.finfo(t.dtype).eps for t in (scores, keys) if t.is_floating_point())
        sizes = scores.masked_fill(positions < 0, 0).abs().nan_to_num(0, 0, 0)
        allowed = sizes.amax(dim=-1, keepdim=True) * max(2**-12, 4 * eps)
    for part in (slice(0, max(1, min(middle, _LOOKED_AT))), slice(middle, middle + 1)):
        again = press.score(keys[:, :, part], positions=positions[:, :, part], layer=layer)
        before, own = scores[..., part], positions[..., part] >= 0
        same = (again == before) | again.isnan() & before.isnan()
        if allowed is not None:
            same |= (again - before).abs() <= allowed
        if bool((same | ~own).all()):
            continue
        row, head, entry = (~same & own).nonzero()[0].tolist()
        position = int(positions[row, head, part.start + entry])
        raise ValueError(
            f"{type(press).__name__} says fixed_scores = True, but in layer {layer} the score of the entry at position "
            f"{position} was {float(before[row, head, entry]):.6g} among {entries} entries and then "
            f"{float(again[row, head, entry]):.6g} among {part.stop - part.start}: set fixed_scores = False in the "
            "class"
        )


@dataclass(frozen=True)
class KnormPress(Press):
    """Keeps the keys of lowest L2 norm: the score is ``-||key||`` (Devoto et al. 2024, arXiv 2406.11430)."""

    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: minus the norm, taken in float32 or wider."""
        norm: Tensor = torch.linalg.vector_norm(wide(keys), dim=-1)
        return -norm


@dataclass(frozen=True)
class StreamingLLMPress(Press):
    """Keeps the first tokens and the newest: the score is the position (Xiao et al. 2023, arXiv 2309.17453).

    Unlike in the paper, keys keep the positions that they were given; they are not rotated anew to their place in
    the cache.
    """

    fixed_scores: ClassVar[bool] = True
    sinks: int = 4

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the position, an integer."""
        return positions


def _signed(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True)
class RandomPress(Press):
    """Keeps entries at random: the score is a hash of (seed, layer, head, the row's own position) and nothing else."""

    fixed_scores: ClassVar[bool] = True
    seed: int = 0

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: 26 bits of a 64-bit mixing of the four integers (MurmurHash3's finaliser)."""
        heads = torch.arange(keys.shape[1], device=keys.device)[:, None]
        mixed = positions.long() * _signed(0x9E3779B97F4A7C15) + heads * _signed(0xC2B2AE3D27D4EB4F)
        mixed = mixed + _signed(layer * 0x165667B19E3779F9 + self.seed * 0x27D4EB2F165667C5)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * _signed(factor)
        return (mixed ^ (mixed >> 33)) & 0x3FFFFFF


@dataclass(frozen=True)
class KeyDiffPress(Press):
    """Keeps the keys that differ most from the others: the score is minus the cosine between a key and the mean of the
    unit keys that are held now (Park et al. 2025, arXiv 2504.15364)."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: minus the cosine to the mean direction, in float32 or wider."""
        unit = torch.nn.functional.normalize(wide(keys), dim=-1)
        mean = unit.masked_fill((positions < 0)[..., None], 0).sum(dim=2, keepdim=True)
        return -(unit * torch.nn.functional.normalize(mean, dim=-1)).sum(dim=-1)


@dataclass(frozen=True)
class H2OPress(Press):
    """Keeps the heavy hitters and the newest: the score is the attention that an entry has received, summed over all
    queries since it came (Zhang et al. 2023, arXiv 2306.14048, section 4.2 and algorithm 1: ``F_score(T)`` is the sum
    of the normalised attention that T is given, and the recent tokens take half of the budget).

    The sum favours old entries, which more queries have seen; so does the paper's. There every head keeps its own
    entries; with grouped queries the heads that read one KV head are averaged, which ranks as their sum does. The
    authors' code takes two shares of the prompt's length, for heavy hitters and for recent tokens, equal in the paper.

    Attributes:
        recent_share: the share of what stays that is the newest tokens, rounded down; ``recent`` of them at least.
    """

    needs_queries: ClassVar[bool] = True
    recent_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.recent_share, bool) or not isinstance(self.recent_share, Real):
            raise TypeError(f"recent_share must be a number in [0, 1], got {self.recent_share!r}")
        if not 0 <= float(self.recent_share) <= 1:
            raise ValueError(f"recent_share must be in [0, 1], got {self.recent_share}")

    def newest(self, kept: int) -> int:
        """A share of what stays, as far as the first tokens leave room for it."""
        return max(self.recent, min(exact_floor(self.recent_share, kept), kept - self.sinks))

    def votes(self) -> Votes:
        """Sums of attention."""
        return AttentionSums()

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the attention received so far, in float32 or wider."""
        assert votes is not None
        return votes.of(keys)


@dataclass(frozen=True)
class SnapKVPress(Press):
    """Keeps what the newest queries look at, and its neighbours (Li et al. 2024, arXiv 2404.14469, section 4.2 and
    listing 1): the attention that an entry receives from the last ``recent`` tokens, the observation window, averaged
    over ``kernel`` neighbouring entries. The window itself is never evicted.

    Paper and authors' code agree on an average of 5 neighbours and differ in the window: 16 or 32 in the experiments,
    64 in the code, as here. What lies beyond the ends of the text, or in the window, counts as nothing. With grouped
    queries the heads that read one KV head are averaged. In the paper the prompt is compressed once, in one pass; here
    the window is that of the last tokens, whichever passes fed them.

    Attributes:
        kernel: how many neighbouring entries are averaged, an odd number.
    """

    needs_queries: ClassVar[bool] = True
    recent: int = 64
    schedule: Schedule = "prefill"
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent < 1:
            raise ValueError(f"recent must be at least 1 for SnapKVPress, whose newest tokens vote, got {self.recent}")
        if isinstance(self.kernel, bool) or not isinstance(self.kernel, int):
            raise TypeError(f"kernel must be a whole number, got {self.kernel!r}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of neighbours, got {self.kernel}")

    def votes(self) -> Votes:
        """The queries of the window."""
        return LastQueries(self.recent)

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the window's mean attention, averaged over neighbours, in float32 or wider."""
        assert votes is not None
        received = votes.of(keys)
        received[..., -self.recent :] = 0
        # Filler received nothing, and may stand between neighbours, who move together, with nothing before and behind.
        place = (positions >= 0).cumsum(dim=-1)
        together = received.new_zeros((*received.shape[:2], received.shape[2] + self.kernel))
        together[..., self.kernel // 2 :].scatter_add_(2, place, received)
        return together.unfold(2, self.kernel, 1).sum(dim=-1).div_(self.kernel).gather(2, place)


@dataclass(frozen=True)
class TOVAPress(Press):
    """Keeps what the last token looks at: the score is the attention of the last query of the pass, averaged over all
    heads of the layer, which therefore all keep the same tokens (Oren et al. 2024, arXiv 2401.06104, section 4).

    As in the paper the last token is a candidate like all others; kvpress never evicts it, as ``recent=1`` does here.
    """

    needs_queries: ClassVar[bool] = True

    def votes(self) -> Votes:
        """The last query."""
        return LastQueries(1)

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """``[B, K, N]``: the last query's attention, the same for all KV heads, in float32 or wider."""
        assert votes is not None
        received = votes.of(keys)
        return received.mean(dim=1, keepdim=True).expand_as(received)
