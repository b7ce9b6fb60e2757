"""Mutants of quantised caches: each has one bug, the place where it was seen, and the law that must kill it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conformance import (
    test_attention,
    test_entries,
    test_operations,
    test_quantised,
    test_quantised_inputs,
    test_quantised_model,
    test_rows,
)
from harness.mutants.mutant import Mutant
from harness.mutants.right_quantised import (
    EVICTING,
    EVICTS_NOTHING,
    FLOAT8,
    INT4,
    INT8,
    KIVI,
    RING,
    ROTATED,
    SKETCHED,
    Codec,
    EvictingLayer,
    Float8,
    PackedLayer,
    Parts,
    PerChannel,
    PerToken,
    Quantised,
    Rotated,
    Sketched,
    Symmetric,
    WritesAfterwards,
    evicting,
    int4,
    kivi,
    of_bits,
    quantised,
    ring,
    rotated,
    rotation,
    sketched,
    unpack,
)
from pressgauge.conformance.subjects import Subject, subject_of
from support.laws import Law

LEVELS = test_quantised.test_entries_have_no_more_levels_than_their_bits
STEP = test_quantised.test_entries_are_within_half_a_step
ONCE = test_quantised.test_what_is_read_back_never_changes
PASSES = test_quantised.test_entries_beyond_the_residual_do_not_depend_on_passes
RESIDUAL = test_quantised.test_the_residual_is_exact_at_every_moment
INDEPENDENT = test_rows.test_rows_are_independent
ROWS = test_quantised_inputs.test_a_row_is_quantised_as_if_alone
HEADS = test_quantised_inputs.test_a_head_is_quantised_as_if_alone
PADDING = test_quantised_inputs.test_padding_does_not_reach_codes_or_scales
LATER = test_quantised_inputs.test_no_scale_is_made_with_later_tokens
EXTREMES = test_quantised_inputs.test_extreme_entries_are_read_back
PRODUCTS = test_quantised_inputs.test_inner_products_have_a_bounded_error
MODEL = test_quantised_model.test_a_model_notices_fewer_bits
BYTES = test_quantised_model.test_a_token_takes_the_declared_bytes
ATTENTION = test_attention.test_logits_are_those_of_attention_to_the_held_entries
COPY = test_attention.test_a_copied_cache_is_independent
BEAMS = test_operations.test_reordered_rows_continue_as_the_rows_they_were
RETAINED = test_entries.test_retained_entries_are_those_passed_in


# When entries are quantised


class GroupsOfOne(WritesAfterwards):
    """After the prompt, each token that ages is quantised as a group of its own, with a range of 0."""

    def age(self, index: int) -> None:
        codec = self.codecs[index]
        ready = max(0, self.recent[index].shape[2] - self.residual)
        for token in range(ready):
            one = self.recent[index][:, :, token : token + 1].float()
            parts = codec.encode(one.expand(-1, -1, codec.block, -1))
            self.store(index, tuple(part[:, :, :1] for part in parts))
        self.recent[index] = self.recent[index][:, :, ready:].clone()

    def read_back(self, index: int) -> Tensor:
        if not self.stored[index] or self.codecs[index].block == 1:
            return super().read_back(index)
        packed, step, low = self.stored[index]
        decoded = unpack(packed, self.codecs[index].bits) * step + low  # type: ignore[attr-defined]
        return torch.cat([decoded.to(self.recent[index].dtype), self.recent[index]], dim=2)


class ResidualOfTheCall(PackedLayer):
    """Of each call, all tokens but the newest R are quantised: decoding never quantises."""

    def write(self, key_states: Tensor, value_states: Tensor) -> None:
        self.new = key_states.shape[2]
        super().write(key_states, value_states)

    def age(self, index: int) -> None:
        if self.new > self.residual:
            super().age(index)


class Requantised(PackedLayer):
    """What is read back is quantised again with each pass, in groups that end at the newest token."""

    def write(self, key_states: Tensor, value_states: Tensor) -> None:
        if self.is_initialized:
            self.recent = list(self.read())
            self.stored = [(), ()]
        super().write(key_states, value_states)

    def age(self, index: int) -> None:
        codec, recent = self.codecs[index], self.recent[index]
        first = max(0, recent.shape[2] - self.residual) % codec.block
        self.first = getattr(self, "first", [recent[:, :, :0]] * 2)
        self.first[index] = recent[:, :, :first]
        self.recent[index] = recent[:, :, first:]
        super().age(index)

    def read_back(self, index: int) -> Tensor:
        return torch.cat([self.first[index], super().read_back(index)], dim=2)

    def get_seq_length(self, *args: Any) -> int:
        return super().get_seq_length() + (self.first[0].shape[2] if self.is_initialized else 0)


class PromptQuantisedWhole(PackedLayer):
    """The prompt is quantised to its last token, and only later tokens are held back."""

    def age(self, index: int) -> None:
        residual, self.residual = self.residual, 0 if not self.stored[index] else self.residual
        super().age(index)
        self.residual = residual


class ResidualEmptiedWhole(PackedLayer):
    """A full residual is quantised to its newest token."""

    def age(self, index: int) -> None:
        if self.recent[index].shape[2] > self.residual:
            residual, self.residual = self.residual, 0
            super().age(index)
            self.residual = residual


class ResidualShort(PackedLayer):
    """One token fewer than declared is exact."""

    def __init__(self, keys: Codec, values: Codec, residual: int = 0) -> None:
        super().__init__(keys, values, residual - 1)


class ValuesNeverQuantised(PackedLayer):
    """Only keys are quantised."""

    def age(self, index: int) -> None:
        if index == 0:
            super().age(index)


# Scales


class FrozenScale(Float8):
    """One scale, from the first pass; what exceeds it later is clipped."""

    def scale_of(self, x: Tensor) -> Tensor:
        return x.abs().amax((2, 3), keepdim=True) / 448

    def __init__(self) -> None:
        self.scale: Tensor | None = None

    def encode(self, x: Tensor) -> Parts:
        if self.scale is None:
            self.scale = self.scale_of(x)
        scale = self.scale.clamp(min=1e-30)
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale.expand(*x.shape[:3], 1)


class FrozenScaleOfTheBatch(FrozenScale):
    """The scale is that of all rows, with their padding."""

    def scale_of(self, x: Tensor) -> Tensor:
        return (x.abs().amax() / 448).expand(x.shape[0], x.shape[1], 1, 1)


class UnclippedFrozenScale(FrozenScale):
    """What exceeds the scale of the first pass becomes NaN."""

    def encode(self, x: Tensor) -> Parts:
        scale = super().encode(x)[1]
        return (x / scale).to(torch.float8_e4m3fn).where(x.abs() <= 448 * scale, torch.tensor(torch.nan)), scale


class WrappingFrozenScale(FrozenScale):
    """What exceeds the scale of the first pass wraps around in eight bits."""

    def encode(self, x: Tensor) -> Parts:
        _, scale = super().encode(x)
        return (x / scale / 448 * 127).round().long().to(torch.int8), scale * 448 / 127

    def decode(self, parts: Parts) -> Tensor:
        return parts[0].float() * parts[1]


class ScaleOfThePass(Symmetric):
    """One scale for all tokens of a pass."""

    def encode(self, x: Tensor) -> Parts:
        scale = x.abs().amax((2, 3), keepdim=True).expand(*x.shape[:3], 1) / 127
        return (x / scale.where(scale > 0, 1)).round().nan_to_num().to(torch.int8), scale


class ScaleOfAllRows(Symmetric):
    """The token's scale is that of all rows."""

    def encode(self, x: Tensor) -> Parts:
        scale = x.abs().amax((0, 3), keepdim=True).expand(*x.shape[:3], 1) / 127
        return (x / scale.where(scale > 0, 1)).round().nan_to_num().to(torch.int8), scale


