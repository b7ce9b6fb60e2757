"""Mutants of memory: compressors that keep more alive than they hold, or report less than they keep."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from conformance import test_bytes
from harness.mutants.mutant import Mutant
from harness.mutants.plain import Layers, Plain, plain
from pressgauge.conformance.subjects import subject_of


class Archive(Plain):
    """Evicted entries are moved to a list of the compressor, to be recalled."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.archive: list[Tensor] = []

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = super().layer(index, keys, values)
        if kept[0] is not keys:
            self.archive += [keys, values]
        return kept


class ClassWide(Plain):
    """The latest entries before eviction are kept in an attribute of the class."""

    latest: dict[int, tuple[Tensor, Tensor]] = {}  # noqa: RUF012  # the bug

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = super().layer(index, keys, values)
        if kept[0] is not keys:
            ClassWide.latest[index] = keys, values
        return kept


class InNumpy(Plain):
    """Evicted entries are moved to arrays outside torch."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.archive: list[Any] = []

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = super().layer(index, keys, values)
        if kept[0] is not keys:
            self.archive += [tensor.numpy().copy() for tensor in (keys, values)]
        return kept


class InBytes(Plain):
    """All entries are kept once more in serialised form."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.pages: dict[int, list[bytes]] = {}

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.pages.setdefault(index, []).append(keys.numpy().tobytes() + values.numpy().tobytes())
        return super().layer(index, keys, values)


class Padded(Plain):
    """Retained entries are a view of storage that is reserved for twice the longest text."""

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().layer(index, keys, values)
        return self.reserved(keys), self.reserved(values)

    def reserved(self, tensor: Tensor) -> Tensor:
        """The entries as a view of larger storage."""
        storage = tensor.new_zeros((*tensor.shape[:2], 2 * sum(test_bytes.LENGTHS), tensor.shape[3]))
        storage[:, :, : tensor.shape[2]] = tensor
        return storage[:, :, : tensor.shape[2]]


class Journal(Plain):
    """A copy of every token's key is appended to a journal, for a later pass that never comes."""

    def compress(self, layers: Layers) -> Layers:
        newest = [keys[:, :, -1:].clone() for keys, _ in layers]
        self.journal = torch.cat([getattr(self, "journal", newest[0][:, :, :0]), *newest], dim=2)
        self.journal = torch.cat([self.journal, self.journal[:, :, :1].expand(-1, -1, 63, -1)], dim=2)
        return super().compress(layers)


class Reporting:
    """A cache with a figure of its own memory."""

    def __init__(self, keep_ratio: float, prune_after: int = 512, skip_layers: tuple[int, ...] = ()) -> None:
        self.plain = Plain(keep_ratio, prune_after, skip_layers)

    def cache(self, config: Any) -> Any:
        return _Shrinking(self.plain, config)


class _Shrinking(DynamicCache):
    def __init__(self, plain: Plain, config: Any) -> None:
        super().__init__(config=config)
        self.plain = plain
        self.seen = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer: Any = self.layers[layer_idx]
        layer.keys, layer.values = self.plain.layer(layer_idx, layer.keys, layer.values)
        self.seen += key_states.shape[2] if layer_idx == 0 else 0
        return found

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return self.seen

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        layers: list[Any] = list(self.layers)
        return sum(int(tensor.nbytes) for layer in layers for tensor in (layer.keys, layer.values))


def reporting(**reports: Any) -> Any:
    """Subject of a cache under ``step`` that reports its memory."""
    shown = ", ".join(reports)
    return subject_of(f"Reporting({shown})", Reporting, {"schedule": "step", "reports": reports})


def _entry(layer: Any) -> int:
    return int(layer.keys.shape[1] * layer.keys.shape[3] * layer.keys.element_size())


def _whole(cache: Any, compressor: Any) -> float:
    """Bytes of an uncompressed cache."""
    return float(sum(2 * cache.seen * _entry(layer) for layer in cache.layers))


RIGHT_REPORTS = reporting(
    bytes=lambda cache, compressor: cache.nbytes,
    ratio=lambda cache, compressor: _whole(cache, compressor) / cache.nbytes,
    saved=lambda cache, compressor: 1 - cache.nbytes / _whole(cache, compressor),
)
"""Three figures that are right."""

LESS = test_bytes.test_a_compressed_cache_takes_less_memory_than_an_uncompressed_one
NOTHING_ELSE = test_bytes.test_nothing_is_kept_alive_but_the_held_entries
REPORTS = test_bytes.test_reported_memory_is_what_is_kept_alive

KEPT_ALIVE = [
    Mutant(
        "own-archive",
        "evicted entries are kept in a list",
        "adaptivekv 0.1 holds 1.4 times the bytes",
        plain(Archive),
        LESS,
        says=(r"times the .* of a DynamicCache", "archive"),
    ),
    Mutant(
        "own-class-attribute",
        "evicted entries are kept in an attribute of a class",
        "plausible",
        plain(ClassWide),
        NOTHING_ELSE,
    ),
    Mutant("own-numpy-archive", "evicted entries are kept in numpy arrays", "plausible", plain(InNumpy), LESS),
    Mutant("own-pages", "all entries are kept in bytes objects", "plausible", plain(InBytes), NOTHING_ELSE),
    Mutant(
        "own-reserved-storage",
        "storage is reserved for the longest text, and retained entries are a view of it",
        "turboquant 0.2.0 holds 2.1 times the bytes",
        plain(Padded),
        LESS,
        says=("2.00 times",),
    ),
    Mutant(
        "own-journal", "keys are appended to a journal that is never read", "plausible", plain(Journal), NOTHING_ELSE
    ),
    Mutant(
        "own-reports-keys",
        "reported bytes are those of keys",
        "turboquant_plus PR 53",
        reporting(bytes=lambda cache, compressor: cache.nbytes / 2),
        REPORTS,
        RIGHT_REPORTS,
        says=("reports bytes",),
    ),
    Mutant(
        "own-reports-ratio",
        "the reported ratio has another uncompressed size: 16-bit numbers",
        "turboquant_plus PR 53",
        reporting(ratio=lambda cache, compressor: _whole(cache, compressor) / 2 / cache.nbytes),
        REPORTS,
        RIGHT_REPORTS,
        says=("reports ratio",),
    ),
    Mutant(
        "own-reports-plan",
        "the reported saving is 1 - keep_ratio, whatever is held",
        "nexusquant-kv 0.6.3: 'memory saved' is simulated",
        reporting(saved=lambda cache, compressor: 1 - compressor.plain.keep_ratio),
        REPORTS,
        RIGHT_REPORTS,
        says=("reports saved",),
    ),
]
"""Mutants of laws about memory."""
