"""The meter counts what a plain calculation says, and leaves no trace."""

import gc
import resource
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.cuda import max_memory_allocated
from transformers import DynamicCache

from pressgauge import KnormPress
from pressgauge.conformance.versions import cache_of, using
from pressgauge.measuring.counters import HOST, SEGMENT
from pressgauge.measuring.footprints import model_of
from pressgauge.measuring.meter import ACTIVATIONS, Meter
from pressgauge.measuring.storages import Storages
from pressgauge.measuring.views import SLOTS, Views

TOKEN = 3 * 2 * 4 * 128 * 2
"""Bytes of a token in the cache: layers, keys and values, heads, dimension, bytes."""
WEIGHTS = 2 * (2 * 64 * 32 + 3 * (4 * 32 * 512 + 3 * 32 * 32 + 2 * 32) + 32)
"""Embeddings in and out, attention, MLP and norms of three layers, and the last norm, in bfloat16."""
BUFFERS = 2 * 2 * 64
"""The rotary embedding's frequencies and their originals, in bfloat16."""


def model() -> Any:
    return model_of(4, torch.bfloat16)


def ids(tokens: int) -> torch.Tensor:
    return torch.arange(1, tokens + 1)[None]


@torch.no_grad()
def decode(lengths: list[int], cache: Any = None) -> Any:
    """Feed passes of these lengths; the cache."""
    cache = DynamicCache() if cache is None else cache
    for length in lengths:
        model()(ids(length), **using(cache))
    return cache


def measured(function: Any, meter: Meter | None = None) -> tuple[Any, Meter]:
    """What a function returns on the device."""
    meter = Meter(model()) if meter is None else meter
    with meter.measuring(function):
        result = function()
    return result, meter


def test_the_peak_of_an_arm_is_weights_and_cache_and_its_largest_pass() -> None:
    """In a prompt of 20 tokens activations decide, and after 9 further ones the cache does."""
    for lengths, held, fed in (([20, 1, 1], 20, 20), ([20] + [1] * 9, 29, 1), ([4, 16], 20, 16)):

        def run(lengths: list[int] = lengths) -> int:
            torch.cuda.reset_peak_memory_stats()
            decode(lengths)
            return torch.cuda.max_memory_allocated()

        peak, meter = measured(run)
        expected = (
            WEIGHTS + BUFFERS + max(20 * (TOKEN + ACTIVATIONS) * (lengths[0] == 20), held * TOKEN + fed * ACTIVATIONS)
        )
        assert peak == expected
        assert [arm.peak for arm in meter.runs] == [expected]


def test_a_snapshot_is_what_is_alive_and_a_reset_begins_there() -> None:
    """The peak before a reset is that of what ran before; a freed cache is not allocated, and still reserved."""

    def run() -> list[int]:
        before = torch.cuda.max_memory_allocated()
        cache = decode([10])
        held = torch.cuda.memory_allocated()
        del cache
        gc.collect()
        freed = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return [before, held - freed, freed, torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()]

    result, _ = measured(run)
    base = WEIGHTS + BUFFERS
    assert result == [3 * WEIGHTS, 10 * TOKEN, base, base, -(-3 * WEIGHTS // SEGMENT) * SEGMENT]


def test_the_last_state_of_a_cache_is_known_though_it_was_freed_unseen() -> None:
    """What a function evicts with its last statement counts, also where it returns at once."""

    def run() -> None:
        cache: Any = decode([10])
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :4].clone(), layer.values[:, :, :4].clone()

    _, meter = measured(run)
    assert sum(layer.storage for layer in meter.runs[0].state) == 4 * TOKEN
    assert meter.storages.live() == 0


def test_a_view_counts_with_its_whole_storage() -> None:
    """Half of a storage that is kept alive by a view is in memory, and is not shown by the view."""
    cache: Any = decode([10])
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :4], layer.values[:, :, :4]
    storages = Storages()
    state = storages.held(cache, None)
    assert [(layer.storage, layer.numbers, layer.other) for layer in state] == [
        (10 * TOKEN // 3, 4 * TOKEN // 3, 0)
    ] * 3
    kept = cache.layers[0].keys
    del cache, layer
    gc.collect()
    assert storages.live() == 10 * TOKEN // 6
    del kept
    assert storages.live() == 0


def test_metadata_is_what_is_neither_key_nor_value() -> None:
    """Of a pressed cache positions, ranks and the record of evictions: 4, 8 and 4 bytes for each head."""
    press = KnormPress(0.5, prune_after=4)
    settled = decode([10], press.cache(model().config))
    assert settled.nbytes == 5 * TOKEN
    state = Storages().held(settled, None)
    assert [layer.storage for layer in state] == [5 * TOKEN // 3] * 3
    assert all(layer.other >= 5 * 4 * (4 + 8) for layer in state)


def test_the_compressor_that_evicts_by_views_keeps_all_slots() -> None:
    """As a context and as a cache it shows 30 % of the tokens, holds all slots, and decodes on."""
    views = Views(0.3)
    with views(model()), torch.no_grad():
        output = model()(ids(20), use_cache=True)
    caches = [cache_of(output), decode([20], views.cache(model().config))]
    for cache in caches:
        decode([1], cache)
        state = Storages().held(cache, None)
        assert cache.get_seq_length() == 21
        assert [layer.numbers for layer in state] == [7 * TOKEN // 3] * 3
        assert [layer.storage for layer in state] == [SLOTS * TOKEN // 3] * 3


def test_tensors_say_that_they_are_on_the_device_while_a_function_runs() -> None:
    """Moving there, making a tensor there and asking where it is work, and afterwards all is as before."""

    def run() -> list[torch.device]:
        tensors = [torch.ones(1), torch.ones(1).cuda(), torch.ones(1).to("cuda:0"), torch.ones(1, device="cuda")]
        return [model().device, *(tensor.device for tensor in tensors)]

    there, _ = measured(run)
    assert {device.type for device in there} == {"cuda"}
    here, _ = measured(lambda: torch.ones(1).device, Meter(model(), "cpu"))
    assert here == torch.ones(1).device == torch.device("cpu")


def test_counters_are_replaced_wherever_their_names_are_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of torch, of the process, and names that a module imported."""
    psutil: Any = ModuleType("psutil")
    psutil.Process = type("Process", (), {"memory_info": lambda self: SimpleNamespace(rss=1)})
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    before = max_memory_allocated, torch.cuda.is_available, resource.getrusage, psutil.Process.memory_info

    def run() -> tuple[int, ...]:
        rss = psutil.Process().memory_info().rss
        return max_memory_allocated(), torch.accelerator.is_available(), rss

    result, meter = measured(run)
    assert result == (3 * WEIGHTS, True, HOST)
    assert [read.name for read in meter.device.reads] == ["rss", "max_memory_allocated"]
    assert (max_memory_allocated, torch.cuda.is_available, resource.getrusage, psutil.Process.memory_info) == before
    assert psutil.Process().memory_info().rss == 1


def test_without_a_device_counters_read_0_and_nothing_can_be_reset() -> None:
    """As with a torch that was built for the CPU."""

    def run() -> tuple[bool, int]:
        for refused in (torch.cuda.reset_peak_memory_stats, torch.cuda.synchronize):
            with pytest.raises(RuntimeError, match="there is no device"):
                refused()
        return torch.cuda.is_available(), torch.cuda.max_memory_allocated()

    assert measured(run, Meter(model(), "cpu"))[0] == (False, 0)


def test_nothing_is_left_on_the_model() -> None:
    """Hooks are removed, also where the function fails."""

    def fail() -> None:
        decode([4])
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measured(fail)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model().modules())