class ScaleOfAllHeads(PerToken):
    """The heads of a token share minimum and step."""

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = x.amin((1, 4), keepdim=True), x.amax((1, 4), keepdim=True)
        step = (high - low) / (2**self.bits - 1)
        return low.expand(*x.shape[:4], 1), step.expand(*x.shape[:4], 1)


class ScaleOfNeighbours(PerToken):
    """On reading, each group gets the step of the next one."""

    def decode(self, parts: Parts) -> Tensor:
        packed, step, low = parts
        return super().decode((packed, step.roll(1, dims=-1), low))


class GroupsOverRows(PerChannel):
    """Groups run over the flattened tokens of all rows."""

    def encode(self, x: Tensor) -> Parts:
        rows, tokens = x.shape[0], x.shape[2]
        flat = x.movedim(2, 0).flatten(0, 1)[None].transpose(1, 2)  # [1, K, T * B, D]
        packed, step, low = super().encode(flat)
        step, low = (each.repeat_interleave(self.block, dim=2) for each in (step, low))
        own = []
        for part in (packed, step, low):
            own.append(part[0].unflatten(1, (tokens, rows)).permute(2, 0, 1, 3))
        return tuple(own)

    def decode(self, parts: Parts) -> Tensor:
        packed, step, low = parts
        return unpack(packed, self.bits) * step + low


