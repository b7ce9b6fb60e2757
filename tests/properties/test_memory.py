"""Rule 9: memory is freed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pressgauge import KnormPress, PressedCache
from pressgauge.conformance import architectures
from pressgauge.conformance.strategies import HEADS, LAYERS, Case, cases
from pressgauge.conformance.subjects import Subject
from support.drive import CONFIG, feed, run


@given(data=st.data())
def test_storage_is_the_size_of_the_held_entries(subject: Subject, data: st.DataObject) -> None:
    """``nbytes`` is the held entries times the size of one, at most 2 % more, after every pass; the overhead at most 16
    bytes per entry."""
    case: Case = data.draw(cases(subject.schedule))
    entry = case.keys.element_size() * (case.keys.shape[3] + 2)

    def look(cache: PressedCache, seen: int) -> None:
        entries = HEADS * sum(cache.held)
        assert entries * entry <= cache.nbytes <= 1.02 * entries * entry
        assert cache.overhead_nbytes <= 16 * 1.02 * entries

    feed(subject(**case.options), case.keys, case.passes, prompt_length=case.prompt_length, look=look)


@pytest.mark.parametrize("interval", [1, 7, 64])
def test_long_decoding_stays_within_its_storage(subject: Subject, interval: int) -> None:
    """Rule 9: storage is bounded where slots are reused, over hundreds of single tokens."""
    if subject.schedule == "prefill":
        interval = 1
    keys = torch.randn(1, HEADS, 420, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def look(cache: PressedCache, seen: int) -> None:
        entries = HEADS * sum(cache.held)
        assert cache.nbytes <= 1.02 * entries * 8 * 5
        assert cache.overhead_nbytes <= 16 * 1.02 * entries

    feed(subject(0.4, prune_after=100, interval=interval), keys, [260] + [1] * 160, look=look)


def test_no_storage_is_shared_with_inputs_or_outputs() -> None:
    """No input and no view of a larger buffer is kept alive (C4 of the bug catalogue)."""
    keys = torch.randn(1, HEADS, 200, 3)
    cache = KnormPress(0.5, prune_after=0).cache(CONFIG)
    for layer in range(LAYERS):
        cache.update(keys, keys.clone(), layer)
    kept = cache.layers[0].keys
    assert kept is not None
    assert kept.untyped_storage().data_ptr() != keys.untyped_storage().data_ptr()
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_a_prompt_is_freed_layer_by_layer() -> None:
    """While a long prompt is fed, at most one layer holds all of it."""
    cache = KnormPress(0.1, prune_after=10).cache(CONFIG)
    keys = torch.randn(1, HEADS, 1000, 3)
    for layer in range(LAYERS):
        cache.update(keys, keys, layer)
        whole = [other for other in range(layer + 1) if cache.layers[other].storage["keys"].shape[2] > 100]
        assert whole == [layer]


def test_a_cache_outlives_inference_mode(subject: Subject) -> None:
    """A cache filled in ``torch.inference_mode`` can be decoded further and read outside it."""
    keys = torch.randn(1, HEADS, 90, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    press = subject(0.5, prune_after=60)
    expected = feed(press, keys, [70] + [1] * 20)
    cache = press.cache(CONFIG)
    for step, (start, end) in enumerate([(0, 70), *((t, t + 1) for t in range(70, 90))]):
        with torch.inference_mode(step % 2 == 0):
            for layer in range(LAYERS):
                cache.update(keys[:, :, start:end], keys[:, :, start:end, :2], layer)
        assert cache.nbytes
    for layer, table in enumerate(cache.evicted_at):
        assert torch.equal(table, expected.evicted_at[layer])
        assert torch.equal(cache.layers[layer].keys, expected.layers[layer].keys)


def test_skipped_layers_are_counted_too() -> None:
    """``nbytes`` and ``held`` include skipped layers (M8 of the bug catalogue)."""
    model = architectures.shared("llama")
    cache = run(model, KnormPress(0.5, prune_after=4, skip_layers=(0,)), architectures.tokens(1, 20), [20]).cache
    assert cache.held == [20, 10, 10]
    assert cache.nbytes == 40 * 2 * 2 * 8 * 8  # entries of all layers, KV heads, keys and values, dimension, bytes
