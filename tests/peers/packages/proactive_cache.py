"""proactive-cache: ``ProactiveCache.apply(model, budget=...)``, then ``model.generate``."""

from collections.abc import Callable
from typing import Any

from proactive_cache import ProactiveCache
from torch import Tensor

from peers.packages.adapt import NEITHER, declared

DEFAULT = 256
"""Budget of ``apply`` by default."""


def factory(keep_ratio: float) -> Callable[..., Any]:
    """The README's calls, without profiling: sinks and recent tokens are retained."""

    def generate(model: Any, input_ids: Tensor, max_new_tokens: int) -> Any:
        ProactiveCache.apply(model, budget=int(keep_ratio * DEFAULT))
        try:
            return model.generate(input_ids, max_new_tokens=max_new_tokens, do_sample=False)
        finally:
            ProactiveCache.remove(model)

    return generate


declared(factory, {**NEITHER, "sinks": 4})