class RunningScale(PackedLayer):
    """All codes are read with the largest scale seen so far."""

    def store(self, index: int, parts: Parts) -> None:
        super().store(index, parts)
        codes, scale = self.stored[index]
        self.stored[index] = (codes, scale.amax(2, keepdim=True).expand_as(scale))


class BlockScaledByLaterTokens(PackedLayer):
    """Tokens are quantised at once, and their block again when it is complete, with one scale for the block."""

    def store(self, index: int, parts: Parts) -> None:
        super().store(index, parts)
        codes, scale = self.stored[index]
        whole = scale.shape[2] // 16 * 16
        blocks = scale[:, :, :whole].unflatten(2, (-1, 16))
        largest = blocks.amax(3, keepdim=True).expand_as(blocks).flatten(2, 3)
        ratio = (scale[:, :, :whole] / largest.where(largest > 0, 1)).nan_to_num()
        again = (codes[:, :, :whole].float() * ratio).round().to(torch.int8)
        self.stored[index] = tuple(
            torch.cat([new, old[:, :, whole:]], dim=2) for new, old in ((again, codes), (largest, scale))
        )


class ValuesWithKeyScales(PackedLayer):
    """Values are quantised and read with the minimum and step of their keys."""

    def store(self, index: int, parts: Parts) -> None:
        if index == 0:
            self.of_keys = parts[1:]
        super().store(index, parts if index == 0 else (parts[0], *self.of_keys))


# Codes


class SwappedNibbles(PerToken):
    """Packed with the first code in the lowest bits, and read with it in the highest."""

    def decode(self, parts: Parts) -> Tensor:
        packed, step, low = parts
        return super().decode(((packed >> 4) | (packed << 4), step, low))


class ZeroPointLost(PerToken):
    """Symmetric on reading: the minimum is not added."""

    def decode(self, parts: Parts) -> Tensor:
        packed, step, low = parts
        return super().decode((packed, step, low * 0))


class SignLost(Symmetric):
    """Codes are magnitudes."""

    def encode(self, x: Tensor) -> Parts:
        codes, scale = super().encode(x)
        return codes.abs(), scale


class ClippedHalfway(PerToken):
    """Asymmetric codes are clipped as signed ones, at 2^(bits - 1) - 1."""

    def codes(self, x: Tensor, low: Tensor, step: Tensor) -> Tensor:
        return super().codes(x, low, step).clamp(max=2 ** (self.bits - 1) - 1)


class Truncated(PerToken):
    """Codes are rounded down."""

    def codes(self, x: Tensor, low: Tensor, step: Tensor) -> Tensor:
        return ((x - low) / step.where(step > 0, 1)).floor().nan_to_num().clamp(0, 2**self.bits - 1)


class PreviousCodes(PackedLayer):
    """Each token of a pass gets the codes of the one before."""

    def store(self, index: int, parts: Parts) -> None:
        super().store(index, (torch.cat([parts[0][:, :, :1], parts[0][:, :, :-1]], dim=2), *parts[1:]))


class FourBitsForTwo(PerToken):
    """Uses four bits whatever is asked."""

    def __init__(self, bits: int = 4, group: int = 16) -> None:
        super().__init__(4, group)


# Constants and large numbers


