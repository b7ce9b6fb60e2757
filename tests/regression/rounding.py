"""How far results may be from those of another GPU: as far as they move when numbers are rounded otherwise.

In float64 that is next to nothing. Below it, another GPU takes sums in another order, so that now and then the last bit
of what a layer gives is another one. That is done here on purpose, twice, at random: one in ``EVERY`` numbers that a
linear layer gives is moved by its last bit. A tolerance is ``TIMES`` the largest change that this makes in any row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regression.baseline import Rows

EVERY = 16
TIMES = 4
FIELDS = {"nll": 0.0, "hits": 1.0}
"""The fields that rounding moves, and the least change that is counted: one hit more or less comes by chance. What is
held, and when, is the same everywhere."""


@contextmanager
def rounded_otherwise(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Some numbers of each linear layer's output are off by their last bit, as long as the context is open."""
    generator = torch.Generator(device=model.device).manual_seed(seed)

    def move(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        drawn = torch.rand(output.shape, generator=generator, device=output.device)
        up, down = (moved.to(output.dtype) for moved in (drawn < 1 / EVERY, drawn > 1 - 1 / EVERY))
        # That share of a number is half of its last bit at least, and less than all of it: rounded, one bit.
        return output + output * (up - down) * (torch.finfo(output.dtype).eps / 2)

    handles = [part.register_forward_hook(move) for part in model.modules() if isinstance(part, nn.Linear)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tolerance(model: PreTrainedModel, measure: Callable[[], Rows]) -> dict[str, float]:
    """By field, relative, from what comes out as it is and rounded otherwise."""
    usual = measure()
    most = dict.fromkeys(FIELDS, 0.0)
    for seed in (1, 2):
        with rounded_otherwise(model, seed):
            other = measure()
        for name, row in usual.items():
            for field, least in FIELDS.items():
                was, now = float(row[field]), float(other[name][field])
                most[field] = max(most[field], max(abs(now - was), least) / abs(was))
    return {field: float(f"{TIMES * change:.2g}") for field, change in most.items()}
