"""Mutants and right compressors with declared dtypes, attention after eviction, and keys that are rotated anew."""

from typing import Any

import torch
from torch import Tensor

from conformance import test_attention, test_entries, test_identity
from harness.mutants.mutant import Mutant
from harness.mutants.plain import Hooked, Plain, plain
from harness.mutants.smoke import OWN, OwnStorage, Stores, read
from harness.mutants.ways_in import FOR_HOOKS, Patch
from pressgauge import KnormPress
from pressgauge.conformance.subjects import Subject, subject_of

ATTENTION = test_attention.test_logits_are_those_of_attention_to_the_held_entries
POSITIONS = test_attention.test_a_token_is_rotated_by_the_number_of_tokens_seen
HALF: dict[str, Any] = {"dtypes": ("float16", "bfloat16")}


class HalfOnly(OwnStorage):
    """Supports float16 and bfloat16 only."""

    def stored(self, tensor: Tensor) -> Tensor:
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            raise TypeError(f"expected a tensor in float16 or bfloat16, got {tensor.dtype}")
        return tensor


class Loud(HalfOnly):
    """Passes attend to values that are a two-hundredth too large."""

    def attended(self, entries: tuple[Tensor, Tensor], new: int) -> tuple[Tensor, Tensor]:
        return entries[0], (entries[1].float() * 1.005).to(entries[1].dtype)


class Wide(HalfOnly):
    """Passes attend to values in float32."""

    def attended(self, entries: tuple[Tensor, Tensor], new: int) -> tuple[Tensor, Tensor]:
        return entries[0], entries[1].float()


class HalfHooked(Hooked):
    """Hooks that support float16 only."""

    def after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs["hidden_states"].dtype != torch.float16:
            raise TypeError(f"expected float16, got {kwargs['hidden_states'].dtype}")
        super().after(module, args, kwargs, output)


class Shuffled(Plain):
    """Values of retained entries are in another order than their keys."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept, its = super().layer(index, keys, values)
        return kept, its if kept.shape == keys.shape else its.flip(2)


class Turned:
    """Rotation of keys ``[B, K, N, D]`` by further positions ``[B, K, N]``, written out.

    Args:
        model: a model with rotary embeddings.
    """

    def __init__(self, model: Any) -> None:
        self.frequencies = model.get_decoder().rotary_emb.inv_freq

    def __call__(self, keys: Tensor, by: Tensor) -> Tensor:
        half = len(self.frequencies)
        one, two, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
        angles = by[..., None] * self.frequencies.to(keys.dtype)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin, rest], dim=-1)


class Anew(OwnStorage):
    """Keys are rotated anew after an eviction, to their place among the held ones."""

    def __init__(self, press: Plain, layers: int, turned: Turned) -> None:
        super().__init__(press, layers)
        self.turned = turned

    def evict(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        held = keys.shape[2]
        if not self.press.evicts(held):
            return keys, values
        kept = self.press.choose(self.press.scores(keys), self.press.count(held))
        its = self.press.take(values, kept)
        return self.turned(self.press.take(keys, kept), self.shift(kept)), its

    def shift(self, kept: Tensor) -> Tensor:
        """Positions ``[B, K, N]`` by which the retained keys are turned."""
        return torch.arange(kept.shape[2]) - kept

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.layers[layer_idx].held)

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        return super().get_mask_sizes(query_length, layer_idx)[0], 0


class AnewStores(Stores):
    """Compressor of ``Anew``."""

    kind: type[Anew] = Anew

    def __init__(self, keep_ratio: float, model: Any, prune_after: int = 512) -> None:
        super().__init__(keep_ratio, prune_after)
        self.turned = Turned(model)

    def cache(self, config: Any) -> OwnStorage:
        return self.kind(self.press, config.num_hidden_layers, self.turned)


class Unturned(Anew):
    """Keys keep their rotation, and new ones get the next place."""

    def shift(self, kept: Tensor) -> Tensor:
        return torch.zeros_like(kept)


class ShiftedTogether(Anew):
    """All keys are turned as the newest, as if only the oldest had been evicted."""

    def shift(self, kept: Tensor) -> Tensor:
        return super().shift(kept)[..., -1:].expand(kept.shape)


def half(kind: type[OwnStorage]) -> Subject:
    """Subject of a cache that supports half precision only."""
    return subject_of(kind.__name__, type(kind.__name__, (Stores,), {"made": kind}), {**OWN, **HALF, "read": read})


def anew(kind: type[Anew]) -> Subject:
    """Subject of a cache whose keys are rotated anew."""
    compressor = type(kind.__name__, (AnewStores,), {"kind": kind})
    return subject_of(kind.__name__, compressor, {**OWN, "read": read, "positions": "rerotated"})


IN_HALF: dict[str, Any] = {**FOR_HOOKS, "dtypes": ("float16",)}
OF_HELD = {name: value for name, value in IN_HALF.items() if name != "positions"}
"""Without the declaration that the caller supplies positions."""


class Eager(OwnStorage):
    """Evicts before attention when decoding, and after it in longer passes."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        before = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return read(self.layers[layer_idx]) if key_states.shape[2] == 1 else before

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        keys, _ = super().get_mask_sizes(query_length, layer_idx)
        store = self.layers[layer_idx]
        left = self.press.count(keys) if keys == store.held + 1 and self.press.evicts(keys) else keys
        return left, store.seen + keys - store.held - left