class RangeOfAThousandth(PerToken):
    """A range of 0 is replaced by .001, and its inverse overflows float16."""

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, step = super().range(x)
        return low, step.where(step > 0, 0.001)

    def codes(self, x: Tensor, low: Tensor, step: Tensor) -> Tensor:
        inverse = (255 / (step * 255)).half()
        zero = (-low.half() * inverse).round()
        return (x.half() * inverse + zero).nan_to_num(0, 0, 0).float().clamp(0, 2**self.bits - 1)


class ZeroPointOfAConstant(PerToken):
    """Codes are multiples of the step without a minimum, and that of a constant is 0."""

    def encode(self, x: Tensor) -> Parts:
        packed, step, low = super().encode(x)
        return packed, step, torch.where(step > 0, low, 0)


class ZeroByZero(PerToken):
    """A constant is divided by its range of 0."""

    def encode(self, x: Tensor) -> Parts:
        packed, step, low = super().encode(x)
        return packed, step * (step / step), low


class HalfPrecision(PerToken):
    """Read back in float16: the range of large numbers overflows."""

    def decode(self, parts: Parts) -> Tensor:
        packed, step, low = parts
        return super().decode((packed, (step * 15).half().float() / 15, low))


class SmallestScale(PerToken):
    """Steps are at least 1e-4, so that small numbers become zero."""

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, step = super().range(x)
        return low, step.clamp(min=1e-4)


class NotANumberSpreads(PerChannel):
    """A token's NaN reaches the scale of the tokens in its group."""

    def encode(self, x: Tensor) -> Parts:
        packed, step, low = super().encode(x)
        return packed, step + (x.unflatten(2, (-1, self.block)) * 0).sum(3), low


# Rotations


class TwoBases(Rotated):
    """Single tokens are rotated by another matrix than many; reading assumes that of many."""

    def encode(self, x: Tensor) -> Parts:
        seed = self.seed + (x.shape[2] == 1)
        return Rotated(self.bits, seed).encode(x)


class NormsNotStored(Rotated):
    """Unit vectors are read back."""

    def encode(self, x: Tensor) -> Parts:
        packed, norm = super().encode(x)
        return packed, torch.ones_like(norm)


class NotRotatedBack(Rotated):
    """What is read back is in the rotated basis."""

    def decode(self, parts: Parts) -> Tensor:
        decoded = super().decode(parts)
        return decoded @ rotation(decoded.shape[-1], self.seed)


class Unbiased(Rotated):
    """Norms are divided by the projection of the code on its vector, so that inner products are unbiased."""

    def encode(self, x: Tensor) -> Parts:
        packed, norm = super().encode(x)
        projection = (super().decode((packed, norm)) * x).sum(-1, keepdim=True)
        return packed, norm**3 / projection.where(projection > 0, 1)


class SignsAlone(Sketched):
    """The signs of the error are added without the factor that makes them unbiased."""

    factor = 1.0


class NoiseFromOneSketch(Rotated):
    """A second stage adds a sketch of one sign: unbiased over seeds, with an enormous variance."""

    def decode(self, parts: Parts) -> Tensor:
        decoded = super().decode(parts)
        generator = torch.Generator().manual_seed(int(parts[0].sum()))
        return decoded + parts[1] * torch.randn(decoded.shape, generator=generator) * 0.5


# Attention, copies and memory


class StaleReading(PackedLayer):
    """What was read back once is handed to attention again, without the newest change of its tokens."""

    earlier: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.write(key_states, value_states)
        (keys, values), earlier = self.read(), self.earlier
        self.earlier = (keys, values)
        if earlier is None:
            return keys, values
        old = earlier[0].shape[2]
        stale = [
            torch.cat([then * 1.1, now[:, :, old:]], dim=2) for then, now in zip(earlier, (keys, values), strict=True)
        ]
        return stale[0], stale[1]


