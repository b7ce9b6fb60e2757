"""The mutants: each breaks one thing, says where that really happened, and names the law that must kill it.

The ids are those of docs/bug-catalogue.md; ``own`` marks mutants of rules that it does not list.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conformance import test_attention, test_counts, test_entries, test_identity, test_leaks, test_rows, test_trends
from conformance.ours import SUBJECTS, ours
from harness.mutants.mutant import Mutant
from harness.mutants.plain import HOOKED, Hooked, Plain, hooked, plain
from pressgauge import KnormPress, Press, PressedCache, attach
from pressgauge.cache import PressedLayer
from pressgauge.conformance.subjects import Subject, subject_of

KNORM = next(subject for subject in SUBJECTS if subject.name == "knorm-budget")


def cached(kind: Callable[..., Any]) -> Subject:
    """A plain cache under ``budget``."""
    return subject_of(kind.__name__, kind, {"score": "knorm"})


CACHE = cached(KnormPress)
"""KnormPress as a plain cache."""


# Deciding and selecting


class FixedThreshold(Plain):
    """Pruning starts at a constant, whatever was asked for."""

    def prunes(self, held: int) -> bool:
        return held > 32 and self.keep_ratio < 1


class Boundary(Plain):
    """Pruning at P entries instead of more than P."""

    def prunes(self, held: int) -> bool:
        return held >= self.prune_after and self.keep_ratio < 1


class ThresholdOfSeen(Plain):
    """Once P was exceeded, a layer is pruned for ever: the threshold looks at what was seen."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.exceeded = False

    def prunes(self, held: int) -> bool:
        self.exceeded = self.exceeded or super().prunes(held)
        return self.exceeded


class HighestNorms(Plain):
    """Keeps the longest keys."""

    def scores(self, keys: Tensor) -> Tensor:
        return -super().scores(keys)


class Floor(Plain):
    """``int(ratio * n)``: one entry off."""

    def count(self, held: int) -> int:
        return max(1, int(self.keep_ratio * held))


class FloatCeiling(Plain):
    """``ceil(ratio * n)`` in floats."""

    def count(self, held: int) -> int:
        return max(1, math.ceil(self.keep_ratio * held))


class Complement(Plain):
    """``n - ceil((1 - ratio) * n)``: what goes is rounded, in floats, instead of what stays."""

    def count(self, held: int) -> int:
        return max(1, held - math.ceil((1 - self.keep_ratio) * held))


class EmptyBudget(Plain):
    """Nothing stays of a short text with a small ratio."""

    def count(self, held: int) -> int:
        return int(self.keep_ratio * held)


class FirstHead(Plain):
    """The scores of KV head 0 decide for all heads."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys)[:, :1].expand(-1, keys.shape[1], -1)


class HeadsCompared(Plain):
    """Scores are compared with those of the other heads: the rank is taken over all heads of a layer."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys) - super().scores(keys).flip(1)


class WholeBatch(Plain):
    """One set for the whole batch, from scores summed over it."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys).sum(dim=0, keepdim=True).expand(keys.shape[0], -1, -1)


class FirstRow(Plain):
    """The first row is treated otherwise: its first token always stays."""

    def scores(self, keys: Tensor) -> Tensor:
        scores = super().scores(keys).clone()
        scores[0, :, 0] = torch.inf
        return scores


class SkipsNeighbour(Plain):
    """``skip_layers`` counts from one."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return super().layer(index + 1, keys, values)


class SkipsNothing(Plain):
    """``skip_layers`` is taken and forgotten."""

    def __init__(self, keep_ratio: float, prune_after: int = 512, skip_layers: tuple[int, ...] = ()) -> None:
        super().__init__(keep_ratio, prune_after)


