"""Mutants of cache operations, of passes of every size, of masks, and of several models and layers."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention

from conformance import test_attention, test_leaks, test_models, test_operations, test_passes
from conformance.ours import SUBJECTS
from harness.mutants.kept import KEPT, NEWEST, TENSORS, Kept, KeptCache, KeptLayer, NewestLayer, kept
from harness.mutants.mutant import Mutant
from harness.mutants.plain import HOOKED, Hooked, Layers, Plain, hooked, plain
from pressgauge.conformance.subjects import Subject
from pressgauge.rules import Ledger

KNORM = next(subject for subject in SUBJECTS if subject.name == "knorm-budget")


# Crop


class CropsACounter(NewestLayer):
    """A crop lowers the length, and the rows stay."""

    def crop(self, tokens_to_remove: int) -> None:
        self.seen = max(0, self.seen - abs(tokens_to_remove))


class CropsOneLayer(NewestLayer):
    """Only the first layer obeys a crop."""

    def crop(self, tokens_to_remove: int) -> None:
        if self.index == 0:
            super().crop(tokens_to_remove)


class CropsFromTheEnd(NewestLayer):
    """Five of three entries removed leaves one, since ``[:3 - 5]`` counts from the end."""

    def crop(self, tokens_to_remove: int) -> None:
        left = self.keys.shape[2] - abs(tokens_to_remove)
        self.each(lambda tensor, name: tensor[:, :, :left])
        self.seen = max(0, self.seen - abs(tokens_to_remove))


class CropsEntries(KeptLayer):
    """A crop removes as many of the held entries, although some of the cropped tokens were evicted before."""

    def survivors(self, count: int) -> Tensor:
        index = torch.arange(self.keys.shape[2], device=self.device)
        left: Tensor = (index < self.keys.shape[2] - count).expand(self.positions.shape)
        return left


class CropsToEmpty(NewestLayer):
    """A crop by nothing empties the cache, since ``[:-0]`` is empty."""

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove == 0:
            self.each(lambda tensor, name: tensor[:, :, :-0])
        super().crop(tokens_to_remove)


class CropCrashes(NewestLayer):
    """A crop of more than is held indexes what is not there."""

    def crop(self, tokens_to_remove: int) -> None:
        if self.keys.shape[2] < self.seen:
            self.keys[:, :, -1 - abs(tokens_to_remove)]
        super().crop(tokens_to_remove)


class RefusesHalfway(KeptCache):
    """A crop is refused by the second layer, when the first has been cropped."""

    def crop(self, tokens_to_remove: int) -> None:
        for layer in self.layers:
            if layer.index and tokens_to_remove:
                raise NotImplementedError("only the first layer can be cropped")
            layer.crop(tokens_to_remove)


class RefusesEmptied(KeptCache):
    """A crop is refused, and the cache emptied."""

    def crop(self, tokens_to_remove: int) -> None:
        self.reset()
        raise ValueError("this cache cannot be cropped, so it was reset")


class ScoresStay(KeptLayer):
    """Scores of cropped entries stay, and are those of the next ones."""

    def crop(self, tokens_to_remove: int) -> None:
        scores = self.scores
        super().crop(tokens_to_remove)
        self.scores = scores[:, :, : self.keys.shape[2]].flip(-1)


class CropReorders(NewestLayer):
    """A crop restores the order of rows from before the last ``reorder_cache``."""

    order: Tensor | None = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.order = beam_idx.argsort()

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.order = None

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.order = None

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if self.order is not None:
            self.rows(self.order)


class ForgetsRows(KeptLayer):
    """After rows were repeated and then selected, what was repeated is selected from again."""

    whole: tuple[Tensor, ...] | None = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.whole = tuple(getattr(self, name) for name in TENSORS)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.whole is not None:
            for name, tensor in zip(TENSORS, self.whole, strict=True):
                setattr(self, name, tensor)
        super().batch_select_indices(indices)


# Reset


class ResetKeepsLength(KeptLayer):
    """A reset keeps the length."""

    def reset(self) -> None:
        seen = self.seen
        super().reset()
        self.seen = seen


class ResetZeroes(KeptLayer):
    """A reset sets entries to zero, and does not remove them."""

    def reset(self) -> None:
        self.each(lambda tensor, name: torch.zeros_like(tensor))
        self.seen = 0


class ActsOnce(KeptLayer):
    """A reset does not forget that the prompt was compressed, so the next one is not."""

    done = False

    def evict(self) -> None:
        before = self.keys.shape[2]
        if not self.done or self.press.keep_ratio == 1:
            super().evict()
        self.done = self.done or self.keys.shape[2] < before


class ResetInFirstLayer(KeptCache):
    """A reset that returns after the first layer."""

    def reset(self) -> None:
        self.layers[0].reset()


# Rows


class SwapsKeysAndValues(KeptLayer):
    """Reordered keys are stored as values, and values as keys."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.keys, self.values = self.values, self.keys