class OriginalsForAttention(PackedLayer):
    """Attention gets a copy at full precision."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.write(key_states, value_states)
        keys, values = getattr(self, "full", (key_states[:, :, :0], value_states[:, :, :0]))
        self.full = torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)
        return self.full


class SharedByCopies(PackedLayer):
    """Copies share a buffer for codes, into which tokens are written in place."""

    def store(self, index: int, parts: Parts) -> None:
        self.used = getattr(self, "used", [0, 0])
        if not self.stored[index]:
            self.stored[index] = tuple(part.new_zeros((*part.shape[:2], 256, part.shape[3])) for part in parts)
        start, end = self.used[index], self.used[index] + parts[0].shape[2]
        for buffer, part in zip(self.stored[index], parts, strict=True):
            buffer[:, :, start:end] = part
        self.used[index] = end

    def read_back(self, index: int) -> Tensor:
        parts = tuple(part[:, :, : self.used[index]] for part in self.stored[index])
        return self.codecs[index].decode(parts).to(self.recent[index].dtype)

    def get_seq_length(self, *args: Any) -> int:
        return self.used[0] if self.stored[0] else 0

    def __deepcopy__(self, memo: Any) -> "SharedByCopies":
        other = type(self)(*self.codecs)
        other.__dict__.update(self.__dict__)
        other.used, other.stored, other.recent = list(self.used), list(self.stored), list(self.recent)
        return other


class Fake(PackedLayer):
    """Quantised and dequantised on the way in, and stored at full size."""

    def store(self, index: int, parts: Parts) -> None:
        super().store(index, (self.codecs[index].decode(parts).to(self.recent[index].dtype),))

    def read_back(self, index: int) -> Tensor:
        return torch.cat([*self.stored[index][:1], self.recent[index]], dim=2)


class LosesAtGrowth(PackedLayer):
    """When storage grows beyond 128 tokens, the first tokens get the step of the third."""

    def store(self, index: int, parts: Parts) -> None:
        before = self.stored[index][0].shape[2] if self.stored[index] else 0
        super().store(index, parts)
        packed, step, low = self.stored[index]
        if before <= 128 < packed.shape[2]:
            self.stored[index] = packed, torch.cat([step[:, :, 2:3].expand_as(step[:, :, :2]), step[:, :, 2:]], 2), low


class ReorderedWithoutScales(PackedLayer):
    """Beam search reorders codes, and not their scales."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.stored = [(parts[0][beam_idx], *parts[1:]) for parts in self.stored]
        self.recent = [part[beam_idx] for part in self.recent]