class LastLayerStays(Plain):
    """A loop over the layers that ends one too early."""

    def compress(self, layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [*super().compress(layers[:-1]), layers[-1]]


class LaterWins(Plain):
    """Of equal scores the later token stays."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        reverse = scores.shape[-1] - 1 - super().choose(scores.flip(-1), count)
        return reverse.sort(dim=-1).values


class EveryOther(Plain):
    """Above half, every other entry stays, whatever its score; below, the best."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        if count > scores.shape[-1] // 2:
            return super().choose(-scores, count)
        return super().choose(scores, count)


class CoarseScores(Plain):
    """Norms are rounded to tenths, whatever their size."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys).mul(10).round()


class HalfNorms(Plain):
    """Norms in the dtype of the keys, which overflow in float16."""

    def scores(self, keys: Tensor) -> Tensor:
        squares: Tensor = (keys * keys).sum(dim=-1).double()
        return -squares


@dataclass(frozen=True)
class NoSinks(KnormPress):
    """Sinks count for the budget, and are evicted all the same: the cache forgets which they are."""

    def score(self, keys: Tensor, *, positions: Tensor, **given: Any) -> Tensor:
        # Above the rank of sinks there is nothing, so that they are given away by being nobody's.
        object.__setattr__(self, "sinks", 0)
        return super().score(keys, positions=positions, **given)


@dataclass(frozen=True)
class RecentOffByOne(KnormPress):
    """One recent token too few is protected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "recent", max(0, self.recent - 1))

    def target(self, seen: int, held: int) -> int:
        # The budget still counts it.
        size = max(self.prune_after, self.sinks + self.recent + 1, super().target(seen, held))
        return held if held <= self.prune_after or self.keep_ratio == 1 else min(held, size)


def _windowed(choose_scores: Callable[[Tensor, int], Tensor]) -> type[Plain]:
    class Windowed(Plain):
        """Protects a window of recent tokens by their scores."""

        def __init__(self, *given: Any, recent: int = 0, **options: Any) -> None:
            super().__init__(*given, **options)
            self.recent = recent

        def count(self, held: int) -> int:
            return min(held, max(self.recent, super().count(held)))

        def scores(self, keys: Tensor) -> Tensor:
            return choose_scores(super().scores(keys).clone(), self.recent)

    return Windowed


def more_than_all(scores: Tensor, recent: int) -> Tensor:
    """As it should be."""
    scores[..., scores.shape[-1] - recent :] = torch.inf
    return scores


def as_much_as_the_best(scores: Tensor, recent: int) -> Tensor:
    """The window gets the best score there is, and loses ties."""
    scores[..., scores.shape[-1] - recent :] = scores.max()
    return scores


def from_minus_recent(scores: Tensor, recent: int) -> Tensor:
    """``x[-w:]``, which is everything with w = 0."""
    scores[..., -recent:] = torch.inf
    return scores


WINDOW = plain(_windowed(more_than_all), takes=("recent",))


# The cache


class Misaligned(Plain):
    """Keys and values gathered with different indices."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = super().layer(index, keys, values)
        return kept_keys, kept_values if kept_keys is keys else kept_values.roll(1, dims=2)


class OtherHeadsValues(Plain):
    """Values are gathered with the indices of the next head."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        held = keys.shape[2]
        if index in self.skip_layers or not self.prunes(held):
            return keys, values
        kept = self.choose(self.scores(keys), self.count(held))
        return self.take(keys, kept), self.take(values, kept.roll(1, dims=1))


class ByScore(Plain):
    """What is kept stays in the order of scores."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :count]


class Twice(Plain):
    """The best entry is kept twice, instead of the worst of those that stay."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        kept = super().choose(scores, count).clone()
        kept[..., -1] = kept[..., 0]
        return kept.sort(dim=-1).values


class Merged(Plain):
    """What goes is added to what stays."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return super().take(tensor, kept) + 0.01 * tensor.mean(dim=2, keepdim=True)


class Rounded(Plain):
    """What stays is kept in eight bits of mantissa."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return super().take(tensor, kept).bfloat16().to(tensor.dtype)


class Widened(Plain):
    """What stays comes back in float32."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return super().take(tensor, kept).float()


class OneValueMore(Plain):
    """One value more than keys."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = super().layer(index, keys, values)
        return kept_keys, kept_values if kept_keys is keys else values[:, :, : kept_values.shape[2] + 1].clone()


class InPlace(Plain):
    """What stays is moved to the front of what came in."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        moved = super().take(tensor, kept)
        tensor[:, :, : moved.shape[2]] = moved
        return moved


class View(Plain):
    """The newest are kept, as a slice: a view, so that the whole stays in memory."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return tensor[:, :, tensor.shape[2] - kept.shape[2] :]


