"""proactive-cache: ``ProactiveCache.apply(model, budget=...)``, then ``model.generate``."""

from collections.abc import Callable
from typing import Any

from proactive_cache import ProactiveCache
from torch import Tensor

from peers.packages.adapt import NEITHER, declared


def factory(keep_ratio: float, prompt_length: int) -> Callable[..., Any]:
    """The README's calls, without profiling: a budget of a share of the prompt, for sinks and recent tokens."""
    budget = 10**6 if keep_ratio == 1 else int(keep_ratio * prompt_length)

    def generate(model: Any, input_ids: Tensor, max_new_tokens: int) -> Any:
        ProactiveCache.apply(model, budget=budget)
        try:
            return model.generate(input_ids, max_new_tokens=max_new_tokens, do_sample=False)
        finally:
            ProactiveCache.remove(model)

    return generate


declared(factory, {**NEITHER, "sinks": 4})