class ReordersKeys(KeptLayer):
    """Keys are reordered, and values are not."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        values = self.values
        super().reorder_cache(beam_idx)
        self.values = values


class ReordersFirstLayer(KeptCache):
    """Only the first layer is reordered."""

    def reorder_cache(self, beam_idx: Any) -> None:
        self.layers[0].reorder_cache(beam_idx)


class ReordersBack(KeptLayer):
    """Rows are reordered by the inverse of the order asked for."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx.argsort())


class NeverReorders(KeptLayer):
    """``reorder_cache`` is accepted, and does nothing."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        pass


class ScoresOfOtherRows(KeptLayer):
    """Scores are not reordered with their entries."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        scores = self.scores
        super().reorder_cache(beam_idx)
        self.scores = scores


class SelectsTheFirst(KeptLayer):
    """As many rows as are selected remain, but the first ones."""

    def batch_select_indices(self, indices: Tensor) -> None:
        self.rows(torch.arange(len(indices)))


class SelectsFirstLayer(KeptCache):
    """Rows are selected in the first layer only."""

    def batch_select_indices(self, indices: Any) -> None:
        self.layers[0].batch_select_indices(indices)


class Tiles(KeptLayer):
    """The batch is repeated as a whole: 0, 1, 0, 1 instead of 0, 0, 1, 1."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.rows(torch.arange(self.keys.shape[0]).repeat(repeats))


class RepeatsNoScores(KeptLayer):
    """Scores are not repeated, so that the next eviction fails."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        scores = self.scores
        super().batch_repeat_interleave(repeats)
        self.scores = scores


def padding_of_the_first_rows(patch: pytest.MonkeyPatch) -> None:
    """Rows of a padded batch are selected, and their padding is that of the first rows."""
    select = Ledger.select

    def selects(self: Ledger, rows: Any) -> None:
        padding = list(self.padding)
        select(self, rows)
        self.padding = [padding[row % len(padding)] for row in range(len(rows))]

    patch.setattr(Ledger, "select", selects)


