"""Mutants of compressors: each has one bug, the place where it was seen, and the law that must kill it.

Their ids begin with those of docs/bug-catalogue.md, or with ``own`` for bugs that it does not list.
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

from conformance import (
    test_attention,
    test_counts,
    test_entries,
    test_identity,
    test_leaks,
    test_rows,
    test_smoke,
    test_trends,
)
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


# Decisions and selection


class FixedThreshold(Plain):
    """Eviction starts at a constant, whatever ``prune_after`` is."""

    def evicts(self, held: int) -> bool:
        return held > 32 and self.keep_ratio < 1


class Boundary(Plain):
    """Evicts at P entries instead of more than P."""

    def evicts(self, held: int) -> bool:
        return held >= self.prune_after and self.keep_ratio < 1


class ThresholdOfSeen(Plain):
    """The threshold compares tokens seen: once P is exceeded, eviction never ends."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.exceeded = False

    def evicts(self, held: int) -> bool:
        self.exceeded = self.exceeded or super().evicts(held)
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
    """``n - ceil((1 - ratio) * n)``: the number of evicted entries is rounded, in floats, instead of the retained
    ones."""

    def count(self, held: int) -> int:
        return max(1, held - math.ceil((1 - self.keep_ratio) * held))


class EmptyBudget(Plain):
    """A short text with a small ratio retains nothing."""

    def count(self, held: int) -> int:
        return int(self.keep_ratio * held)


class FirstHead(Plain):
    """The scores of KV head 0 are used for all heads."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys)[:, :1].expand(-1, keys.shape[1], -1)


class HeadsCompared(Plain):
    """Entries are ranked over all heads of a layer instead of each head."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys) - super().scores(keys).flip(1)


class WholeBatch(Plain):
    """One retained set for the whole batch, from scores summed over it."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys).sum(dim=0, keepdim=True).expand(keys.shape[0], -1, -1)


class FirstRow(Plain):
    """The first row is treated differently: its first token is always retained."""

    def scores(self, keys: Tensor) -> Tensor:
        scores = super().scores(keys).clone()
        scores[0, :, 0] = torch.inf
        return scores


class SkipsNeighbour(Plain):
    """``skip_layers`` counts from one."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return super().layer(index + 1, keys, values)


class SkipsNothing(Plain):
    """``skip_layers`` is accepted and ignored."""

    def __init__(self, keep_ratio: float, prune_after: int = 512, skip_layers: tuple[int, ...] = ()) -> None:
        super().__init__(keep_ratio, prune_after)