class Resurrecting(Plain):
    """Keeps what it evicted last, and puts it back in place of the next."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.last: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = super().layer(index, keys, values)
        if kept_keys is keys:
            return keys, values
        gone = self.choose(-self.scores(keys), 1)
        back = self.last.pop(index, None)
        self.last[index] = self.take(keys, gone), self.take(values, gone)
        if back is None or back[0].shape[:2] != keys.shape[:2]:
            return kept_keys, kept_values
        return torch.cat([back[0], kept_keys[:, :, 1:]], 2), torch.cat([back[1], kept_values[:, :, 1:]], 2)


class OnlyTheFirst(Plain):
    """A flag that is set when the first sequence ends, and never taken back: only that is compressed."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.sequences = 0
        self.held = 0

    def compress(self, layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        held = layers[0][0].shape[2]
        self.sequences += held < self.held
        result = super().compress(layers) if self.sequences == 0 else layers
        self.held = held
        return result


class Accumulating(Plain):
    """Norms are compared with a mean that goes on from one sequence to the next."""

    total: dict[int, Tensor] = {}  # noqa: RUF012  # that it belongs to the class is what is wrong

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.index = index
        return super().layer(index, keys, values)

    def scores(self, keys: Tensor) -> Tensor:
        mean = keys.double().nan_to_num().mean(dim=(0, 2), keepdim=True)
        before = self.total.get(self.index)
        now = mean if before is None or before.shape != mean.shape else before / 2 + mean
        self.total[self.index] = now
        distance: Tensor = (keys.double() - now).norm(dim=-1)
        return -distance


class Drawing(Plain):
    """Noise from the global random numbers decides."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys) + torch.rand(keys.shape[:3])


class AlwaysOneLess(Plain):
    """Even at ratio 1, and below P, one entry goes."""

    def prunes(self, held: int) -> bool:
        return held > 1

    def count(self, held: int) -> int:
        return super().count(held) if super().prunes(held) else held - 1


class WideAttention(Plain):
    """A pass of many tokens is cut to sixteen, whether or not P was exceeded."""

    def prunes(self, held: int) -> bool:
        return super().prunes(held) or held > 16

    def count(self, held: int) -> int:
        return super().count(held) if super().prunes(held) else 16


class Requantised(Plain):
    """Everything goes through float32 once, whether or not anything is evicted."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = super().layer(index, keys, values)
        return kept_keys.float().to(keys.dtype), kept_values.float().to(values.dtype)


# Schedules


class ActsOnSeen(Plain):
    """The share is that of the tokens seen, although ``step`` was said."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.seen = 0
        self.held = 0

    def compress(self, layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        held = max(keys.shape[2] for keys, _ in layers)
        self.seen = held if held <= self.held or not self.held else self.seen + held - self.held
        result = super().compress(layers)
        self.held = max(keys.shape[2] for keys, _ in result)
        return result

    def count(self, held: int) -> int:
        return min(held, max(1, super().count(max(self.seen, held))))


class EveryPass(Hooked):
    """Acts after every pass, although ``prefill`` was said."""

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        return True


class LongMeansPrompt(Hooked):
    """A pass of several tokens is taken for the prompt."""

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        return length > 1


class Blockwise(Plain):
    """Keys are scored in blocks of 256, and what is left over after the last whole one scores worst."""

    def scores(self, keys: Tensor) -> Tensor:
        scores = super().scores(keys)
        whole = keys.shape[2] // 256 * 256
        if whole:
            scores[..., whole:] = -torch.inf
        return scores


class Pairwise(Plain):
    """Heads are worked on in pairs, and where their number is odd the last one is forgotten: its newest stay."""

    def scores(self, keys: Tensor) -> Tensor:
        scores = super().scores(keys)
        if keys.shape[1] % 2 and keys.shape[1] > 1:
            scores[:, -1] = torch.arange(keys.shape[2])
        return scores


class OncePerContext(Hooked):
    """A layer that was compressed is marked as such, and the marks go when the context is opened."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.done: set[int] = set()

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        if layer in self.done:
            return False
        self.done.add(layer)
        return super().is_prompt(cache, layer, length)

    def __call__(self, model: Any) -> Any:
        self.done.clear()
        return super().__call__(model)


class OneTokenPrompt(Hooked):
    """The first step after a prompt of one token is taken for the prompt as well."""

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        return super().is_prompt(cache, layer, length) or bool(cache.layers[layer].keys.shape[2] == 1 + length)


@dataclass(frozen=True)
class NoInterval(KnormPress):
    """``interval`` is taken and forgotten."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "interval", 1)


# Positions, masks, attention


class HeldPositionsCache(PressedCache):
    """The length of the cache is what it holds, so that the next query's position is."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return min(self.held, default=0) if self.layers and self.ledger.columns else 0


@dataclass(frozen=True)
class HeldPositions(KnormPress):
    """A plain cache that counts what it holds."""

    def cache(self, config: Any, **given: Any) -> PressedCache:
        return HeldPositionsCache(self, config, **given)


class BeforehandLayer(PressedLayer):
    """Evicts as soon as new entries are in, before their attention has run."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        super().update(key_states, value_states, *args, **kwargs)
        self.settle()
        return self.storage.held("keys"), self.storage.held("values")


class HoardingLayer(PressedLayer):
    """What is kept is a view into the whole buffer."""

    def _evict(self) -> None:
        super()._evict()
        for name in ("keys", "values"):
            kept = self.storage[name]
            whole = kept.new_zeros((*kept.shape[:2], self.columns + kept.shape[2], kept.shape[3]))
            whole[:, :, : kept.shape[2]] = kept
            self.storage[name] = whole[:, :, : kept.shape[2]]


def with_layers(kind: type[PressedLayer]) -> type[Press]:
    """A press whose caches have layers of this kind."""

    @dataclass(frozen=True)
    class Layered(KnormPress):
        """KnormPress with other layers."""

        def cache(self, config: Any, **given: Any) -> PressedCache:
            cache = super().cache(config, **given)
            for layer in cache.pressed:
                layer.__class__ = kind
            return cache

    return Layered


@dataclass(frozen=True)
class Remembering(KnormPress):
    """The cache of the first sequence is used for the second as well."""

    caches: list[PressedCache] = field(default_factory=list, compare=False)

    def cache(self, config: Any, **given: Any) -> PressedCache:
        if not self.caches:
            self.caches.append(super().cache(config, **given))
        return self.caches[0]


@dataclass(frozen=True)
class NotInstalled:
    """The factory makes a plain cache, whatever its name."""

    keep_ratio: float
    prune_after: int = 512
    skip_layers: tuple[int, ...] = ()

    def cache(self, config: Any) -> DynamicCache:
        return DynamicCache(config=config)


@dataclass(frozen=True)
class NeverAll(KnormPress):
    """A ratio of 1 keeps nine tenths."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_ratio == 1:
            object.__setattr__(self, "keep_ratio", 0.9)


@dataclass(frozen=True)
class ShareThatGoes(KnormPress):
    """The ratio is that of what is evicted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_ratio < 1:
            object.__setattr__(self, "keep_ratio", round(1 - self.keep_ratio, 9))


class _LeftBehind(Hooked):
    """Hooks are taken away only where nothing goes wrong."""

    def __call__(self, model: Any) -> Any:
        @contextmanager
        def attached() -> Any:
            handles = [
                layer.self_attn.register_forward_hook(self.after, with_kwargs=True) for layer in model.model.layers
            ]
            yield
            for handle in handles:
                handle.remove()

        return attached()


class _Registered(Hooked):
    """An attention function is registered and never taken back."""

    def __call__(self, model: Any) -> Any:
        ALL_ATTENTION_FUNCTIONS.register("left-behind", ALL_ATTENTION_FUNCTIONS["sdpa"])
        ALL_MASK_ATTENTION_FUNCTIONS.register("left-behind", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        return super().__call__(model)


def while_attached(owner: Any, **broken: Callable[..., Any]) -> type[Press]:
    """KnormPress, with something of the package broken for as long as it is attached."""

    @dataclass(frozen=True)
    class Broken(KnormPress):
        """KnormPress on something broken."""

        def __call__(self, model: Any) -> Any:
            @contextmanager
            def attached() -> Any:
                with pytest.MonkeyPatch.context() as patch, KnormPress.__call__(self, model):
                    for name, instead in broken.items():
                        patch.setattr(owner, name, instead)
                    yield

            return attached()

    return Broken


def padding_is_text(mask: Any, cache: PressedCache, rows: int, tokens: int) -> list[int]:
    """The mask is not looked at: padding is scored and kept as if it were text."""
    return [0] * rows


def not_looked_at(*given: Any) -> None:
    """The mask that the model made is not looked at."""


def everything_is_seen(layer: PressedLayer, tokens: int) -> Tensor:
    """A mask for another number of entries: the tokens of a chunk see its end."""
    return torch.ones((1, 1, tokens, layer.used), dtype=torch.bool)


def attached(kind: Callable[..., Press]) -> Subject:
    """A press under ``budget``, attached."""
    return ours("knorm", "budget", kind)


COMPRESSORS = [
    Mutant("S1", "pruning starts at 32 where 512 was meant", "the reports that this project starts from",
           plain(FixedThreshold), test_counts.test_nothing_is_pruned_up_to_prune_after),
    Mutant("S2", "pruning at P entries", "l2compress cache.py",
           plain(Boundary), test_counts.test_nothing_is_pruned_up_to_prune_after),
    Mutant("own-threshold", "once P was exceeded, pruning never ends", "plausible",
           plain(ThresholdOfSeen), test_counts.test_nothing_is_pruned_up_to_prune_after),
    Mutant("S3", "keeps the highest norms", "KVCache-Factory 6057af9",
           plain(HighestNorms), test_entries.test_the_best_entries_stay),
    Mutant("S4-floor", "floor instead of ceil", "kvpress ScorerPress",
           plain(Floor), test_counts.test_counts_are_those_of_exact_numbers),
    Mutant("S4-ceil", "ceil of a float product", "l2compress",
           plain(FloatCeiling), test_counts.test_counts_are_those_of_exact_numbers),
    Mutant("S4-complement", "what goes is rounded, in floats, instead of what stays", "kvpress ScorerPress",
           plain(Complement), test_counts.test_counts_are_those_of_exact_numbers),
    Mutant("S5", "nothing stays of a short text", "kvpress PR 264",
           plain(EmptyBudget), test_counts.test_the_shortest_texts_and_the_smallest_ratios),
    Mutant("S6", "a window that gets the best score loses ties", "kvpress issue 226, PR 227",
           plain(_windowed(as_much_as_the_best), takes=("recent",)),
           test_entries.test_sinks_and_recent_tokens_are_never_evicted, WINDOW),
    Mutant("S7", "x[-w:] with w = 0 protects everything", "kvpress PR 277; H2O df486e7",
           plain(_windowed(from_minus_recent), takes=("recent",)), test_entries.test_the_best_entries_stay, WINDOW),
    Mutant("S8", "head 0 decides for all", "kvpress b1d2865",
           plain(FirstHead), test_entries.test_permuting_heads_permutes_the_result),
    Mutant("S8-compared", "scores are compared over heads", "plausible",
           plain(HeadsCompared), test_entries.test_the_best_entries_stay),
    Mutant("S8-odd", "of an odd number of heads the last is forgotten", "plausible",
           plain(Pairwise), test_entries.test_the_best_entries_stay),
    Mutant("own-blocks", "what lies beyond the last whole block of keys is not scored", "plausible",
           plain(Blockwise), test_entries.test_the_best_entries_of_a_long_text_stay),
    Mutant("S9", "one set for the whole batch", "H2O",
           plain(WholeBatch), test_rows.test_rows_are_as_they_are_alone),
    Mutant("own-row", "the first row is treated otherwise", "plausible",
           plain(FirstRow), test_rows.test_permuting_rows_permutes_the_result),
    Mutant("S10", "skip_layers off by one", "plausible",
           plain(SkipsNeighbour), test_counts.test_a_skipped_layer_keeps_everything),
    Mutant("S10-forgotten", "skip_layers is forgotten", "plausible",
           plain(SkipsNothing), test_counts.test_a_skipped_layer_keeps_everything),
    Mutant("own-last", "the last layer is never pruned", "plausible",
           plain(LastLayerStays), test_counts.test_every_layer_holds_what_the_schedule_says),
    Mutant("S11", "sinks are evicted", "keys_values issue 140",
           attached(NoSinks), test_entries.test_sinks_and_recent_tokens_are_never_evicted, KNORM),
    Mutant("own-recent", "one recent token too few is protected", "plausible",
           attached(RecentOffByOne), test_entries.test_sinks_and_recent_tokens_are_never_evicted, KNORM),
    Mutant("own-ties", "of equal scores the later token stays", "plausible",
           plain(LaterWins), test_entries.test_of_equal_entries_the_earlier_stay),
    Mutant("own-nested", "above half the worst stay", "plausible",
           plain(EveryOther), test_entries.test_what_a_smaller_ratio_keeps_a_larger_one_keeps_too),
    Mutant("own-scale", "norms are rounded to tenths", "plausible",
           plain(CoarseScores), test_entries.test_scaling_a_head_by_a_power_of_two_changes_nothing),
    Mutant("S12", "squares overflow in float16", "plausible",
           plain(HalfNorms), test_entries.test_extreme_keys_are_keys),
    Mutant("C1", "values out of step with keys", "the reports that this project starts from",
           plain(Misaligned), test_entries.test_entries_are_those_that_came_in),
    Mutant("C1-heads", "values are gathered with another head's indices", "plausible",
           plain(OtherHeadsValues), test_entries.test_entries_are_those_that_came_in),
    Mutant("C2", "entries in the order of scores", "kvpress issue 173; SnapKV 31",
           plain(ByScore), test_entries.test_what_is_read_is_in_the_order_of_positions),
    Mutant("own-twice", "an entry is kept twice", "plausible",
           plain(Twice), test_entries.test_entries_are_those_that_came_in),
    Mutant("own-merged", "what goes is merged into what stays, undeclared", "plausible",
           plain(Merged), test_entries.test_entries_are_those_that_came_in),
    Mutant("own-rounded", "what stays is rounded, undeclared", "plausible",
           plain(Rounded), test_entries.test_entries_are_those_that_came_in),
    Mutant("own-dtype", "what stays comes back in float32", "plausible",
           plain(Widened), test_entries.test_dtype_and_device_are_kept),
    Mutant("own-shape", "one value more than keys", "plausible",
           plain(OneValueMore), test_counts.test_heads_and_layers_agree_on_the_shape),
    Mutant("own-inputs", "writes into what came in", "plausible",
           plain(InPlace), test_leaks.test_what_is_handed_in_is_never_written_to),
    Mutant("own-revived", "an evicted entry comes back", "plausible",
           plain(Resurrecting), test_entries.test_an_evicted_entry_never_comes_back),
    Mutant("C4", "a slice keeps the whole alive", "TabPFN PR 933",
           plain(View), test_leaks.test_what_is_handed_in_is_never_written_to),
    Mutant("C4-buffer", "a buffer is never made smaller", "TabPFN PR 933",
           cached(with_layers(HoardingLayer)), test_leaks.test_what_is_evicted_is_freed, CACHE),
    Mutant("C5", "only the first sequence is compressed", "KVCache-Factory issue 54",
           plain(OnlyTheFirst), test_leaks.test_a_second_sequence_is_as_fresh_as_the_first),
    Mutant("C5-context", "only the first sequence of a context is compressed", "KVCache-Factory issue 54",
           hooked(OncePerContext), test_leaks.test_a_second_sequence_is_as_fresh_as_the_first, HOOKED),
    Mutant("C5-cache", "a second sequence meets the first one's cache", "kvpress PR 192",
           cached(Remembering), test_leaks.test_two_sequences_side_by_side_do_not_meet, CACHE),
    Mutant("C5-buffer", "a mean goes on into the next sequence", "KVCache-Factory issue 54",
           plain(Accumulating), test_entries.test_later_keys_change_no_earlier_decision),
    Mutant("own-random", "global random numbers decide", "plausible",
           plain(Drawing), test_leaks.test_the_same_again_is_the_same),
    Mutant("own-copies", "what was seen is counted in the compressor, not in the cache", "plausible",
           plain(ActsOnSeen), test_attention.test_a_copy_goes_its_own_way),
    Mutant("C6", "hooks stay after an exception", "kvpress PR 244",
           hooked(_LeftBehind), test_leaks.test_the_model_is_left_as_it_was, HOOKED),
    Mutant("C6-registered", "a registered attention function stays", "plausible",
           hooked(_Registered), test_leaks.test_the_model_is_left_as_it_was, HOOKED),
    Mutant("C7", "the first step after a one-token prompt is taken for a prompt", "kvpress PR 243",
           hooked(OneTokenPrompt), test_counts.test_the_step_after_a_one_token_prompt_is_a_step, HOOKED),
    Mutant("C7-long", "a pass of several tokens is taken for the prompt", "kvpress PR 243",
           hooked(LongMeansPrompt), test_counts.test_the_step_after_a_one_token_prompt_is_a_step, HOOKED),
    Mutant("own-prefill", "acts after every pass, although prefill was said", "plausible",
           hooked(EveryPass), test_counts.test_every_layer_holds_what_the_schedule_says, HOOKED),
    Mutant("own-step", "keeps a share of what was seen, although step was said", "plausible",
           plain(ActsOnSeen), test_counts.test_every_layer_holds_what_the_schedule_says),
    Mutant("own-interval", "interval is forgotten", "plausible",
           attached(NoInterval), test_counts.test_every_layer_holds_what_the_schedule_says, KNORM),
    Mutant("C3", "a query's position is the number held", "VeloxQuant-MLX issue 171, 174; kvpress issue 16",
           cached(HeldPositions), test_attention.test_a_token_is_rotated_by_the_number_of_tokens_seen, CACHE),
    Mutant("own-beforehand-generate", "evicts before attention has run, in model.generate", "plausible",
           cached(with_layers(BeforehandLayer)), test_identity.test_generate_attends_to_what_is_held, CACHE),
    Mutant("own-beforehand", "evicts before attention has run", "plausible",
           cached(with_layers(BeforehandLayer)), test_attention.test_logits_are_those_of_attention_to_what_is_held,
           CACHE),
    Mutant("C8", "a mask that was made for another number of entries", "transformers issue 35168",
           attached(while_attached(PressedLayer, mask=everything_is_seen)),
           test_attention.test_later_tokens_change_no_earlier_logit, KNORM),
    Mutant("C9", "padding is scored and kept as if it were text", "KIVI issue 18",
           attached(while_attached(attach, _padding=padding_is_text, strange_mask=not_looked_at)),
           test_rows.test_padding_counts_for_nothing, KNORM),
    Mutant("own-trend", "keep_ratio is the share that goes", "plausible, where others count compression_ratio",
           attached(ShareThatGoes), test_trends.test_nll_does_not_fall_as_less_is_kept, KNORM),
    Mutant("M2", "the compressor was never installed", "KVCache-Factory 485af3c, 7855979",
           cached(NotInstalled), test_counts.test_something_is_evicted, CACHE),
    Mutant("own-one-less", "even at ratio 1 an entry goes", "plausible",
           plain(AlwaysOneLess), test_identity.test_a_ratio_of_one_changes_nothing),
    Mutant("own-all", "a ratio of 1 keeps nine tenths, in model.generate", "plausible",
           cached(NeverAll), test_identity.test_generate_with_a_ratio_of_one_is_as_without, CACHE),
    Mutant("own-all-dtype", "a ratio of 1 keeps nine tenths, in half precision", "plausible",
           cached(NeverAll), test_identity.test_a_ratio_of_one_changes_nothing_in_any_dtype, CACHE),
    Mutant("own-cut", "long passes are cut although P is not exceeded", "plausible",
           plain(WideAttention), test_attention.test_passes_do_not_matter_while_nothing_is_evicted),
    Mutant("own-float32", "everything goes through float32", "plausible",
           plain(Requantised), test_identity.test_a_short_sequence_changes_nothing),
]  # fmt: skip
