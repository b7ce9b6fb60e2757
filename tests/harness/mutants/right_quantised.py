"""Correct quantised caches in different styles, small and really packed, on which no law may break.

Mutants of ``quantised.py`` override one method of one of them.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import ceil
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from pressgauge.conformance.subjects import Subject, subject_of

Parts = tuple[Tensor, ...]
"""What is stored of some tokens: codes and metadata ``[B, K, n, ...]``, joined along dimension 2."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes ``[..., D]`` packed into bytes ``[..., D * bits / 8]``; the first code is in the lowest bits."""
    each = codes.to(torch.uint8).unflatten(-1, (-1, 8 // bits))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    packed: Tensor = (each << shifts).sum(-1, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Inverse of ``pack``, as float32."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return codes.flatten(-2).float()


class Codec:
    """Quantisation of float32 vectors ``[B, K, n, D]``, with n a multiple of ``block``."""

    block = 1
    """Number of tokens that are quantised together."""

    def encode(self, x: Tensor) -> Parts:
        """What is stored."""
        raise NotImplementedError

    def decode(self, parts: Parts) -> Tensor:
        """What is read back."""
        raise NotImplementedError


class PerToken(Codec):
    """Asymmetric codes with scale and minimum for each group of channels of a token."""

    def __init__(self, bits: int = 4, group: int = 16) -> None:
        self.bits, self.group = bits, group

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and step of each group ``[..., D / group, group]``."""
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        return low, (high - low) / (2**self.bits - 1)

    def codes(self, x: Tensor, low: Tensor, step: Tensor) -> Tensor:
        """Codes from 0 to 2^bits - 1."""
        return ((x - low) / step.where(step > 0, 1)).round().nan_to_num().clamp(0, 2**self.bits - 1)

    def encode(self, x: Tensor) -> Parts:
        x = x.unflatten(-1, (-1, min(self.group, x.shape[-1])))
        low, step = self.range(x)
        return pack(self.codes(x, low, step).flatten(-2), self.bits), step[..., 0], low[..., 0]

    def decode(self, parts: Parts) -> Tensor:
        packed, step, low = parts
        codes = unpack(packed, self.bits).unflatten(-1, (step.shape[-1], -1))
        decoded: Tensor = codes * step[..., None] + low[..., None]
        return decoded.flatten(-2)


class PerChannel(Codec):
    """Asymmetric codes with scale and minimum for each channel of ``block`` consecutive tokens, as KIVI's keys.

    A token's NaN does not reach the scales.
    """

    def __init__(self, bits: int = 2, block: int = 8) -> None:
        self.bits, self.block = bits, block

    def encode(self, x: Tensor) -> Parts:
        x = x.unflatten(2, (-1, self.block))
        low = x.nan_to_num(torch.inf).amin(3, keepdim=True)
        step = (x.nan_to_num(-torch.inf).amax(3, keepdim=True) - low) / (2**self.bits - 1)
        codes = ((x - low) / step.where(step > 0, 1)).round().nan_to_num().clamp(0, 2**self.bits - 1)
        return pack(codes, self.bits).flatten(2, 3), step[:, :, :, 0], low[:, :, :, 0]

    def decode(self, parts: Parts) -> Tensor:
        packed, step, low = parts
        codes = unpack(packed, self.bits).unflatten(2, (-1, self.block))
        decoded: Tensor = codes * step[:, :, :, None] + low[:, :, :, None]
        return decoded.flatten(2, 3)


class Symmetric(Codec):
    """Signed bytes with the largest magnitude of each token."""

    def encode(self, x: Tensor) -> Parts:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale.where(scale > 0, 1)).round().nan_to_num().to(torch.int8), scale

    def decode(self, parts: Parts) -> Tensor:
        codes, scale = parts
        return codes.float() * scale


class Float8(Codec):
    """Numbers of 8-bit floating point (e4m3), with the largest magnitude of each token."""

    def encode(self, x: Tensor) -> Parts:
        scale = x.abs().amax(-1, keepdim=True) / 448
        return (x / scale.where(scale > 0, 1)).clamp(-448, 448).to(torch.float8_e4m3fn), scale

    def decode(self, parts: Parts) -> Tensor:
        codes, scale = parts
        return codes.float() * scale


class Ternary(Codec):
    """Minus one, zero or one, two bits each, with a scale for each token (Li et al., Ternary weight networks, 2016)."""

    def encode(self, x: Tensor) -> Parts:
        size = x.abs()
        there = size > 0.7 * size.mean(-1, keepdim=True)
        scale = (size * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
        return pack(x.sign() * there + 1, 2), scale

    def decode(self, parts: Parts) -> Tensor:
        packed, scale = parts
        return (unpack(packed, 2) - 1) * scale


@cache
def rotation(size: int, seed: int = 0) -> Tensor:
    """Random orthogonal matrix ``[D, D]``, float32."""
    generator = torch.Generator().manual_seed(seed)
    orthogonal: Tensor = torch.linalg.qr(torch.randn((size, size), generator=generator, dtype=torch.float64))[0]
    return orthogonal.float()


@cache
def codebook(bits: int) -> Tensor:
    """Lloyd-Max quantiser of a standard normal number: ``[2^bits]``, ascending."""
    points = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    weights = torch.exp(-(points**2) / 2)
    levels = torch.linspace(-2, 2, 2**bits, dtype=torch.float64)
    for _ in range(200):
        nearest = torch.bucketize(points, (levels[1:] + levels[:-1]) / 2)
        sums = torch.zeros_like(levels).index_add(0, nearest, weights * points)
        levels = sums / torch.zeros_like(levels).index_add(0, nearest, weights)
    return levels.float()


class Rotated(Codec):
    """A random rotation, one codebook, and norms: as TurboQuant (Zandieh et al., 2025) without its second stage."""

    def __init__(self, bits: int = 4, seed: int = 0) -> None:
        self.bits, self.seed = bits, seed

    def encode(self, x: Tensor) -> Parts:
        norm = x.norm(dim=-1, keepdim=True)
        units = x / norm.where(norm > 0, 1) @ rotation(x.shape[-1], self.seed).to(x.device)
        levels = codebook(self.bits).to(x.device)
        codes = torch.bucketize(units * x.shape[-1] ** 0.5, (levels[1:] + levels[:-1]) / 2)
        return pack(codes, self.bits), norm

    def decode(self, parts: Parts) -> Tensor:
        packed, norm = parts
        size = packed.shape[-1] * 8 // self.bits
        levels = codebook(self.bits).to(packed.device)
        units = levels[unpack(packed, self.bits).long()] / size**0.5
        decoded: Tensor = units @ rotation(size, self.seed).to(packed.device).T * norm
        return decoded


class Sketched(Rotated):
    """Rotated codes, and of their error the norm and the signs of a random projection.

    Inner products are unbiased over seeds, as those of both stages of TurboQuant (Zandieh et al., 2025).
    """

    factor = (torch.pi / 2) ** 0.5
    """Of signs: the mean of ``sign(s . r) s`` over normal vectors s is r / |r| divided by it."""

    def projection(self, size: int) -> Tensor:
        """Normal matrix ``[D, D]``."""
        return torch.randn((size, size), generator=torch.Generator().manual_seed(1000 + self.seed))

    def encode(self, x: Tensor) -> Parts:
        first = super().encode(x)
        error = x - super().decode(first)
        signs = error @ self.projection(x.shape[-1]).to(x.device).T > 0
        signs = torch.nn.functional.pad(signs, (0, -x.shape[-1] % 8))
        return *first, pack(signs, 1), error.norm(dim=-1, keepdim=True)

    def decode(self, parts: Parts) -> Tensor:
        *first, packed, norm = parts
        decoded: Tensor = super().decode(tuple(first))
        size = decoded.shape[-1]
        signs = 2 * unpack(packed, 1)[..., :size] - 1
        decoded += signs @ self.projection(size).to(signs.device) * (self.factor / size) * norm
        return decoded


class PackedLayer(DynamicLayer):
    """Codes of all tokens but the newest ``residual``, and of as many as fill blocks; the others are exact.

    Args:
        keys, values: their codecs.
        residual: number of newest tokens that are never quantised.
    """

    is_croppable = True

    def __init__(self, keys: Codec, values: Codec, residual: int = 0) -> None:
        super().__init__()
        self.codecs, self.residual = (keys, values), residual
        self.stored: list[Parts] = [(), ()]
        self.recent: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store entries, and return all as they are read back."""
        self.write(key_states, value_states)
        return self.read()

    def write(self, key_states: Tensor, value_states: Tensor) -> None:
        """Add entries, and quantise those that are no longer among the newest."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.recent = [key_states[:, :, :0], value_states[:, :, :0]]
        for index, new in enumerate((key_states, value_states)):
            self.recent[index] = torch.cat([self.recent[index], new], dim=2)
            self.age(index)

    def age(self, index: int) -> None:
        """Quantise keys (0) or values (1) that are no longer among the newest."""
        block = self.codecs[index].block
        ready = max(0, self.recent[index].shape[2] - self.residual) // block * block
        if ready:
            parts = self.codecs[index].encode(self.recent[index][:, :, :ready].float())
            self.store(index, parts)
            self.recent[index] = self.recent[index][:, :, ready:].clone()

    def store(self, index: int, parts: Parts) -> None:
        """Append codes and metadata."""
        old = self.stored[index]
        self.stored[index] = tuple(torch.cat(pair, dim=2) for pair in zip(old, parts, strict=True)) if old else parts

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, K, N, D]``."""
        keys, values = (self.read_back(index) for index in (0, 1))
        return keys, values

    def read_back(self, index: int) -> Tensor:
        """Keys (0) or values (1) ``[B, K, N, D]``."""
        recent = self.recent[index]
        if not self.stored[index]:
            return recent
        decoded = self.codecs[index].decode(self.stored[index])
        if recent.dtype == torch.float16:
            decoded = decoded.clamp(-65504, 65504)
        return torch.cat([decoded.to(recent.dtype), recent], dim=2)

    def get_seq_length(self, *args: Any) -> int:
        """Tokens seen."""
        if not self.recent:
            return 0
        return self.recent[0].shape[2] + (self.stored[0][0].shape[2] if self.stored[0] else 0)

    def reset(self) -> None:
        self.is_initialized, self.keys, self.values = False, None, None
        self.stored, self.recent = [(), ()], []

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens: minus their number, or, before transformers 5.10, the length to keep."""
        held = self.get_seq_length()
        left = held + tokens_to_remove if tokens_to_remove <= 0 else min(held, tokens_to_remove)
        if left < 0:
            raise ValueError(f"cannot remove {-tokens_to_remove} tokens of {held}")
        for codec, recent in zip(self.codecs, self.recent, strict=False):
            stored = min(left, held - recent.shape[2])
            if stored > max(0, left - self.residual) // codec.block * codec.block:
                raise ValueError(f"cannot crop to {left} tokens: {stored} of them are quantised, and would be exact")
        for index, recent in enumerate(self.recent):
            whole, block = held - recent.shape[2], self.codecs[index].block
            if left < whole:
                codes = self.stored[index][0].shape[2]
                self.stored[index] = tuple(
                    part[:, :, : left if part.shape[2] == codes else left // block].clone()
                    for part in self.stored[index]
                )
            self.recent[index] = recent[:, :, : max(0, left - whole)].clone()

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a function to all that is held."""
        self.stored = [tuple(map(change, parts)) for parts in self.stored]
        self.recent = list(map(change, self.recent))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.each(lambda part: part[beam_idx.to(part.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.each(lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.each(lambda part: part[indices.to(part.device)])


class FlushesBlocks(PackedLayer):
    """Keys and values wait until there are a residual and a block of them, as in tiny-turboquant's cache."""

    def __init__(self, keys: Codec, values: Codec, residual: int, block: int) -> None:
        super().__init__(keys, values, residual)
        self.flushed = block

    def age(self, index: int) -> None:
        held, residual = self.recent[index].shape[2], self.residual
        self.residual = held - max(0, held - residual) // self.flushed * self.flushed
        super().age(index)
        self.residual = residual

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("blocks cannot be cropped")


class WritesAfterwards(PackedLayer):
    """Attention sees a pass before it is quantised."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before = self.read() if self.is_initialized else (key_states[:, :, :0], value_states[:, :, :0])
        self.write(key_states, value_states)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (key_states, value_states), strict=True))
        return keys, values


class SimulatedLayer(DynamicLayer):
    """Numbers are rounded on their way in, and stored at full size."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rounded = [self.codec.decode(self.codec.encode(x.float())).to(x.dtype) for x in (key_states, value_states)]
        keys, values = super().update(*rounded)
        return keys, values


class EvictingLayer(PackedLayer):
    """Evicts the keys of largest norm under a budget, and quantises the others.

    Norms are stored with the codes, so that rounding does not change what is evicted.
    """

    def __init__(self, keep_ratio: float, prune_after: int) -> None:
        super().__init__(PerToken(4), PerToken(4))
        self.keep_ratio, self.prune_after = keep_ratio, prune_after
        self.seen = 0
        self.norms: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.write(key_states, value_states)
        self.seen += key_states.shape[2]
        self.norms = [torch.cat([*self.norms, key_states.double().norm(dim=-1)], dim=2)]
        entries = self.read()
        held = self.norms[0].shape[2]
        budget = max(1, self.prune_after, ceil(Fraction(str(self.keep_ratio)) * self.seen))
        if self.keep_ratio < 1 and self.prune_after < held > budget:
            order = self.norms[0].nan_to_num(torch.inf, torch.inf).argsort(dim=-1, stable=True)
            kept = order[..., :budget].sort(dim=-1).values[..., None]
            self.stored = [
                tuple(part.gather(2, kept.expand(-1, -1, -1, part.shape[3])) for part in parts) for parts in self.stored
            ]
            self.norms = [self.norms[0].gather(2, kept[..., 0])]
        return entries

    def get_seq_length(self, *args: Any) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        held = self.norms[0].shape[2] if self.norms else 0
        return held + new, self.seen - held

    def reset(self) -> None:
        super().reset()
        self.seen, self.norms = 0, []

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a cache that evicts cannot be cropped")

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        super().each(change)
        self.norms = list(map(change, self.norms))


class Quantised:
    """A factory's result: a cache with layers made by a function of their index."""

    def __init__(self, layer: Callable[[int], DynamicLayer]) -> None:
        self.layer = layer

    def cache(self, config: Any) -> Cache:
        """An empty cache."""
        return Cache(layers=[self.layer(index) for index in range(config.num_hidden_layers)])


def of_bits(bits: int, layer: Callable[..., DynamicLayer] = PackedLayer) -> Subject:
    """Subject of a factory that takes ``bits``: per token in groups of 8 channels, three newest exact."""

    def factory(keep_ratio: float, bits: int) -> Quantised:
        return Quantised(lambda index: layer(PerToken(bits, 8), PerToken(bits, 8), 3))

    factory.options = {"bits": [2, 4, 8]}  # type: ignore[attr-defined]
    declares = {**EVICTS_NOTHING, "bits": bits, "group": 8, "axis": "token", "residual": 3}
    return subject_of(f"bits={bits}", factory, declares, bits=bits)


def read(layer: Any) -> tuple[Tensor, Tensor]:
    """Entries of a layer, dequantised."""
    return layer.read() if isinstance(layer, PackedLayer) else (layer.keys, layer.values)


EVICTS_NOTHING: dict[str, Any] = {
    "prune_after": None,
    "skip_layers": None,
    "target": lambda seen, held: held,
    "entries": "quantised",
    "read": read,
}
"""Declarations of a quantised cache with a reader."""


def shared_exponents(keep_ratio: float) -> Callable[..., Any]:
    """A function over the whole cache: bytes with one power of two for each token, as microscaling formats."""

    def rounded(x: Tensor) -> Tensor:
        size = x.abs().amax(-1, keepdim=True).double()
        step = torch.exp2(torch.ceil(torch.log2(size / 127))).where(size > 0, 1)
        return ((x / step).round() * step).to(x.dtype)

    return lambda layers: [(rounded(keys), rounded(values)) for keys, values in layers]


def quantised(name: str, layer: Callable[..., DynamicLayer], **declares: Any) -> Subject:
    """Subject of a cache that evicts nothing; ``layer`` makes a layer."""
    return subject_of(name, lambda keep_ratio: Quantised(lambda index: layer()), {**EVICTS_NOTHING, **declares})


def kivi(layer: Callable[..., DynamicLayer] = WritesAfterwards, bits: int = 2, **declares: Any) -> Subject:
    """Subject of KIVI (Liu et al., 2024): keys per channel in groups of 8 tokens, values per token, 4 newest exact."""
    names: dict[Any, str] = {WritesAfterwards: f"KIVI, {bits} bits", PackedLayer: f"KIVI, {bits} bits, written first"}
    return quantised(
        names.get(layer, getattr(layer, "__name__", "KIVI")),
        lambda: layer(PerChannel(bits, 8), PerToken(bits, 8), 4),
        **{"bits": bits, "group": 8, "axis": ("channel", "token"), "residual": 4, "padding": None, **declares},
    )


def int4(layer: Callable[..., DynamicLayer] = PackedLayer, codec: Callable[..., Codec] = PerToken) -> Subject:
    """Subject of four bits per token in groups of 8 channels, without exact entries."""
    kinds = [kind for kind, right in ((layer, PackedLayer), (codec, PerToken)) if kind is not right]
    name = getattr(kinds[0], "__name__", "int4") if kinds else "int4, two a byte"
    return quantised(name, lambda: layer(codec(4, 8), codec(4, 8)), bits=4, group=8, axis="token", residual=0)


def ring(layer: Callable[..., DynamicLayer] = PackedLayer, bits: int = 4) -> Subject:
    """Subject of a residual of exactly the six newest tokens."""
    name = f"residual ring, {bits} bits" if layer is PackedLayer else getattr(layer, "__name__", "ring")
    return quantised(
        name, lambda: layer(PerToken(bits, 8), PerToken(bits, 8), 6), bits=bits, group=8, axis="token", residual=6
    )


def rotated(layer: Callable[..., DynamicLayer] = PackedLayer, codec: Callable[..., Codec] = Rotated) -> Subject:
    """Subject of rotated codes of four bits."""
    kinds = [kind for kind, right in ((layer, PackedLayer), (codec, Rotated)) if kind is not right]
    name = getattr(kinds[0], "__name__", "rotated") if kinds else "rotated codebook"
    return quantised(name, lambda: layer(codec(4), codec(4)), bits=4, error=0.11, residual=0)


def sketched(codec: Callable[..., Codec] = Sketched) -> Subject:
    """Subject of rotated codes of two bits with a sketch of their error, unbiased over ``seed``."""

    def factory(keep_ratio: float, seed: int = 0) -> Quantised:
        return Quantised(lambda index: PackedLayer(codec(2, seed), codec(2, seed)))

    declares = {**EVICTS_NOTHING, "bits": 3, "error": 0.45, "residual": 0, "unbiased": True}
    return subject_of("sketched" if codec is Sketched else codec.__name__, factory, declares)


def blocks(residual: int, layer: Callable[..., DynamicLayer] = FlushesBlocks) -> Subject:
    """Subject of keys per channel and values per token, both quantised in blocks of as many tokens as the residual."""
    return quantised(
        f"blocks of {residual}" if layer is FlushesBlocks else layer.__name__,
        lambda: layer(PerChannel(4, residual), PerToken(4, 32), residual, residual),
        **{"bits": 4, "group": (residual, 32), "axis": ("channel", "token"), "residual": residual, "padding": None},
    )


WAITING = quantised(
    "a ring that is emptied by halves",
    lambda: FlushesBlocks(PerToken(4, 8), PerToken(4, 8), 6, 6),
    bits=4,
    group=8,
    axis="token",
    residual=6,
    padding=None,
)
"""As many tokens as the residual wait, of which no declaration says so."""
BLOCKS = blocks(8)
INT8 = quantised("int8", lambda: PackedLayer(Symmetric(), Symmetric()), bits=8, axis="token", residual=0)
INT4 = int4()
KIVI = kivi()
KIVI_FIRST = kivi(PackedLayer)
RING = ring()
FLOAT8 = quantised("float8", lambda: WritesAfterwards(Float8(), Float8()), bits=8, error=0.04, residual=0)
ROTATED = rotated()
SKETCHED = sketched()
TERNARY = quantised("ternary", lambda: PackedLayer(Ternary(), Ternary()), bits=2, error=0.5, residual=0)
SIMULATED = quantised(
    "simulated", lambda: SimulatedLayer(PerToken(4, 8)), bits=4, group=8, axis="token", residual=0, simulated=True
)
SHARED_EXPONENTS = subject_of(
    "shared exponents",
    shared_exponents,
    {**{name: value for name, value in EVICTS_NOTHING.items() if name != "read"}, "error": 0.02, "simulated": True},
)


def evicting(layer: Callable[..., EvictingLayer] = EvictingLayer) -> Subject:
    """Subject of four bits per number, under a budget."""

    def factory(keep_ratio: float, prune_after: int = 512) -> Quantised:
        return Quantised(lambda index: layer(keep_ratio, prune_after))

    declares = {
        "skip_layers": None,
        "entries": "quantised",
        "bits": 4,
        "group": 16,
        "axis": "token",
        "residual": 0,
        "score": "knorm",
        "nan": "any",
        "padding": None,
        "read": read,
    }
    name = "evicts and quantises" if layer is EvictingLayer else layer.__name__
    return subject_of(name, factory, declares)


EVICTING = evicting()
UNDECLARED = quantised("int4, nothing declared", lambda: PackedLayer(PerToken(4, 8), PerToken(4, 8)))

RIGHT_QUANTISED = [
    INT8,
    INT4,
    KIVI,
    KIVI_FIRST,
    RING,
    WAITING,
    BLOCKS,
    FLOAT8,
    ROTATED,
    SKETCHED,
    TERNARY,
    SIMULATED,
    SHARED_EXPONENTS,
    EVICTING,
    UNDECLARED,
    of_bits(2),
    of_bits(8),
]
"""Right quantised caches; the last differ in bits only, and take them as an option."""
