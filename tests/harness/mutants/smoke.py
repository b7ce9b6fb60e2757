"""Mutants that do not run, cannot be read, or do nothing, and a right cache with storage of its own."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from conformance import test_smoke
from harness.mutants.mutant import Mutant
from harness.mutants.plain import Plain, plain
from pressgauge.conformance.subjects import Subject, subject_of

RUNS = test_smoke.test_it_runs_and_its_cache_can_be_read
ACTS = test_smoke.test_something_is_evicted_or_altered


class Store:
    """Entries of one layer, under names of its own."""

    def __init__(self) -> None:
        self.entries: tuple[Tensor, Tensor] | None = None
        self.seen = 0

    @property
    def held(self) -> int:
        """Number of held entries."""
        return 0 if self.entries is None else self.entries[0].shape[2]


def read(store: Store) -> tuple[Tensor, Tensor]:
    """Entries of a layer."""
    assert store.entries is not None
    return store.entries


class OwnStorage(DynamicCache):
    """A cache whose layers are a dict of ``Store``: it retains the best entries by ``Plain``, after attention."""

    def __init__(self, press: Plain, layers: int) -> None:
        super().__init__()
        self.press = press
        self.layers: Any = {layer: Store() for layer in reversed(range(layers))}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        store = self.layers[layer_idx]
        store.seen += key_states.shape[2]
        new = self.stored(key_states), self.stored(value_states)
        if store.entries is not None:
            new = torch.cat([store.entries[0], new[0]], dim=2), torch.cat([store.entries[1], new[1]], dim=2)
        store.entries = self.evict(layer_idx, *new)
        return self.attended(new, key_states.shape[2])

    def stored(self, tensor: Tensor) -> Tensor:
        """Keys or values as stored."""
        return tensor

    def evict(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Entries after an eviction."""
        kept, its = self.press.layer(layer, keys, values)
        return kept.clone(), its.clone()

    def attended(self, entries: tuple[Tensor, Tensor], new: int) -> tuple[Tensor, Tensor]:
        """Entries that the pass attends to."""
        return entries

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.layers[layer_idx].seen)

    @property
    def is_compileable(self) -> bool:
        return False

    def refuse(self, *given: Any, **options: Any) -> None:
        """Decline an operation, before anything is changed."""
        raise NotImplementedError("OwnStorage only grows and evicts")

    crop = reset = reorder_cache = batch_repeat_interleave = batch_select_indices = refuse

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        # A tensor of positions in older releases.
        new = query_length if isinstance(query_length, int) else len(query_length)
        store = self.layers[layer_idx]
        return store.held + new, store.seen - store.held


class Stores:
    """Compressor of ``OwnStorage``; layers hold equally many entries, since they share a mask."""

    made: type[OwnStorage] = OwnStorage

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        self.press = Plain(keep_ratio, prune_after)

    def cache(self, config: Any) -> OwnStorage:
        return self.made(self.press, config.num_hidden_layers)


OWN: dict[str, Any] = {"schedule": "step", "score": "knorm", "skip_layers": None, "padding": None}
QUIET: dict[str, Any] = {**OWN, "entries": "altered", "target": lambda seen, held: held, "read": read}


def stores(kind: type[OwnStorage] = OwnStorage, **declares: Any) -> Subject:
    """Subject of caches of this class."""
    compressor = type(kind.__name__, (Stores,), {"made": kind})
    return subject_of(kind.__name__, compressor, {**OWN, **declares})


READ = stores(read=read)
"""A right cache with storage of its own, read as declared."""


class Forgetful(OwnStorage):
    """Passes attend to their own tokens only."""

    def attended(self, entries: tuple[Tensor, Tensor], new: int) -> tuple[Tensor, Tensor]:
        return entries[0][:, :, -new:], entries[1][:, :, -new:]

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else len(query_length)
        return new, self.layers[layer_idx].seen


class Unfinished(OwnStorage):
    """It calls a function that no longer exists."""

    def stored(self, tensor: Tensor) -> Tensor:
        renamed: Any = torch
        return renamed.no_such_function(tensor)  # type: ignore[no-any-return]


class Hidden(OwnStorage):
    """Its layers have attributes ``keys`` and ``values``, which stay empty."""

    def __init__(self, press: Plain, layers: int) -> None:
        super().__init__(press, layers)
        for store in self.layers.values():
            store.keys = store.values = torch.tensor([])


class Idle(OwnStorage):
    """Evicts and alters nothing."""

    def evict(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values


class Coarse(Idle):
    """Stores eighths, and evicts nothing."""

    def stored(self, tensor: Tensor) -> Tensor:
        return (tensor * 8).round() / 8


class Quantising(OwnStorage):
    """Stores eighths of what is retained."""

    def stored(self, tensor: Tensor) -> Tensor:
        return (tensor * 8).round() / 8


COARSE = stores(Coarse, **QUIET)

# fmt: off
SMOKE = [
    Mutant("smoke-hidden", "keys and values stay empty, and entries are elsewhere", "tiny-turboquant 0.18",
           stores(Hidden), RUNS, READ, says=("its keys are", "declare read")),
    Mutant("smoke-dict", "layers are a dict of objects without keys", "adaptivekv 0.1",
           stores(), RUNS, READ, says=("layer 0 .a Store of a OwnStorage. cannot be read",)),
    Mutant("smoke-crash", "it calls a function that was removed from a library", "turboquant 0.2.0",
           stores(Unfinished, read=read), RUNS, READ, says=("no_such_function", r"smoke\.py, line \d+")),
    Mutant("smoke-forgetful", "passes attend to their own tokens only", "plausible",
           stores(Forgetful, read=read), RUNS, READ, says=("those of each token alone",)),
    Mutant("vacuous-evicting", "a budget is declared, and nothing is evicted", "plausible",
           stores(Idle, read=read, target=lambda seen, held: min(held, 16)), ACTS, READ,
           says=("nothing was evicted from 40 tokens", "declared are evictions")),
    Mutant("vacuous-window", "a window of 5,000 tokens, longer than every text", "plausible",
           stores(Idle, read=read, target=lambda seen, held: min(held, 5000)), ACTS, READ,
           says=("evicts from 5001 tokens on",)),
    Mutant("vacuous-quantised", "quantisation is declared, and entries are stored as they are", "adaptivekv 0.1",
           stores(Idle, **QUIET), ACTS, COARSE, says=("nothing altered", "declared are entries as altered")),
    Mutant("vacuous-half", "evicts, and quantises nothing", "adaptivekv 0.1",
           plain(Plain, entries="altered"), ACTS, stores(Quantising, read=read, entries="altered"),
           says=("every key and value read back is one that was passed in",)),
    Mutant("vacuous-ratio", "alters entries, and evicts nothing", "plausible",
           stores(Coarse, read=read, entries="altered"), ACTS, COARSE, says=("declare its target",)),
]
# fmt: on
