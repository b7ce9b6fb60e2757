"""What adapters share: declarations of a cache that does not evict, and codecs as functions over the cache."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

NEITHER: dict[str, Any] = {"prune_after": None, "skip_layers": None}
"""The package has no such option."""

QUANTISES: dict[str, Any] = {**NEITHER, "entries": "quantised", "target": lambda seen, held: held}
"""It quantises, and evicts nothing."""


def declared(factory: Any, declares: Any, options: dict[str, list[Any]] | None = None) -> Any:
    """A factory with declarations, and with the values of its options."""
    factory.declares = declares
    if options:
        factory.options = options
    return factory


def written_once(codec: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Any], Any]:
    """A function over the cache that applies a codec to keys and values ``[B, K, N, D]`` of each pass, once."""
    done: dict[int, int] = {}

    def compress(layers: Any) -> Any:
        found = []
        for index, (keys, values) in enumerate(layers):
            before = done.get(index, 0)
            if keys.shape[2] <= before:
                # Another sequence.
                before = 0
            keys, values = keys.clone(), values.clone()
            keys[:, :, before:], values[:, :, before:] = codec(keys[:, :, before:], values[:, :, before:])
            done[index] = keys.shape[2]
            found.append((keys, values))
        return found

    return compress
