"""Tolerances for another GPU, derived from the effect of perturbed rounding.

In float64 the effect is negligible. In other dtypes, another GPU adds in another order, which changes the last bit of
some outputs. This is simulated twice, at random: one in ``EVERY`` outputs of linear layers is changed by its last bit.
A tolerance is ``TIMES`` the largest change in any row.
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
"""Fields that depend on rounding, and the least change that counts: one hit more or less is random. The number and time
of evictions are the same on every machine."""


@contextmanager
def rounded_otherwise(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Context in which some outputs of each linear layer are off by their last bit."""
    generator = torch.Generator(device=model.device).manual_seed(seed)

    def move(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        drawn = torch.rand(output.shape, generator=generator, device=output.device)
        up, down = (moved.to(output.dtype) for moved in (drawn < 1 / EVERY, drawn > 1 - 1 / EVERY))
        # This share of a number is between half of its last bit and the whole bit, so rounding gives one bit.
        return output + output * (up - down) * (torch.finfo(output.dtype).eps / 2)

    handles = [part.register_forward_hook(move) for part in model.modules() if isinstance(part, nn.Linear)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tolerance(model: PreTrainedModel, measure: Callable[[], Rows]) -> dict[str, float]:
    """Relative tolerance by field, from results with and without perturbed rounding."""
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
