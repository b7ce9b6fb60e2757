"""Correct compressors in different styles, on which no law may break."""

from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from harness.mutants.compressors import Boundary, ByScore, FloatCeiling, Floor, LaterWins, Rounded
from harness.mutants.declared import RIGHT_DECLARED
from harness.mutants.kept import KEPT, NEWEST
from harness.mutants.plain import HOOKED, SOUND, Layers, Plain, plain
from harness.mutants.right_quantised import RIGHT_QUANTISED
from harness.mutants.smoke import READ
from harness.mutants.ways_in import RIGHT_WAYS_IN
from pressgauge import StreamingLLMPress
from pressgauge.conformance.subjects import subject_of


def by_hand(keep_ratio: float, prune_after: int = 512, skip_layers: tuple[int, ...] = ()) -> Any:
    """Retains the newest entries, with lists and loops."""

    def compress(layers: Layers) -> Layers:
        result = []
        for index, (keys, values) in enumerate(layers):
            held = keys.shape[2]
            if index in skip_layers or held <= prune_after or keep_ratio == 1:
                result.append((keys, values))
                continue
            left = max(1, ceil(Fraction(str(keep_ratio)) * held))
            result.append((keys[:, :, held - left :].clone(), values[:, :, held - left :].clone()))
        return result

    return compress


class NoThreshold(Plain):
    """Takes neither ``prune_after`` nor ``skip_layers``."""

    def __init__(self, keep_ratio: float) -> None:
        super().__init__(keep_ratio, prune_after=0)


class Uncompressed:
    """transformers' own cache, which evicts nothing."""

    def __init__(self, keep_ratio: float) -> None:
        pass

    def cache(self, config: Any) -> DynamicCache:
        return DynamicCache(config=config)


WINDOW_SIZE = 7


class SlidingWindow:
    """transformers' sliding-window layers on any model, which retain the newest entries."""

    def __init__(self, keep_ratio: float) -> None:
        self.keep_ratio = keep_ratio

    def cache(self, config: Any) -> DynamicCache:
        cache = DynamicCache(config=config)
        if self.keep_ratio < 1:
            cache.layers = [DynamicSlidingWindowLayer(WINDOW_SIZE) for _ in cache.layers]
        return cache


class AnyRatio(SlidingWindow):
    """The same, whatever the ratio is."""

    def __init__(self, keep_ratio: float) -> None:
        super().__init__(0.5)


class FloorFromP(Floor, Boundary):
    """Evicts at P entries, and rounds down."""


class PerHead(Plain):
    """Heads of a layer compete: the best entries over all heads are retained, and at least the best of each head."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        there = (keys != 0).any(-1) | (values != 0).any(-1)
        rows, heads, columns = there.shape
        held = int(there.sum()) // (rows * heads)
        if index in self.skip_layers or not self.evicts(held):
            return keys, values
        scores = self.scores(keys).masked_fill(~there, -torch.inf)
        first = scores.argsort(dim=-1, descending=True, stable=True)[..., :1]
        together = scores.scatter(2, first, torch.inf).view(rows, heads * columns)
        best = together.argsort(dim=-1, descending=True, stable=True)[:, : heads * self.count(held)]
        retained = torch.zeros_like(together, dtype=torch.bool).scatter(1, best, True).view_as(there)
        width = int(retained.sum(-1).max())
        # Retained entries come last, in order, after the padding.
        kept = retained.int().argsort(dim=-1, stable=True)[..., columns - width :]
        padding = ~retained.gather(2, kept)[..., None]
        return self.take(keys, kept).masked_fill(padding, 0), self.take(values, kept).masked_fill(padding, 0)


DYNAMIC = subject_of(
    "DynamicCache", Uncompressed, {"prune_after": None, "skip_layers": None, "target": lambda seen, held: held}
)

VARIANTS = [
    SOUND,
    HOOKED,
    KEPT,
    NEWEST,
    plain(ByScore, order="any"),
    plain(LaterWins, ties="any"),
    plain(FloorFromP, boundary=">=", rounding=lambda ratio, count: int(ratio * count)),
    plain(FloatCeiling, rounding="float-ceil"),
    plain(NoThreshold, prune_after=None, skip_layers=None),
    plain(Rounded, entries="altered"),
    plain(PerHead, held="per-head"),
    subject_of("by hand", by_hand, {"score": "position"}),
    DYNAMIC,
    READ,
    *RIGHT_WAYS_IN,
    *RIGHT_DECLARED,
    subject_of(
        "transformers' sliding window",
        SlidingWindow,
        {
            "prune_after": None,
            "skip_layers": None,
            "score": "position",
            "storage": "any",
            "target": lambda seen, held: min(held, WINDOW_SIZE - 1),
        },
    ),
    subject_of(
        "transformers' sliding window at any ratio",
        AnyRatio,
        {
            "prune_after": None,
            "skip_layers": None,
            "score": "position",
            "storage": "any",
            "target": lambda seen, held: min(held, WINDOW_SIZE - 1),
        },
    ),
    subject_of("StreamingLLMPress, plain", StreamingLLMPress, {"score": "position", "sinks": 4}),
    *RIGHT_QUANTISED,
]
