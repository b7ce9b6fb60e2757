"""proactive-cache: what its patched ``generate`` does to the cache of the prompt, as a function over the cache."""

import torch
from proactive_cache.eviction import score_tokens, select_indices

from peers.packages.adapt import NEITHER, declared

BUDGET = 24


def factory(keep_ratio: float) -> object:
    """``ProactiveCache.apply(model, budget=24)`` without prototypes: sinks and recent tokens."""
    done: set[int] = set()

    def compress(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        held = layers[0][0].shape[2]
        if done or held <= BUDGET:
            done.add(0)
            return layers
        done.add(0)
        kept = torch.tensor(select_indices(score_tokens(None, held, BUDGET), BUDGET))
        return [(keys.index_select(2, kept), values.index_select(2, kept)) for keys, values in layers]

    return compress


# "Retaining only a fixed constant budget B": sinks, and recent tokens as half of it.
declared(factory, {**NEITHER, "target": lambda seen, held: min(held, BUDGET), "sinks": 4, "recent": BUDGET // 2})
