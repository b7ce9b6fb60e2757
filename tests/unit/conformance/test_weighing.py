"""Memory that is kept alive: found wherever it is, counted once, and no longer when it is released."""

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pressgauge.conformance import architectures
from pressgauge.conformance.reachable import reachable
from pressgauge.conformance.weighing import UNCOMPRESSED, Allocations, weigh


class _Slotted:
    __slots__ = ("keys", "values")

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys

    def compress(self) -> None:
        """Method of an object that holds a tensor."""


def _closure(tensor: Any) -> Any:
    def compress() -> Any:
        return tensor

    return compress


ONE = torch.zeros(3)
HOLDERS = {
    "list": [ONE],
    "nested": {"a": ({"b": [ONE]},)},
    "attribute": SimpleNamespace(inner=SimpleNamespace(tensor=ONE)),
    "slot": _Slotted(ONE),
    "method": _Slotted(ONE).compress,
    "closure": _closure(ONE),
    "partial": functools.partial(_closure, ONE),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_a_tensor_is_found_wherever_it_is_held(holder: Any) -> None:
    """Tensors are found in containers, attributes, slots, methods, closures and partials."""
    assert [part is ONE for _, part in reachable(holder)] == [True]


def test_memory_outside_torch_is_found_with_its_path() -> None:
    """Arrays and bytes are found with the path to them."""
    array = np.zeros(4)
    found = dict(reachable(SimpleNamespace(pages=[b"abc", bytearray(2)], array=array), "cache"))
    assert found == {"cache.pages.0": b"abc", "cache.pages.1": bytearray(2), "cache.array": array}


def test_models_are_not_entered() -> None:
    """A reference to a model or to a class keeps no entries."""
    assert list(reachable({"model": torch.nn.Linear(2, 2), "kind": _Slotted})) == []


def test_storages_count_as_long_as_they_live() -> None:
    """A storage counts in its present size until the last reference to it or to a view of it is gone."""
    with Allocations([ONE]) as allocations:
        whole = ONE.new_zeros(10)
        view = whole[:2]
        other = ONE + 1
    assert allocations.alive() == 40 + 12
    del whole, other
    assert allocations.alive() == 40
    view.untyped_storage().resize_(80)
    assert allocations.alive() == 80
    del view
    assert allocations.alive() == 0


def test_a_dynamic_cache_takes_what_its_entries_take() -> None:
    """A ``DynamicCache`` keeps its keys and values alive and nothing else; its peak while updating is higher."""
    model = architectures.under_test("llama")
    found = weigh(UNCOMPRESSED, model, architectures.text(model, 1, 20), [16, 1, 1, 1, 1], keep_ratio=1.0)
    config = model.config
    needed = 2 * 20 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * 8
    assert (found.alive, found.held) == (needed, (20,) * config.num_hidden_layers)
    assert found.peak > needed
    assert sum(size for _, size in found.parts) == needed