class ScalesNotEvicted(EvictingLayer):
    """Evictions select codes, and drop the newest scales."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before = [tuple(parts) for parts in self.stored]
        entries = super().update(key_states, value_states)
        held = self.stored[0][0].shape[2]
        if held < entries[0].shape[2] and all(before):
            self.stored = [
                (
                    now[0],
                    *(torch.cat([old, new], dim=2)[:, :, :held] for old, new in zip(then[1:], now[1:], strict=True)),
                )
                for then, now in zip(before, self.stored, strict=True)
            ]
        return entries


def by_token(codec: Callable[[], Codec]) -> Subject:
    """Subject of bytes with a scale for each token."""
    return quantised(codec.__name__, lambda: PackedLayer(codec(), codec()), bits=8, axis="token", residual=0)


def float8(codec: Callable[[], Codec]) -> Subject:
    """Subject of 8-bit floating point."""
    return quantised(codec.__name__, lambda: WritesAfterwards(codec(), codec()), bits=8, error=0.04, residual=0)


def kivi_keys(codec: Callable[..., Codec]) -> Subject:
    """Subject of KIVI with other keys."""
    return quantised(
        codec.__name__,
        lambda: WritesAfterwards(codec(2, 8), PerToken(2, 8), 4),
        bits=2,
        group=8,
        axis=("channel", "token"),
        residual=4,
        padding=None,
    )


def altered(codec: Callable[..., Codec]) -> Subject:
    """Subject of keys of two bits and 128 exact tokens, which says only that its entries are altered."""
    return quantised(
        f"{codec.__name__}, altered",
        lambda: WritesAfterwards(codec(2, 8), PerToken(2, 8), 128),
        entries="altered",
        padding=None,
    )


def bits_ignored() -> Subject:
    """Subject whose factory takes ``bits`` and always uses four."""

    def factory(keep_ratio: float, bits: int) -> Quantised:
        return Quantised(lambda index: PackedLayer(PerToken(4, 8), PerToken(4, 8), 3))

    factory.options = {"bits": [2, 4, 8]}  # type: ignore[attr-defined]
    declares = {**EVICTS_NOTHING, "bits": 4, "group": 8, "axis": "token", "residual": 3}
    return subject_of("bits ignored", factory, declares, bits=4)


def two_declared() -> Subject:
    """Subject that declares two bits and uses four."""
    return quantised(
        "FourBitsForTwo",
        lambda: PackedLayer(FourBitsForTwo(2, 8), FourBitsForTwo(2, 8), 3),
        bits=2,
        group=8,
        axis="token",
        residual=3,
    )


def claims(codec: Callable[..., Codec], **declares: Any) -> Subject:
    """Subject of rotated codes with further claims."""
    more = {"bits": 4, "error": 0.11, "residual": 0, **declares}
    return quantised(codec.__name__, lambda: PackedLayer(codec(4), codec(4)), **more)


def mutant(name: str, kind: type, law: Law, twin: Subject, subject: Subject, seen_in: str = "plausible") -> Mutant:
    """A mutant, described by the first sentence of its class."""
    what = " ".join((kind.__doc__ or "").split()).partition(". ")[0].rstrip(".")
    return Mutant(f"quantised-{name}", what, seen_in, subject, law, twin)


QUANTISED: list[Mutant] = [
    mutant("groups-of-one", GroupsOfOne, LEVELS, KIVI, kivi(GroupsOfOne), "VeloxQuant-MLX issue 162"),
    mutant(
        "residual-of-the-call", ResidualOfTheCall, RESIDUAL, RING, ring(ResidualOfTheCall), "VeloxQuant-MLX issue 86"
    ),
    mutant("residual-and-passes", ResidualOfTheCall, PASSES, RING, ring(ResidualOfTheCall), "VeloxQuant-MLX issue 86"),
    mutant("requantised", Requantised, ONCE, KIVI, kivi(Requantised), "VeloxQuant-MLX issue 397"),
    mutant(
        "prompt-whole", PromptQuantisedWhole, RESIDUAL, RING, ring(PromptQuantisedWhole), "transformers issue 34189"
    ),
    mutant(
        "emptied-whole", ResidualEmptiedWhole, RESIDUAL, RING, ring(ResidualEmptiedWhole), "transformers issue 34189"
    ),
    mutant("residual-short", ResidualShort, RESIDUAL, RING, ring(ResidualShort)),
    mutant("values-never", ValuesNeverQuantised, LEVELS, INT4, int4(ValuesNeverQuantised)),
    mutant("frozen-scale", FrozenScale, PASSES, FLOAT8, float8(FrozenScale), "transformers' fp8 cache in 5.23"),
    mutant(
        "frozen-batch", FrozenScaleOfTheBatch, ROWS, FLOAT8, float8(FrozenScaleOfTheBatch), "transformers' fp8 cache"
    ),
    mutant(
        "frozen-nan", UnclippedFrozenScale, EXTREMES, FLOAT8, float8(UnclippedFrozenScale), "transformers' fp8 cache"
    ),
    mutant("frozen-wraps", WrappingFrozenScale, EXTREMES, FLOAT8, float8(WrappingFrozenScale)),
    mutant("scale-of-the-pass", ScaleOfThePass, PASSES, INT8, by_token(ScaleOfThePass)),
    mutant("padding", ScaleOfThePass, PADDING, INT8, by_token(ScaleOfThePass), "tiny-turboquant 0.18"),
    mutant("scale-of-all-rows", ScaleOfAllRows, ROWS, INT8, by_token(ScaleOfAllRows), "sglang PR 22777"),
    mutant("scale-of-all-heads", ScaleOfAllHeads, HEADS, INT4, int4(codec=ScaleOfAllHeads)),
    mutant("scale-of-neighbours", ScaleOfNeighbours, STEP, INT4, int4(codec=ScaleOfNeighbours)),
    mutant("groups-over-rows", GroupsOverRows, ROWS, KIVI, kivi_keys(GroupsOverRows), "sglang PR 22777"),
    mutant("groups-over-rows-altered", GroupsOverRows, INDEPENDENT, altered(PerChannel), altered(GroupsOverRows)),
    mutant(
        "running-scale",
        RunningScale,
        ONCE,
        INT8,
        quantised("RunningScale", lambda: RunningScale(Symmetric(), Symmetric()), bits=8, axis="token", residual=0),
    ),
    mutant(
        "later-tokens",
        BlockScaledByLaterTokens,
        LATER,
        INT8,
        quantised(
            "BlockScaledByLaterTokens",
            lambda: BlockScaledByLaterTokens(Symmetric(), Symmetric()),
            bits=8,
            error=0.02,
            residual=0,
        ),
        "tiny-turboquant 0.18",
    ),
    mutant("values-with-key-scales", ValuesWithKeyScales, HEADS, INT4, int4(ValuesWithKeyScales)),
    mutant("swapped-nibbles", SwappedNibbles, STEP, INT4, int4(codec=SwappedNibbles)),
    mutant("zero-point-lost", ZeroPointLost, STEP, INT4, int4(codec=ZeroPointLost)),
    mutant("sign-lost", SignLost, STEP, INT8, by_token(SignLost)),
    mutant("clipped-halfway", ClippedHalfway, STEP, INT4, int4(codec=ClippedHalfway)),
    mutant("truncated", Truncated, STEP, INT4, int4(codec=Truncated)),
    mutant("previous-codes", PreviousCodes, RETAINED, INT4, int4(PreviousCodes)),
    mutant("four-bits-for-two", FourBitsForTwo, LEVELS, of_bits(2), two_declared()),
    mutant(
        "range-of-a-thousandth", RangeOfAThousandth, EXTREMES, INT4, int4(codec=RangeOfAThousandth), "openvino PR 37095"
    ),
    mutant(
        "zero-point-of-a-constant",
        ZeroPointOfAConstant,
        EXTREMES,
        INT4,
        int4(codec=ZeroPointOfAConstant),
        "openvino PR 34105",
    ),
    mutant("zero-by-zero", ZeroByZero, EXTREMES, INT4, int4(codec=ZeroByZero), "hqq issue 159"),
    mutant("half-precision", HalfPrecision, EXTREMES, INT4, int4(codec=HalfPrecision), "tiny-turboquant 0.18"),
    mutant("smallest-scale", SmallestScale, EXTREMES, INT4, int4(codec=SmallestScale)),
    mutant("nan-spreads", NotANumberSpreads, EXTREMES, KIVI, kivi_keys(NotANumberSpreads)),
    mutant("two-bases", TwoBases, STEP, ROTATED, rotated(codec=TwoBases), "mlx-vlm PR 973"),
    mutant("two-bases-and-passes", TwoBases, PASSES, ROTATED, rotated(codec=TwoBases), "mlx-vlm PR 973"),
    mutant("norms-not-stored", NormsNotStored, STEP, ROTATED, rotated(codec=NormsNotStored)),
    mutant("not-rotated-back", NotRotatedBack, STEP, ROTATED, rotated(codec=NotRotatedBack)),
    mutant("biased", Rotated, PRODUCTS, claims(Unbiased, unbiased=True), claims(Rotated, unbiased=True)),
    mutant("biased-over-seeds", SignsAlone, PRODUCTS, SKETCHED, sketched(SignsAlone), "turboquant ports"),
    mutant(
        "noisy-sketch", NoiseFromOneSketch, PRODUCTS, ROTATED, rotated(codec=NoiseFromOneSketch), "turboquant ports"
    ),
    mutant("stale-reading", StaleReading, ATTENTION, INT4, int4(StaleReading)),
    mutant("originals-for-attention", OriginalsForAttention, ATTENTION, INT4, int4(OriginalsForAttention)),
    mutant("shared-by-copies", SharedByCopies, COPY, INT4, int4(SharedByCopies)),
    mutant("loses-at-growth", LosesAtGrowth, ONCE, INT4, int4(LosesAtGrowth)),
    mutant("fake", Fake, BYTES, INT4, int4(Fake), "sglang PR 22777"),
    mutant(
        "ratio-by-formula",
        Rotated,
        BYTES,
        claims(Rotated, ratio=3.7),
        claims(Rotated, ratio=4.0),
        "turboquant_plus PR 53",
    ),
    mutant("reordered-without-scales", ReorderedWithoutScales, BEAMS, INT4, int4(ReorderedWithoutScales)),
    mutant("scales-not-evicted", ScalesNotEvicted, RETAINED, EVICTING, evicting(ScalesNotEvicted)),
    mutant("bits-ignored", FourBitsForTwo, MODEL, of_bits(2), bits_ignored()),
]
"""Mutants of quantised caches."""