def attending(kind: type[OwnStorage]) -> Subject:
    """Subject of a cache that declares to evict before it attends."""
    compressor = type(kind.__name__, (Stores,), {"made": kind})
    return subject_of(kind.__name__, compressor, {**OWN, "read": read, "attends": "after eviction"})


HALVES = half(HalfOnly)
HALF_HOOKED = subject_of("HalfHooked", HalfHooked, IN_HALF)
ANEW = anew(Anew)
EAGER = attending(Eager)

RIGHT_DECLARED = [
    HALVES,
    HALF_HOOKED,
    subject_of("HalfPatch", Patch, {**FOR_HOOKS, "dtypes": ("bfloat16",)}),
    plain(Plain, dtypes=("float16",)),
    subject_of("KnormPress in float16", KnormPress, {"score": "knorm", "dtypes": ("float16",)}),
    ANEW,
    EAGER,
]
"""Right compressors with these declarations."""

# fmt: off
DECLARED = [
    Mutant("half-loud", "in float16, attention reads values a two-hundredth too large", "plausible",
           half(Loud), ATTENTION, HALVES),
    Mutant("half-wide", "in float16, values are returned in float32", "plausible",
           half(Wide), test_identity.test_a_ratio_of_one_changes_nothing, HALVES,
           says=("in torch.float16 and returned them in torch.float32",)),
    Mutant("half-values", "in float16, values are out of step with keys", "plausible",
           plain(Shuffled, dtypes=("float16",)), test_entries.test_retained_entries_are_those_passed_in,
           plain(Plain, dtypes=("float16",))),
    Mutant("half-positions", "in a float16 model, positions are counted in held entries", "kvpress",
           subject_of("positions of held", HalfHooked, OF_HELD), ATTENTION, HALF_HOOKED,
           says=("4 times the error of models without a compressor in float16",)),
    Mutant("attends-after", "evicts after attention, and declares before", "plausible",
           attending(OwnStorage), ATTENTION, EAGER, says=("so it evicts after attention",)),
    Mutant("rotated-not", "keys are declared as rotated anew, and keep their rotation", "plausible",
           anew(Unturned), POSITIONS, ANEW, says=("is rotated by position",)),
    Mutant("rotated-together", "all keys are turned by the same number", "plausible",
           anew(ShiftedTogether), POSITIONS, ANEW, says=("is number 0, so that position 0 is right",)),
]
# fmt: on
