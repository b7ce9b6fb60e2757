"""The mutants: each breaks one thing, says where that really happened, and names the law that must kill it.

The ids are those of the project's catalogue of bugs; ``own`` marks mutants of rules that it does not list.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from conformance import test_counts, test_leaks, test_memory, test_onepass, test_rows, test_which
from conformance.subjects import SUBJECTS, Subject
from torch import Tensor

from pressgauge import KnormPress, Press, PressedCache, onepass, replay
from pressgauge.cache import PressedLayer
from pressgauge.history import NEVER

BY_NAME = {subject.name: subject for subject in SUBJECTS}
SOUND = BY_NAME["knorm-budget"]
STEP = BY_NAME["knorm-step"]
RANDOM = BY_NAME["random-budget"]

Breaks = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """A broken compressor, or a sound one that is measured by something broken."""

    id: str
    what: str
    seen_in: str
    subject: Subject
    law: Callable[[Subject], None]
    breaks: Breaks = lambda patch: None
    """Breaks what measures the subject."""


# Deciding and selecting


@dataclass(frozen=True)
class FixedThreshold(KnormPress):
    """Pruning starts at a constant, whatever was asked for."""

    def target(self, seen: int, held: int) -> int:
        return replace(self, prune_after=2).target(seen, held) if self.prune_after != 2 else super().target(seen, held)


@dataclass(frozen=True)
class Boundary(KnormPress):
    """Pruning at P entries instead of more than P."""

    def target(self, seen: int, held: int) -> int:
        if held == self.prune_after > 1 and self.keep_ratio < 1:
            return held - 1
        return super().target(seen, held)


@dataclass(frozen=True)
class HighestNorms(KnormPress):
    """Keeps the longest keys."""

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        return -super().score(keys, **given)


@dataclass(frozen=True)
class FloatCeiling(KnormPress):
    """``ceil(ratio * n)`` in floats."""

    def target(self, seen: int, held: int) -> int:
        if held <= self.prune_after:
            return held
        wanted = math.ceil(self.keep_ratio * seen)
        return min(held, max(self.prune_after, self.sinks + self.recent, wanted))


@dataclass(frozen=True)
class Floor(KnormPress):
    """``int(ratio * n)``: one entry off."""

    def target(self, seen: int, held: int) -> int:
        if held <= self.prune_after:
            return held
        return min(held, max(1, self.prune_after, self.sinks + self.recent, int(self.keep_ratio * seen)))


@dataclass(frozen=True)
class FirstHead(KnormPress):
    """The scores of KV head 0 decide for all heads."""

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        scores = super().score(keys, **given)
        return scores[:, :1].expand(-1, keys.shape[1], -1)


@dataclass(frozen=True)
class WholeBatch(KnormPress):
    """One set for the whole batch, from scores summed over it."""

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        return super().score(keys, **given).sum(dim=0, keepdim=True).expand(keys.shape[0], -1, -1)


@dataclass(frozen=True)
class SkipsNeighbour(KnormPress):
    """``skip_layers`` counts from one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "skip_layers", tuple((layer + 1) % 2 for layer in self.skip_layers))


@dataclass(frozen=True)
class NoSinks(KnormPress):
    """Sinks count for the budget, and are evicted all the same: the press forgets which they are."""

    def target(self, seen: int, held: int) -> int:
        return replace(self, sinks=0).target(seen, held) if self.sinks else super().target(seen, held)

    def cache(self, config: Any, **given: Any) -> PressedCache:
        return KnormPress.cache(replace(self, sinks=0), config, **given)


@dataclass(frozen=True)
class RecentOffByOne(KnormPress):
    """One recent token too few is protected."""

    def cache(self, config: Any, **given: Any) -> PressedCache:
        return KnormPress.cache(replace(self, recent=max(0, self.recent - 1)), config, **given)