class LastLayerSkipped(Plain):
    """A loop over the layers that ends one too early."""

    def compress(self, layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [*super().compress(layers[:-1]), layers[-1]]


class LaterWins(Plain):
    """Of equal scores the later token is retained."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        reverse = scores.shape[-1] - 1 - super().choose(scores.flip(-1), count)
        return reverse.sort(dim=-1).values


class EveryOther(Plain):
    """With more than half retained, the lowest scores are retained; otherwise the highest."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        if count > scores.shape[-1] // 2:
            return super().choose(-scores, count)
        return super().choose(scores, count)


class CoarseScores(Plain):
    """Norms are rounded to tenths, whatever their scale."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys).mul(10).round()


class HalfNorms(Plain):
    """Norms in the dtype of the keys, which overflow in float16."""

    def scores(self, keys: Tensor) -> Tensor:
        squares: Tensor = (keys * keys).sum(dim=-1).double()
        return -squares


@dataclass(frozen=True)
class NoSinks(KnormPress):
    """Sinks count towards the budget and are evicted anyway."""

    def score(self, keys: Tensor, *, positions: Tensor, **given: Any) -> Tensor:
        # Without sinks, no entry is ranked as one.
        object.__setattr__(self, "sinks", 0)
        return super().score(keys, positions=positions, **given)


@dataclass(frozen=True)
class RecentOffByOne(KnormPress):
    """Protects one recent token too few."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "recent", max(0, self.recent - 1))

    def target(self, seen: int, held: int) -> int:
        # The budget still includes it.
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
    """The correct score of a window."""
    scores[..., scores.shape[-1] - recent :] = torch.inf
    return scores


def as_much_as_the_best(scores: Tensor, recent: int) -> Tensor:
    """The window gets the highest score of all, and loses ties."""
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
        if index in self.skip_layers or not self.evicts(held):
            return keys, values
        kept = self.choose(self.scores(keys), self.count(held))
        return self.take(keys, kept), self.take(values, kept.roll(1, dims=1))


class ByScore(Plain):
    """Retained entries are in the order of scores."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :count]


class Twice(Plain):
    """The best entry is retained twice, in place of the last retained one."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        kept = super().choose(scores, count).clone()
        kept[..., -1] = kept[..., 0]
        return kept.sort(dim=-1).values


class Merged(Plain):
    """Evicted entries are added to retained ones."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return super().take(tensor, kept) + 0.01 * tensor.mean(dim=2, keepdim=True)


class Rounded(Plain):
    """Retained entries are rounded to bfloat16."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return super().take(tensor, kept).bfloat16().to(tensor.dtype)


class Widened(Plain):
    """Retained entries are returned in float32."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return super().take(tensor, kept).float()


class OneValueMore(Plain):
    """Returns one more value than keys."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = super().layer(index, keys, values)
        return kept_keys, kept_values if kept_keys is keys else values[:, :, : kept_values.shape[2] + 1].clone()


class InPlace(Plain):
    """Retained entries are moved to the front of the input, in place."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        moved = super().take(tensor, kept)
        tensor[:, :, : moved.shape[2]] = moved
        return moved


class View(Plain):
    """Retains the newest entries as a view, so all of them stay in memory."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return tensor[:, :, tensor.shape[2] - kept.shape[2] :]


class Resurrecting(Plain):
    """Returns the last evicted entry in place of another."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.last: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = super().layer(index, keys, values)
        if kept_keys is keys:
            return keys, values
        evicted = self.choose(-self.scores(keys), 1)
        back = self.last.pop(index, None)
        self.last[index] = self.take(keys, evicted), self.take(values, evicted)
        if back is None or back[0].shape[:2] != keys.shape[:2]:
            return kept_keys, kept_values
        return torch.cat([back[0], kept_keys[:, :, 1:]], 2), torch.cat([back[1], kept_values[:, :, 1:]], 2)


class OnlyTheFirst(Plain):
    """A flag set at the end of the first sequence is never reset: only the first sequence is compressed."""

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
    """Norms are compared with a running mean that is not reset between sequences."""

    total: dict[int, Tensor] = {}  # noqa: RUF012  # the bug: shared by all instances

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
    """Scores contain noise from the global random state."""

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(keys) + torch.rand(keys.shape[:3])


class AlwaysOneLess(Plain):
    """Evicts one entry even at ratio 1 and below P."""

    def evicts(self, held: int) -> bool:
        return held > 1

    def count(self, held: int) -> int:
        return super().count(held) if super().evicts(held) else held - 1


class WideAttention(Plain):
    """A long pass is reduced to 16 entries, whether or not P is exceeded."""

    def evicts(self, held: int) -> bool:
        return super().evicts(held) or held > 16

    def count(self, held: int) -> int:
        return super().count(held) if super().evicts(held) else 16


class Requantised(Plain):
    """All entries are converted to float32 and back, whether or not any is evicted."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = super().layer(index, keys, values)
        return kept_keys.float().to(keys.dtype), kept_values.float().to(values.dtype)


# Schedules


class ActsOnSeen(Plain):
    """Under ``step``, the ratio is applied to the tokens seen."""

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
    """Under ``prefill``, acts after every pass."""

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        return True


class LongMeansPrompt(Hooked):
    """A pass of several tokens is mistaken for the prompt."""

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        return length > 1


class Blockwise(Plain):
    """Keys are scored in blocks of 256, and those after the last whole block get the lowest score."""

    def scores(self, keys: Tensor) -> Tensor:
        scores = super().scores(keys)
        whole = keys.shape[2] // 256 * 256
        if whole:
            scores[..., whole:] = -torch.inf
        return scores


class Pairwise(Plain):
    """Heads are scored in pairs; with an odd number of heads, the last one is not, and retains its newest entries."""

    def scores(self, keys: Tensor) -> Tensor:
        scores = super().scores(keys)
        if keys.shape[1] % 2 and keys.shape[1] > 1:
            scores[:, -1] = torch.arange(keys.shape[2])
        return scores


class OncePerContext(Hooked):
    """Compressed layers are marked, and marks are cleared only when the context is entered."""

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
    """The first decoding step after a one-token prompt is mistaken for a prompt."""

    def is_prompt(self, cache: Any, layer: int, length: int) -> bool:
        return super().is_prompt(cache, layer, length) or bool(cache.layers[layer].keys.shape[2] == 1 + length)


@dataclass(frozen=True)
class NoInterval(KnormPress):
    """``interval`` is accepted and ignored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "interval", 1)


# Positions, masks, attention


class HeldPositionsCache(PressedCache):
    """The cache reports the number held as its length, which becomes the next query's position."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return min(self.held, default=0) if self.layers and self.ledger.columns else 0


@dataclass(frozen=True)
class HeldPositions(KnormPress):
    """A plain cache whose length is the number held."""

    def cache(self, config: Any, **given: Any) -> PressedCache:
        return HeldPositionsCache(self, config, **given)


class BeforehandLayer(PressedLayer):
    """Evicts as soon as entries are added, before attention."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        super().update(key_states, value_states, *args, **kwargs)
        self.settle()
        return self.storage.held("keys"), self.storage.held("values")


class HoardingLayer(PressedLayer):
    """Retained entries are a view into the whole buffer."""

    def _evict(self) -> None:
        super()._evict()
        for name in ("keys", "values"):
            kept = self.storage[name]
            whole = kept.new_zeros((*kept.shape[:2], self.columns + kept.shape[2], kept.shape[3]))
            whole[:, :, : kept.shape[2]] = kept
            self.storage[name] = whole[:, :, : kept.shape[2]]


def with_layers(kind: type[PressedLayer]) -> type[Press]:
    """A press whose caches have layers of this class."""

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
    """The factory returns a plain cache, whatever its name."""

    keep_ratio: float
    prune_after: int = 512
    skip_layers: tuple[int, ...] = ()

    def cache(self, config: Any) -> DynamicCache:
        return DynamicCache(config=config)


@dataclass(frozen=True)
class NeverAll(KnormPress):
    """A ratio of 1 retains nine tenths."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_ratio == 1:
            object.__setattr__(self, "keep_ratio", 0.9)


@dataclass(frozen=True)
class EvictedShare(KnormPress):
    """The ratio is the evicted share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_ratio < 1:
            object.__setattr__(self, "keep_ratio", round(1 - self.keep_ratio, 9))


class _LeftBehind(Hooked):
    """Hooks are removed only if no exception is raised."""

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
    """A registered attention function is never removed."""

    def __call__(self, model: Any) -> Any:
        ALL_ATTENTION_FUNCTIONS.register("left-behind", ALL_ATTENTION_FUNCTIONS["sdpa"])
        ALL_MASK_ATTENTION_FUNCTIONS.register("left-behind", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        return super().__call__(model)


def while_attached(owner: Any, **broken: Callable[..., Any]) -> type[Press]:
    """KnormPress that breaks attributes of ``owner`` while attached."""

    @dataclass(frozen=True)
    class Broken(KnormPress):
        """KnormPress on a broken package."""

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
    """The mask is ignored: padding is scored and retained like text."""
    return [0] * rows


def not_looked_at(*given: Any) -> None:
    """The model's own mask is not checked."""


def everything_is_seen(layer: PressedLayer, tokens: int) -> Tensor:
    """A mask for another number of entries: the tokens of a chunk attend to its end."""
    return torch.ones((1, 1, tokens, layer.used), dtype=torch.bool)


def attached(kind: Callable[..., Press]) -> Subject:
    """A press under ``budget``, attached."""
    return ours("knorm", "budget", kind)


COMPRESSORS = [
    Mutant("S1", "eviction starts at 32 entries instead of 512", "the reports that this project starts from",
           plain(FixedThreshold), test_counts.test_nothing_is_evicted_up_to_prune_after),
    Mutant("S2", "eviction at P entries instead of more than P", "l2compress cache.py",
           plain(Boundary), test_counts.test_nothing_is_evicted_up_to_prune_after),
    Mutant("own-threshold", "once P is exceeded, eviction never ends", "plausible",
           plain(ThresholdOfSeen), test_counts.test_nothing_is_evicted_up_to_prune_after),
    Mutant("S3", "the highest norms are retained", "KVCache-Factory 6057af9",
           plain(HighestNorms), test_entries.test_the_best_entries_are_retained),
    Mutant("S4-floor", "floor instead of ceil", "kvpress ScorerPress",
           plain(Floor), test_counts.test_counts_are_exact_for_decimal_ratios),
    Mutant("S4-ceil", "ceil of a float product", "l2compress",
           plain(FloatCeiling), test_counts.test_counts_are_exact_for_decimal_ratios),
    Mutant("S4-complement", "the evicted number is rounded, in floats, instead of the retained one",
           "kvpress ScorerPress", plain(Complement), test_counts.test_counts_are_exact_for_decimal_ratios),
    Mutant("S5", "a short text retains nothing", "kvpress PR 264",
           plain(EmptyBudget), test_counts.test_the_shortest_texts_retain_an_entry),
    Mutant("S6", "a window with the highest score loses ties", "kvpress issue 226, PR 227",
           plain(_windowed(as_much_as_the_best), takes=("recent",)),
           test_entries.test_sinks_and_recent_tokens_are_never_evicted, WINDOW),
    Mutant("S7", "x[-w:] with w = 0 protects everything", "kvpress PR 277; H2O df486e7",
           plain(_windowed(from_minus_recent), takes=("recent",)),
           test_entries.test_the_best_entries_are_retained, WINDOW),
    Mutant("S8", "the scores of head 0 are used for all heads", "kvpress b1d2865",
           plain(FirstHead), test_entries.test_permuting_heads_permutes_the_result),
    Mutant("S8-compared", "entries are ranked over all heads of a layer", "plausible",
           plain(HeadsCompared), test_entries.test_the_best_entries_are_retained),
    Mutant("S8-odd", "with an odd number of heads, the last is not scored", "plausible",
           plain(Pairwise), test_entries.test_the_best_entries_are_retained),
    Mutant("own-blocks", "keys after the last whole block are not scored", "plausible",
           plain(Blockwise), test_entries.test_the_best_entries_of_a_long_text_are_retained),
    Mutant("S9", "one retained set for the whole batch", "H2O",
           plain(WholeBatch), test_rows.test_rows_are_independent),
    Mutant("own-row", "the first row is treated differently", "plausible",
           plain(FirstRow), test_rows.test_permuting_rows_permutes_the_result),
    Mutant("S10", "skip_layers off by one", "plausible",
           plain(SkipsNeighbour), test_counts.test_a_skipped_layer_retains_everything),
    Mutant("S10-forgotten", "skip_layers is ignored", "plausible",
           plain(SkipsNothing), test_counts.test_a_skipped_layer_retains_everything),
    Mutant("own-last", "the last layer never evicts", "plausible",
           plain(LastLayerSkipped), test_counts.test_every_layer_retains_the_number_its_schedule_sets),
    Mutant("S11", "sinks are evicted", "keys_values issue 140",
           attached(NoSinks), test_entries.test_sinks_and_recent_tokens_are_never_evicted, KNORM),
    Mutant("own-recent", "one recent token too few is protected", "plausible",
           attached(RecentOffByOne), test_entries.test_sinks_and_recent_tokens_are_never_evicted, KNORM),
    Mutant("own-ties", "of equal scores the later token is retained", "plausible",
           plain(LaterWins), test_entries.test_of_equal_entries_the_earlier_is_retained),
    Mutant("own-nested", "with more than half retained, the lowest scores are retained", "plausible",
           plain(EveryOther), test_entries.test_a_larger_ratio_retains_a_superset),
    Mutant("own-scale", "norms are rounded to tenths", "plausible",
           plain(CoarseScores), test_entries.test_scaling_a_head_by_a_power_of_two_changes_nothing),
    Mutant("S12", "squares overflow in float16", "plausible",
           plain(HalfNorms), test_entries.test_the_rules_hold_for_extreme_keys),
    Mutant("C1", "values out of step with keys", "the reports that this project starts from",
           plain(Misaligned), test_entries.test_retained_entries_are_those_passed_in),
    Mutant("C1-heads", "values are gathered with another head's indices", "plausible",
           plain(OtherHeadsValues), test_entries.test_retained_entries_are_those_passed_in),
    Mutant("C2", "retained entries in the order of scores", "kvpress issue 173; SnapKV 31",
           plain(ByScore), test_entries.test_entries_are_in_the_order_of_positions),
    Mutant("own-twice", "an entry is retained twice", "plausible",
           plain(Twice), test_entries.test_retained_entries_are_those_passed_in),
    Mutant("own-merged", "evicted entries are merged into retained ones, undeclared", "plausible",
           plain(Merged), test_entries.test_retained_entries_are_those_passed_in),
    Mutant("own-rounded", "retained entries are rounded, undeclared", "plausible",
           plain(Rounded), test_entries.test_retained_entries_are_those_passed_in),
    Mutant("own-dtype", "retained entries are returned in float32", "plausible",
           plain(Widened), test_entries.test_dtype_and_device_are_preserved),
    Mutant("own-shape", "one more value than keys", "plausible",
           plain(OneValueMore), test_counts.test_heads_and_layers_agree_on_the_shape),
    Mutant("own-inputs", "inputs are written to", "plausible",
           plain(InPlace), test_leaks.test_inputs_are_never_written_to),
    Mutant("own-revived", "an evicted entry returns", "plausible",
           plain(Resurrecting), test_entries.test_an_evicted_entry_never_returns),
    Mutant("C4", "a slice keeps the whole tensor alive", "TabPFN PR 933",
           plain(View), test_leaks.test_inputs_are_never_written_to),
    Mutant("C4-buffer", "a buffer never shrinks", "TabPFN PR 933",
           cached(with_layers(HoardingLayer)), test_leaks.test_evicted_entries_are_freed, CACHE),
    Mutant("C5", "only the first sequence is compressed", "KVCache-Factory issue 54",
           plain(OnlyTheFirst), test_leaks.test_a_second_sequence_is_independent_of_the_first),
    Mutant("C5-context", "only the first sequence of a context is compressed", "KVCache-Factory issue 54",
           hooked(OncePerContext), test_leaks.test_a_second_sequence_is_independent_of_the_first, HOOKED),
    Mutant("C5-cache", "a second sequence uses the cache of the first", "kvpress PR 192",
           cached(Remembering), test_leaks.test_interleaved_sequences_are_independent, CACHE),
    Mutant("C5-buffer", "a running mean is not reset between sequences", "KVCache-Factory issue 54",
           plain(Accumulating), test_entries.test_later_keys_change_no_earlier_decision),
    Mutant("own-random", "scores depend on the global random state", "plausible",
           plain(Drawing), test_leaks.test_results_are_reproducible),
    Mutant("own-copies", "tokens seen are counted in the compressor, not in the cache", "plausible",
           plain(ActsOnSeen), test_attention.test_a_copied_cache_is_independent),
    Mutant("C6", "hooks are not removed after an exception", "kvpress PR 244",
           hooked(_LeftBehind), test_leaks.test_the_model_is_left_unchanged, HOOKED),
    Mutant("C6-registered", "a registered attention function is not removed", "plausible",
           hooked(_Registered), test_leaks.test_the_model_is_left_unchanged, HOOKED),
    Mutant("C7", "the first decoding step after a one-token prompt is mistaken for a prompt", "kvpress PR 243",
           hooked(OneTokenPrompt), test_counts.test_the_pass_after_a_one_token_prompt_is_not_a_prompt, HOOKED),
    Mutant("C7-long", "a pass of several tokens is mistaken for the prompt", "kvpress PR 243",
           hooked(LongMeansPrompt), test_counts.test_the_pass_after_a_one_token_prompt_is_not_a_prompt, HOOKED),
    Mutant("own-prefill", "under prefill, acts after every pass", "plausible",
           hooked(EveryPass), test_counts.test_every_layer_retains_the_number_its_schedule_sets, HOOKED),
    Mutant("own-step", "under step, the ratio is applied to tokens seen", "plausible",
           plain(ActsOnSeen), test_counts.test_every_layer_retains_the_number_its_schedule_sets),
    Mutant("own-interval", "interval is ignored", "plausible",
           attached(NoInterval), test_counts.test_every_layer_retains_the_number_its_schedule_sets, KNORM),
    Mutant("C3", "a query's position is the number held", "VeloxQuant-MLX issue 171, 174; kvpress issue 16",
           cached(HeldPositions), test_attention.test_a_token_is_rotated_by_the_number_of_tokens_seen, CACHE),
    Mutant("own-beforehand-generate", "evicts before attention, in model.generate", "plausible",
           cached(with_layers(BeforehandLayer)), test_identity.test_generate_attends_to_the_held_entries, CACHE),
    Mutant("own-beforehand", "evicts before attention", "plausible",
           cached(with_layers(BeforehandLayer)), test_attention.test_logits_are_those_of_attention_to_the_held_entries,
           CACHE),
    Mutant("C8", "a mask for another number of entries", "transformers issue 35168",
           attached(while_attached(PressedLayer, mask=everything_is_seen)),
           test_attention.test_later_tokens_change_no_earlier_logit, KNORM),
    Mutant("C9", "padding is scored and retained like text", "KIVI issue 18",
           attached(while_attached(attach, padding_of=padding_is_text, strange_mask=not_looked_at)),
           test_rows.test_padding_has_no_effect, KNORM),
    Mutant("own-trend", "keep_ratio is the evicted share", "plausible, where others count compression_ratio",
           attached(EvictedShare), test_trends.test_nll_does_not_fall_as_fewer_entries_are_retained, KNORM),
    Mutant("M2", "the compressor was never installed", "KVCache-Factory 485af3c, 7855979",
           cached(NotInstalled), test_smoke.test_something_is_evicted_or_altered, CACHE),
    Mutant("own-one-less", "an entry is evicted even at ratio 1", "plausible",
           plain(AlwaysOneLess), test_identity.test_a_ratio_of_one_changes_nothing),
    Mutant("own-all", "a ratio of 1 retains nine tenths, in model.generate", "plausible",
           cached(NeverAll), test_identity.test_generate_with_a_ratio_of_one_is_unchanged, CACHE),
    Mutant("own-all-dtype", "a ratio of 1 retains nine tenths, in half precision", "plausible",
           cached(NeverAll), test_identity.test_a_ratio_of_one_changes_nothing_in_any_dtype, CACHE),
    Mutant("own-long-pass", "long passes are reduced although P is not exceeded", "plausible",
           plain(WideAttention), test_attention.test_passes_do_not_matter_while_nothing_is_evicted),
    Mutant("own-float32", "entries are converted to float32 and back", "plausible",
           plain(Requantised), test_identity.test_a_short_sequence_changes_nothing),
]  # fmt: skip