class Uncopyable(KeptCache):
    """Holds a lock, which cannot be copied."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.lock = threading.Lock()


class SharedLayers(KeptCache):
    """A copy has the same layers, once something was evicted."""

    def __deepcopy__(self, memory: Any) -> "SharedLayers":
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy


# Passes


class Ring(NewestLayer):
    """A ring of as many slots as the pass and the held entries share: long passes overwrite what their first queries
    need."""

    def attended(self, new: int) -> tuple[Tensor, Tensor]:
        slots = max(self.keys.shape[2] - new, new)
        keys, values = (torch.zeros_like(tensor) for tensor in (self.keys, self.values))
        keys[:, :, -slots:], values[:, :, -slots:] = self.keys[:, :, -slots:], self.values[:, :, -slots:]
        return keys, values


class LongPassesFirst(KeptLayer):
    """A pass of more than twice what is held replaces it before attention."""

    def attended(self, new: int) -> tuple[Tensor, Tensor]:
        held = self.keys.shape[2] - new
        if new > 2 * held > 0:
            self.each(lambda tensor, name: tensor[:, :, held:])
        return super().attended(new)


class EqualLengths(KeptLayer):
    """A pass as long as what is held is taken for the prompt, and replaces it."""

    def attended(self, new: int) -> tuple[Tensor, Tensor]:
        if self.keys.shape[2] == 2 * new and self.seen > 2 * new:
            self.each(lambda tensor, name: tensor[:, :, new:])
        return super().attended(new)


class Blocks(KeptLayer):
    """Storage grows in steps of 128, and the entry that fills a step is lost."""

    def attended(self, new: int) -> tuple[Tensor, Tensor]:
        if self.keys.shape[2] % 128 == 0:
            self.each(lambda tensor, name: tensor[:, :, 1:])
        return super().attended(new)


class RingRestarts(NewestLayer):
    """A pass longer than what is held leaves the entries rotated, since slots are counted anew."""

    def evict(self) -> None:
        before = self.keys.shape[2]
        super().evict()
        held = self.keys.shape[2]
        if before > 2 * held:
            turned = self.seen % held
            self.each(lambda tensor, name: tensor if name == "scores" else tensor.roll(turned, 2))


class Hundred(NewestLayer):
    """A window of 100 tokens."""

    def evict(self) -> None:
        if self.keys.shape[2] > 100:
            self.take(torch.arange(self.keys.shape[2] - 100, self.keys.shape[2]).expand(*self.keys.shape[:2], -1))


class CountsTheWindow(Hundred):
    """The length is the number held, which differs in texts longer than the window of 100 tokens only."""

    def get_seq_length(self) -> int:
        return self.keys.shape[2] if self.is_initialized else 0

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        return super().get_mask_sizes(query)[0], 0


class OldScoresAreLost(KeptLayer):
    """A pass longer than what is held sets the scores of the entries to zero."""

    def evict(self) -> None:
        before = self.keys.shape[2]
        super().evict()
        if self.seen > before > 2 * self.keys.shape[2]:
            self.scores = torch.zeros_like(self.scores)


class Tires(KeptLayer):
    """Nothing is evicted any more after 200 tokens."""

    def evict(self) -> None:
        if self.seen <= 200:
            super().evict()


class Bytes(KeptLayer):
    """The number of tokens is counted in a byte, and with it the threshold."""

    def evict(self) -> None:
        if (self.seen % 256) > 8:
            super().evict()


class Compounds(Plain):
    """The ratio is multiplied by itself, little by little."""

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        super().__init__(keep_ratio, prune_after)
        self.evictions = 0

    def count(self, held: int) -> int:
        self.evictions += 1
        ratio = self.keep_ratio ** (1 + self.evictions // 40)
        self.keep_ratio, before = round(ratio, 6), self.keep_ratio
        try:
            return super().count(held)
        finally:
            self.keep_ratio = before


class Compounding(Kept):
    """The ratio compounds over hundreds of evictions."""

    press = Compounds


# Masks


class MaskOfSeen(KeptLayer):
    """The mask is announced for all tokens seen."""

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        length, offset = super().get_mask_sizes(query)
        return length + offset, 0


class MaskWithoutQuery(KeptLayer):
    """The mask is announced for the held entries, without the pass."""

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        length, offset = super().get_mask_sizes(query)
        return length - (query if isinstance(query, int) else query.shape[0]), offset


class MaskInOneLayer(KeptLayer):
    """The last layer announces one key more."""

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        length, offset = super().get_mask_sizes(query)
        return length + (self.index == 2 and offset > 0), offset


class LengthHeld(KeptLayer):
    """The length of all layers but the first is the number held."""

    def get_seq_length(self) -> int:
        return self.keys.shape[2] if self.index and self.is_initialized else self.seen


# Models and layers


class WidthOfTheFirst(Kept):
    """The head width is read from the first model."""

    width = 0

    def cache(self, config: Any) -> KeptCache:
        self.width = self.width or config.head_dim
        width = self.width

        class Fixed(KeptLayer):
            def attended(self, new: int) -> tuple[Tensor, Tensor]:
                return self.keys.reshape(*self.keys.shape[:3], width), self.values

        return KeptCache(self.plain, Fixed, config.num_hidden_layers)


class DepthOfTheFirst(Kept):
    """The number of layers is read from the first model; further layers share the last."""

    depth = 0

    def cache(self, config: Any) -> KeptCache:
        self.depth = self.depth or config.num_hidden_layers
        cache = KeptCache(self.plain, self.layer, self.depth)
        cache.layers.extend(cache.layers[-1:] * (config.num_hidden_layers - self.depth))
        return cache


class RatioOfTheFirst(Kept):
    """A budget is computed for the first model's layers, and used for others."""

    depth = 0

    def cache(self, config: Any) -> Any:
        self.depth = self.depth or config.num_hidden_layers
        if config.num_hidden_layers != self.depth:
            return KeptCache(self.press(1.0), self.layer, config.num_hidden_layers)
        return super().cache(config)


class PatchesAClass(Hooked):
    """While it is attached, all models' caches scale their values."""

    def __call__(self, model: Any) -> Any:
        @contextmanager
        def attached() -> Any:
            own = LlamaAttention.forward

            def patched(module: Any, *args: Any, **kwargs: Any) -> Any:
                output, weights = own(module, *args, **kwargs)
                mine = any(module is part for part in model.modules())
                return (output if mine else output * 0.5), weights

            with pytest.MonkeyPatch.context() as patch, Hooked.__call__(self, model):
                patch.setattr(LlamaAttention, "forward", patched)
                yield

        return attached()