@dataclass(frozen=True)
class LaterWins(KnormPress):
    """Of equal scores the later token stays."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, queries: Tensor | None = None) -> Tensor:
        norm = super().score(keys, positions=positions, layer=layer)
        return norm + 1e-3 * positions.to(norm.dtype) * (norm.abs() + 1e-3)


@dataclass(frozen=True)
class HalfNorms(KnormPress):
    """Norms in float16, in which keys a thousandth apart are equal."""

    def score(self, keys: Tensor, **given: Any) -> Tensor:
        norm: Tensor = keys.half().norm(dim=-1)
        return -norm


# The cache


class _MisalignedLayer(PressedLayer):
    """Keys and values gathered with different indices."""

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        values = super().values
        return values if values is None or not self.compressed else values.flip(2)


class _UnorderedLayer(PressedLayer):
    """Entries read in the order of scores."""

    def _by_norm(self, tensor: Tensor | None) -> Tensor | None:
        keys = super().keys
        if tensor is None or keys is None or not self.compressed:
            return tensor
        order = keys.norm(dim=-1).argsort(dim=-1)[..., None]
        return tensor.gather(2, order.expand(-1, -1, -1, tensor.shape[3]))

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        return self._by_norm(super().keys)

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        return self._by_norm(super().values)


class _HoardingLayer(PressedLayer):
    """What is kept is a view into the whole buffer."""

    def _evict(self, queries: Tensor | None) -> None:
        super()._evict(queries)
        for name in ("_keys", "_values"):
            kept = getattr(self, name)
            whole = kept.new_zeros((*kept.shape[:2], self.columns + kept.shape[2], kept.shape[3]))
            whole[:, :, : kept.shape[2]] = kept
            setattr(self, name, whole[:, :, : kept.shape[2]])


def with_layers(kind: type[PressedLayer]) -> Callable[..., Press]:
    """A factory of presses whose caches have layers of this kind."""

    @dataclass(frozen=True)
    class Press_(KnormPress):  # noqa: N801  # a different class for each mutant, all called alike
        def cache(self, config: Any, **given: Any) -> PressedCache:
            cache = super().cache(config, **given)
            for layer in cache._pressed:
                layer.__class__ = kind
            return cache

    return Press_


@dataclass(frozen=True)
class Remembering(KnormPress):
    """The cache of the first sequence is used for the second as well."""

    caches: list[PressedCache] = field(default_factory=list, compare=False)

    def cache(self, config: Any, **given: Any) -> PressedCache:
        if not self.caches:
            self.caches.append(super().cache(config, **given))
        return self.caches[0]


# The perplexity in one pass


def later(evicted_at: Tensor, by: int) -> Tensor:
    """The same history, but each eviction comes ``by`` tokens later."""
    return torch.where(evicted_at == NEVER, NEVER, evicted_at + by)


def off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Query t sees key j if ``t <= evicted_at[j]``."""
    attend = onepass.attend
    patch.setattr(onepass, "attend", lambda q, k, v, table, scale: attend(q, k, v, later(table, 1), scale))


def plain_mean(patch: pytest.MonkeyPatch) -> None:
    """The two parts of a block are merged as if each had half of the weight."""
    attend = onepass._attend

    def unweighted(*given: Any) -> tuple[Tensor, Tensor]:
        output, total = attend(*given)
        return output, torch.zeros_like(total)

    patch.setattr(onepass, "_attend", unweighted)


def first_layer(patch: pytest.MonkeyPatch) -> None:
    """What layer 0 would evict is replayed for every layer."""
    patch.setattr(onepass, "replay", lambda *given, layer, padding: replay(*given, layer=0, padding=padding))


def heads_the_wrong_way_round(patch: pytest.MonkeyPatch) -> None:
    """Query head h reads KV head ``h % K`` instead of ``h // (H / K)``."""
    attend = onepass.attend

    def regrouped(query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float) -> Tensor:
        order = torch.arange(query.shape[1]).view(-1, key.shape[1]).T.flatten()
        return attend(query[:, order], key, value, table, scale)[:, order.argsort()]

    patch.setattr(onepass, "attend", regrouped)


def prompt_fed_singly(patch: pytest.MonkeyPatch) -> None:
    """The prompt is not one pass."""
    patch.setattr(onepass, "pass_lengths", lambda tokens, prompt: [1] * tokens)


def columns_of_the_batch(patch: pytest.MonkeyPatch) -> None:
    """A padded row's evictions are counted in columns of the batch, and its tokens in its own."""
    attend, in_layer = onepass.attend, onepass.OnePass._attend

    def unsubtracted(self: onepass.OnePass, *given: Any, **more: Any) -> Any:
        broken = lambda q, k, v, table, scale: attend(q, k, v, later(table, self.padding), scale)  # noqa: E731
        patch.setattr(onepass, "attend", broken)
        return in_layer(self, *given, **more)

    patch.setattr(onepass.OnePass, "_attend", unsubtracted)


def broken(factory: Callable[..., Press], sound: Subject = SOUND) -> Subject:
    """The sound subject with another factory: the oracle stays the same."""
    return replace(sound, factory=factory)


