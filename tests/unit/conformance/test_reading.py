"""Entries are read from caches of any kind, or a sentence says why not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import QuantizedLayer

from pressgauge.conformance import architectures
from pressgauge.conformance.declares import read_declares
from pressgauge.conformance.outcomes import Unreadable
from pressgauge.conformance.reading import entries_of, layers_of, reader_of
from pressgauge.conformance.session import run
from pressgauge.conformance.subjects import Subject, subject_of

NEITHER: dict[str, Any] = {"prune_after": None, "skip_layers": None, "target": lambda seen, held: held}


class Packed:
    """A layer whose entries are not under ``keys`` and ``values``."""

    def __init__(self) -> None:
        self.keys = self.values = torch.tensor([])
        self.parts: list[tuple[Tensor, Tensor]] = []

    def stored(self) -> tuple[Tensor, Tensor]:
        """All entries."""
        return torch.cat([keys for keys, _ in self.parts], dim=2), torch.cat([v for _, v in self.parts], dim=2)


class OfItsOwn(DynamicCache):
    """A cache that stores entries in its own layers, which are in a list or a dict."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers
        self.passes = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self.layers[layer_idx]
        layer.parts.append((key_states, value_states))
        return layer.stored()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        layer: Any = self.layers[layer_idx]
        return layer.stored()[0].shape[2] if layer.parts else 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        # A tensor of positions in older releases.
        more = query_length if isinstance(query_length, int) else len(query_length)
        return self.get_seq_length(layer_idx) + more, 0


def storing(layers: Callable[[int], Any], **declares: Any) -> Subject:
    """Subject of ``OfItsOwn``."""

    class Compressor:
        def __init__(self, keep_ratio: float) -> None:
            pass

        def cache(self, config: Any) -> OfItsOwn:
            return OfItsOwn(layers(config.num_hidden_layers))

    return subject_of("own", Compressor, {**NEITHER, **declares})


def in_list(count: int) -> list[Packed]:
    return [Packed() for _ in range(count)]


def in_dict(count: int) -> dict[int, Packed]:
    return {index: Packed() for index in reversed(range(count))}


@pytest.mark.parametrize("layers", [in_list, in_dict])
@pytest.mark.parametrize(
    "read",
    [lambda layer: layer.stored(), lambda cache, index: cache.layers[index].stored()],
    ids=["layer", "cache and index"],
)
def test_entries_are_read_as_declared(layers: Callable[[int], Any], read: Callable[..., Any]) -> None:
    """With ``read``, the held entries are what it returns, from a list of layers and from a dict."""
    model = architectures.shared("llama")
    trace = run(storing(layers, read=read), model, architectures.text(model, 1, 9), [7, 1, 1])
    for layer in range(architectures.LAYERS):
        arrived, held = trace.arrived(layer), trace.passes[-1].held[layer]
        assert all(torch.equal(mine, own) for mine, own in zip(held, arrived, strict=True))


@pytest.mark.parametrize("layers", [in_list, in_dict])
def test_an_unreadable_cache_is_a_finding_in_words(layers: Callable[[int], Any]) -> None:
    """A cache that cannot be read gives one sentence with the layer and the way out, and no error of Python."""
    model = architectures.shared("llama")
    with pytest.raises(Unreadable) as finding:
        run(storing(layers), model, architectures.text(model, 1, 9), [7, 1, 1])
    assert str(finding.value) == (
        "the entries of layer 0 (a Packed of a OfItsOwn) cannot be read: by the attributes keys and values its keys "
        "are [0], and not [B, K, N, D]; declare read, a function read(layer) or read(cache, index) that returns the "
        "keys and values of a layer, [B, K, N, D] each"
    )


def test_a_read_that_fails_is_a_finding_in_words() -> None:
    """An error of a declared ``read`` is named in the finding."""
    model = architectures.shared("llama")
    subject = storing(in_list, read=lambda layer: layer.packed)
    with pytest.raises(Unreadable, match="declares read raises AttributeError: 'Packed' object has no attribute"):
        run(subject, model, architectures.text(model, 1, 9), [7, 1, 1])


class Halves(QuantizedLayer):
    """transformers' layer with float16 numbers for codes."""

    def _quantize(self, tensor: Tensor, axis: int = 0) -> Any:
        return tensor.half()

    def _dequantize(self, q_tensor: Tensor) -> Any:
        return q_tensor.float()


def halves(residual: int) -> tuple[Any, Any, Tensor]:
    """A cache of one ``Halves`` that was passed three rows of 5 tokens, the layer, and the keys."""
    layer = Halves(residual_length=residual)
    keys = torch.arange(15.0).view(3, 1, 5, 1).expand(3, 1, 5, 4)
    layer.update(keys[:, :, :4], -keys[:, :, :4])
    layer.update(keys[:, :, 4:], -keys[:, :, 4:])
    cache = DynamicCache()
    cache.layers = [layer]
    return cache, layer, keys


@pytest.mark.skipif(
    not hasattr(QuantizedLayer, "_apply_pending_reorder"), reason="this release of transformers defers no reorder"
)
@pytest.mark.parametrize("residual", [1, 3])
def test_a_deferred_reorder_is_read_as_done(residual: int) -> None:
    """Codes that transformers' quantised layer reorders in the next update are read in their new order, with and
    without exact entries behind them."""
    cache, layer, keys = halves(residual)
    order = [2, 0, 0]
    layer.reorder_cache(torch.tensor(order))
    read = entries_of(cache, 0, None)
    assert torch.equal(read[0], keys[order])
    assert torch.equal(read[1], -keys[order])


def test_a_layer_that_was_reset_holds_nothing() -> None:
    """A layer that says that it is not initialised is read as empty, whatever it left in its attributes, and one that
    does not say so cannot be read."""
    cache, layer, _ = halves(3)
    stale = layer._quantized_keys
    layer.reset()
    layer.keys, layer.values, layer._quantized_keys, layer.is_initialized = None, None, stale, False
    assert [part.numel() for part in entries_of(cache, 0, None)] == [0, 0]
    del layer.is_initialized
    with pytest.raises(Unreadable):
        entries_of(cache, 0, None)


def test_a_cache_without_layers_has_none() -> None:
    """``layers`` may be missing, a list or a dict in any order."""
    assert layers_of(object()) == {}
    assert list(layers_of(OfItsOwn(in_dict(3)))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        ("keys", r"declares read must be a function read\(layer\) or read\(cache, index\), got 'keys'"),
        (lambda cache, index, head: None, "declares read must take a layer, or a cache and an index; it takes 3"),
    ],
    ids=["no function", "three arguments"],
)
def test_an_invalid_read_is_refused(read: Any, sentence: str) -> None:
    """A ``read`` that cannot be called with one or two arguments is refused."""
    with pytest.raises(ValueError, match=sentence):
        reader_of(read)


def test_a_function_is_called_after_each_pass() -> None:
    """``after_pass`` is called with the cache after every pass, and what it does is in what is read."""

    def halve(cache: Any) -> None:
        cache.passes += 1
        for layer in cache.layers:
            keys, values = layer.stored()
            layer.parts = [(keys[:, :, 1:].clone(), values[:, :, 1:].clone())]

    model = architectures.shared("llama")
    subject = storing(in_list, read=lambda layer: layer.stored(), after_pass=halve)
    trace = run(subject, model, architectures.text(model, 1, 9), [7, 1, 1])
    assert [one.held[0][0].shape[2] for one in trace.passes] == [6, 6, 6]
    with pytest.raises(ValueError, match="declares after_pass must be a function of the cache, got 3"):
        read_declares({"after_pass": 3}, "cache")