def at_import(patch: pytest.MonkeyPatch) -> None:
    """A class of transformers is patched for the whole process, before any compressor is made."""
    own = DynamicLayer.update

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    patch.setattr(DynamicLayer, "update", update)


def left_patched(patch: pytest.MonkeyPatch) -> None:
    """A class of transformers stays patched after the first sequence."""
    own = DynamicLayer.get_seq_length
    patch.setattr(DynamicLayer, "get_seq_length", own)
    enter = Hooked.__call__

    def entered(self: Hooked, model: Any) -> Any:
        def get_seq_length(layer: Any) -> int:
            return own(layer)

        DynamicLayer.get_seq_length = get_seq_length  # type: ignore[assignment, method-assign]
        return enter(self, model)

    patch.setattr(Hooked, "__call__", entered)


class FirstLayerDecides(Plain):
    """The decision made with the keys of layer 0 is used for all layers."""

    def compress(self, layers: Layers) -> Layers:
        self.first = layers[0][0]
        return super().compress(layers)

    def scores(self, keys: Tensor) -> Tensor:
        return super().scores(self.first if self.first.shape == keys.shape else keys)


class LayersMixed(Plain):
    """Scores are averaged over the layers."""

    def compress(self, layers: Layers) -> Layers:
        self.mean = torch.stack([Plain.scores(self, keys) for keys, _ in layers]).mean(0)
        return super().compress(layers)

    def scores(self, keys: Tensor) -> Tensor:
        return self.mean


CROP = test_operations.test_a_crop_leaves_the_tokens_before_it
RESET = test_operations.test_a_reset_cache_is_as_new
REORDER = test_operations.test_reordered_rows_continue_as_the_rows_they_were
SELECT = test_operations.test_selected_rows_continue_as_the_rows_they_were
REPEAT = test_operations.test_repeated_rows_continue_as_the_rows_they_were
PADDED = test_operations.test_rows_of_a_padded_batch_continue_as_the_rows_they_were
BEAMS = test_operations.test_beam_search_scores_each_beam_by_its_own_tokens
ANY_ORDER = test_operations.test_operations_in_any_order_leave_a_cache_as_fresh
PAIRS = test_operations.test_two_operations_leave_a_cache_as_fresh
POSITION = test_attention.test_a_token_is_rotated_by_the_number_of_tokens_seen
COPY = test_attention.test_a_copied_cache_is_independent
ANY_LENGTH = test_passes.test_a_later_pass_may_have_any_length
AS_HELD = test_passes.test_a_later_pass_may_be_as_long_as_what_is_held
STEPS = test_passes.test_lengths_around_128_and_256_are_no_exception
HUNDREDS = test_passes.test_hundreds_of_passes_follow_the_schedule
ANNOUNCED = test_passes.test_the_mask_is_announced_for_the_keys_that_are_returned
EAGER = test_passes.test_eager_attention_gives_what_sdpa_gives
MODELS = test_models.test_one_compressor_serves_models_of_any_shape
OTHERS = test_models.test_another_model_is_left_alone
LAYERS = test_models.test_a_layer_decides_by_its_own_keys


def _mutant(kind: type, law: Callable[..., None], seen_in: str = "plausible", *says: str) -> Mutant:
    name = "".join(f"-{c.lower()}" if c.isupper() else c for c in kind.__name__)
    what = " ".join((kind.__doc__ or "").split()).removesuffix(".")
    what = what[:1].lower() + what[1:] if what[1:2].islower() else what
    twin = NEWEST if issubclass(kind, NewestLayer) else KEPT
    return Mutant(f"operation{name}", what, seen_in, kept(kind), law, twin, says=says)


def window(kind: type[Hundred]) -> Subject:
    """Subject of a window of 100 tokens."""
    return kept(kind, prune_after=None, target=lambda seen, held: min(held, 100))