MUTANTS = [
    Mutant(
        "S1", "pruning starts at 2 whatever was asked for", "the reports that this project starts from",
        broken(FixedThreshold), test_counts.test_every_layer_holds_what_its_schedule_says_after_every_pass,
    ),
    Mutant(
        "S2", "pruning at P entries", "l2compress cache.py",
        broken(Boundary, STEP), test_counts.test_every_layer_holds_what_its_schedule_says_after_every_pass,
    ),
    Mutant(
        "S3", "keeps the highest norms", "KVCache-Factory 6057af9",
        broken(HighestNorms), test_which.test_the_best_entries_stay,
    ),
    Mutant(
        "S4-ceil", "ceil of a float product", "l2compress",
        broken(FloatCeiling), test_counts.test_counts_are_exact_where_floats_are_not,
    ),
    Mutant(
        "S4-floor", "floor instead of ceil", "kvpress ScorerPress",
        broken(Floor), test_counts.test_counts_are_exact_where_floats_are_not,
    ),
    Mutant(
        "S8", "head 0 decides for all", "kvpress b1d2865",
        broken(FirstHead), test_which.test_the_best_entries_stay,
    ),
    Mutant(
        "S9", "one set for the whole batch", "H2O",
        broken(WholeBatch), test_rows.test_a_row_is_as_it_is_alone_whatever_is_beside_it,
    ),
    Mutant(
        "S10", "skip_layers off by one", "plausible",
        broken(SkipsNeighbour), test_counts.test_every_layer_holds_what_its_schedule_says_after_every_pass,
    ),
    Mutant(
        "S11", "sinks are evicted", "keys_values issue 140",
        broken(NoSinks), test_which.test_sinks_and_recent_tokens_are_never_evicted,
    ),
    Mutant(
        "own-recent", "one recent token too few is protected", "plausible",
        broken(RecentOffByOne), test_which.test_sinks_and_recent_tokens_are_never_evicted,
    ),
    Mutant(
        "own-ties", "of equal scores the later token stays", "plausible",
        broken(LaterWins), test_which.test_the_best_entries_stay,
    ),
    Mutant(
        "S12", "norms in float16", "plausible",
        broken(HalfNorms), test_which.test_scores_are_taken_in_float32_or_wider,
    ),
    Mutant(
        "C1", "values out of step with keys", "the reports that this project starts from",
        broken(with_layers(_MisalignedLayer)), test_which.test_what_is_read_is_in_the_order_of_positions,
    ),
    Mutant(
        "C2", "entries in the order of scores", "kvpress issue 173; SnapKV 31",
        broken(with_layers(_UnorderedLayer)), test_which.test_what_is_read_is_in_the_order_of_positions,
    ),
    Mutant(
        "C4", "a view keeps the whole buffer alive", "TabPFN PR 933",
        broken(with_layers(_HoardingLayer)), test_memory.test_storage_is_what_is_held,
    ),
    Mutant(
        "C5", "a second sequence meets the first one's cache", "KVCache-Factory issue 54; kvpress PR 192",
        broken(Remembering), test_leaks.test_a_second_cache_is_as_fresh_as_the_first,
    ),
    Mutant(
        "onepass-later", "one pass sees an entry one token too long", "plausible",
        SOUND, test_onepass.test_every_press_in_one_pass_is_what_decoding_gives, off_by_one,
    ),
    Mutant(
        "onepass-merge", "one pass merges parts without their weights", "plausible",
        SOUND, test_onepass.test_every_press_in_one_pass_is_what_decoding_gives, plain_mean,
    ),
    Mutant(
        "onepass-layer", "one pass replays layer 0 in every layer", "plausible",
        RANDOM, test_onepass.test_every_press_in_one_pass_is_what_decoding_gives, first_layer,
    ),
    Mutant(
        "onepass-heads", "one pass groups query heads the wrong way round", "kvpress b1d2865",
        SOUND, test_onepass.test_every_press_in_one_pass_is_what_decoding_gives, heads_the_wrong_way_round,
    ),
    Mutant(
        "onepass-prompt", "one pass feeds the prompt singly", "plausible",
        SOUND, test_onepass.test_every_press_in_one_pass_is_what_decoding_gives, prompt_fed_singly,
    ),
    Mutant(
        "onepass-padding", "one pass counts padding as time", "KIVI issue 18",
        SOUND, test_onepass.test_every_press_in_one_pass_is_what_decoding_gives, columns_of_the_batch,
    ),
]  # fmt: skip