OPERATIONS = [
    Mutant("operation-counts-the-window", "the length of a window of 100 tokens is the number held", "third-party",
           window(CountsTheWindow), POSITION, window(Hundred), says=("was rotated by position 100",)),
    _mutant(CropsACounter, CROP, "mlx-lm issue 1494", "crop by 1"),
    _mutant(CropsOneLayer, CROP, "mlx-lm issue 1494", "layer 1"),
    _mutant(CropsFromTheEnd, CROP, "transformers issue 47433"),
    _mutant(CropsEntries, CROP, "plausible", "crop by"),
    _mutant(CropsToEmpty, CROP, "plausible", "crop by 0"),
    _mutant(CropCrashes, CROP, "third-party caches", "crashes: IndexError"),
    _mutant(RefusesHalfway, CROP, "plausible", "after something was changed"),
    _mutant(RefusesEmptied, CROP, "plausible", "after something was changed"),
    _mutant(ScoresStay, CROP, "plausible", "fresh cache"),
    _mutant(CropReorders, PAIRS, "plausible", "crop"),
    _mutant(ForgetsRows, ANY_ORDER, "plausible"),
    _mutant(ResetKeepsLength, RESET, "transformers PR 48509", "get_seq_length 12"),
    _mutant(ResetZeroes, RESET, "transformers PR 48509"),
    _mutant(ActsOnce, RESET, "randkv"),
    _mutant(ResetInFirstLayer, RESET, "plausible", "layer 1"),
    _mutant(SwapsKeysAndValues, REORDER, "transformers issue 34232", "keys"),
    _mutant(ReordersKeys, REORDER, "transformers issue 34232", "values"),
    _mutant(ReordersFirstLayer, REORDER, "transformers issue 34232", "layer 1"),
    _mutant(ReordersBack, BEAMS, "plausible", "3 beams"),
    _mutant(NeverReorders, BEAMS, "turboquant, fade-kv", "3 beams"),
    _mutant(ScoresOfOtherRows, REORDER, "plausible", "fresh cache"),
    _mutant(SelectsTheFirst, SELECT, "plausible", "former row"),
    _mutant(SelectsFirstLayer, SELECT, "transformers issue 34232", "layer 1"),
    _mutant(Tiles, REPEAT, "plausible", "former row"),
    _mutant(RepeatsNoScores, REPEAT, "plausible", "crashes"),
    Mutant("operation-padding", "selected rows of a padded batch take over the padding of the first rows",
           "omlx issue 2172", KNORM, PADDED, KNORM, padding_of_the_first_rows),
    _mutant(Uncopyable, COPY, "third-party caches", "deepcopy crashes: TypeError"),
    _mutant(SharedLayers, COPY, "plausible"),
    _mutant(Ring, ANY_LENGTH, "executorch PR 20346, mlxcel issue 413"),
    _mutant(LongPassesFirst, ANY_LENGTH, "executorch PR 20346"),
    _mutant(RingRestarts, ANY_LENGTH, "plausible", "in this order"),
    _mutant(OldScoresAreLost, ANY_LENGTH, "plausible", "retained token"),
    _mutant(EqualLengths, AS_HELD, "plausible"),
    _mutant(Blocks, STEPS, "plausible"),
    _mutant(Tires, HUNDREDS, "plausible", "holds"),
    _mutant(Bytes, HUNDREDS, "plausible"),
    _mutant(Compounding, HUNDREDS, "adaptivekv 0.1"),
    _mutant(MaskOfSeen, ANNOUNCED, "transformers PR 48280", "announces"),
    _mutant(MaskWithoutQuery, EAGER, "adaptivekv 0.1"),
    _mutant(MaskInOneLayer, ANNOUNCED, "transformers PR 48280", "layer 2"),
    _mutant(LengthHeld, ANNOUNCED, "plausible", "get_seq_length of the layers"),
    _mutant(WidthOfTheFirst, MODELS, "plausible", "crashes"),
    _mutant(DepthOfTheFirst, MODELS, "plausible"),
    _mutant(RatioOfTheFirst, MODELS, "plausible"),
    Mutant("operation-patches-a-class", "a class of transformers is patched while attached, so other models differ",
           "nexusquant-kv 0.6.3", hooked(PatchesAClass), OTHERS, HOOKED, says=("a Llama without a compressor",)),
    Mutant("operation-patched-at-import", "a class of transformers is patched for the whole process", "third-party",
           plain(Plain), OTHERS, breaks=at_import, says=("DynamicLayer.update is now that of",)),
    Mutant("operation-left-patched", "a class of transformers stays patched after a sequence", "plausible",
           HOOKED, test_leaks.test_the_model_is_left_unchanged, HOOKED, left_patched,
           says=("DynamicLayer.get_seq_length",)),
    Mutant("operation-first-layer", "the decision of layer 0 is used for all layers", "plausible",
           plain(FirstLayerDecides), LAYERS, says=("layer 1",)),
    Mutant("operation-layers-mixed", "scores are averaged over the layers", "plausible", plain(LayersMixed), LAYERS),
]  # fmt: skip
"""Mutants that the laws about operations, passes and models must kill."""
