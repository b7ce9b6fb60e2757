"""``watch``: what it counts, by hand and by the caches' own records, and that it changes nothing."""

import copy
import gc
import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    DynamicCache,
    LlamaConfig,
    PreTrainedModel,
    QuantizedCache,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

import pressgauge
from pressgauge import H2OPress, KnormPress, PressedCache, Seen, StreamingLLMPress, generate, perplexity, watch
from pressgauge.conformance.architectures import ARCHITECTURES, Model, build, hybrid, padded, shared, tokens
from pressgauge.conformance.audit import Audit
from pressgauge.conformance.session import Session, run
from pressgauge.conformance.subjects import subject_of
from pressgauge.conformance.versions import CACHE, cache_of, using
from pressgauge.conventions.state import fingerprint
from pressgauge.observation import readings, recorder

PRESS = KnormPress(keep_ratio=0.5, prune_after=8)


def feed(
    model: Model, ids: Tensor, lengths: Sequence[int], cache: Any, mask: Tensor | None = None, **given: Any
) -> Any:
    """Feed a text in passes of these lengths, and return the last output."""
    start, output = 0, None
    with torch.no_grad():
        for length in lengths:
            end = start + length
            if mask is not None:
                given["attention_mask"] = mask[:, :end]
                given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:end]
            output = model(ids[:, start:end], **using(cache), **given)
            start = end
    return output


def empty(model: Model) -> Any:
    """An empty cache of transformers."""
    return DynamicCache(config=model.config)


def keep_last(cache: Any, entries: int) -> None:
    """Evict all but the last entries of each layer, as a compressor does."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, -entries:].clone(), layer.values[:, :, -entries:].clone()


def by_hand(tables: Sequence[Tensor], lengths: Sequence[int], padding: Sequence[int] = (0,)) -> int:
    """Queries that met an eviction, from ``evicted_at`` and the lengths of the passes, one by one."""
    met = 0
    for row, columns in enumerate(padding):
        start = 0
        for length in lengths:
            evictions = [int(v) for table in tables for v in table[row].flatten() if 0 < v <= start]
            met += sum(bool(evictions) for query in range(start, start + length) if query >= columns)
            start += length
    return met


def numbers(seen: Seen) -> dict[str, Any]:
    """All that a watch says."""
    return {name: getattr(seen, name) for name, value in vars(Seen).items() if isinstance(value, property)}


# What is counted, by hand


def test_one_plain_pass_is_vacuous() -> None:
    """One pass of 20 tokens: 20 queries, 20 logits, 20 entries in each of three layers, and nothing evicted."""
    model = shared("llama")
    with watch(model) as seen:
        model(tokens(1, 20))
    assert numbers(seen) == {
        "passes": 1,
        "tokens": 20,
        "longest": 20,
        "held": [20, 20, 20],
        "affected_queries": 0,
        "window_queries": 0,
        "unreadable_queries": 0,
        "logits": 20,
        "affected_logits": 0,
        "positions": 20,
        "wrong_positions": 0,
        "nbytes": 3 * 2 * 2 * 20 * 8 * 8,  # layers, keys and values, KV heads, tokens, dimension, bytes
        "vacuous": True,
    }


def test_a_pass_without_a_cache_meets_nothing() -> None:
    """Under ``use_cache=False`` there is no cache from which anything could be missing."""
    model = shared("llama")
    with watch(model) as seen:
        model(tokens(2, 20), use_cache=False)
        model.model(tokens(1, 5), use_cache=False)
    assert (seen.passes, seen.tokens, seen.longest, seen.held, seen.nbytes) == (2, 45, 0, [], 0)
    assert (seen.logits, seen.positions, seen.wrong_positions, seen.vacuous) == (40, 45, 0, True)


def test_generation_under_an_attached_press() -> None:
    """A prompt of 20 and nine fed tokens: the prompt meets nothing, each later token meets an eviction."""
    model = shared("llama")
    with watch(model) as seen, PRESS(model):
        model.generate(tokens(1, 20), max_new_tokens=10, do_sample=False)
    assert (seen.passes, seen.tokens, seen.longest, seen.held) == (10, 29, 29, [15, 15, 15])
    assert (seen.affected_queries, seen.logits, seen.affected_logits) == (9, 10, 9)
    assert (seen.positions, seen.wrong_positions, seen.vacuous) == (29, 0, False)


@pytest.mark.parametrize("first", ["watch", "press"])
def test_the_order_of_contexts_does_not_matter(first: str) -> None:
    """A watch sees the cache that the layers use, whether it is opened before the press or after it."""
    model, ids = shared("qwen3"), tokens(1, 20)
    seen: Any = None
    if first == "watch":
        with watch(model) as seen, PRESS(model):
            model.generate(ids, max_new_tokens=5, do_sample=False)
    else:
        with PRESS(model), watch(model) as seen:
            model.generate(ids, max_new_tokens=5, do_sample=False)
    assert (seen.affected_queries, seen.held, seen.wrong_positions) == (4, [12, 12, 12], 0)


def test_an_evaluation_in_one_pass_under_a_press_is_vacuous() -> None:
    """The entries are evicted when the pass is over, and no query meets that."""
    model = shared("llama")
    with pytest.warns(pressgauge.VacuousWarning), watch(model) as seen, PRESS(model):
        model(tokens(1, 20))
    assert (seen.held, seen.longest, seen.affected_queries, seen.vacuous) == ([10, 10, 10], 20, 0, True)


def test_the_decoder_may_be_called_by_itself() -> None:
    """Passes of ``model.model`` are observed, and have no logits."""
    model, cache = shared("neox"), PRESS.cache(shared("neox").config)
    with watch(model) as seen:
        feed(model.get_decoder(), tokens(1, 20), [16, 4], cache)
    assert (seen.passes, seen.affected_queries, seen.logits, seen.held) == (2, 4, 0, [10, 10, 10])
    with watch(model.get_decoder()) as seen:
        model(tokens(1, 20))
    assert (seen.passes, seen.tokens, seen.logits) == (1, 20, 0)


@pytest.mark.parametrize(("kept", "logits"), [(0, 24), (1, 2), (3, 6), (torch.tensor([0, -1]), 4)], ids=str)
def test_logits_that_a_pass_returned(kept: Any, logits: int) -> None:
    """``logits_to_keep`` limits the logits that are counted."""
    model, cache = shared("llama"), PRESS.cache(shared("llama").config, unpadded=True)
    with watch(model) as seen:
        feed(model, tokens(2, 32), [20, 12], cache, logits_to_keep=kept)
    assert seen.affected_queries == 24
    assert seen.affected_logits == logits
    assert seen.logits == logits + (40 if isinstance(kept, int) and not kept else logits)


def test_arguments_by_position_and_outputs_as_tuples() -> None:
    """Masks, positions and caches are found by position, and logits in a tuple."""
    model = shared("llama")
    ids, mask = padded([20, 12])
    with watch(model) as seen:
        model(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), empty(model), return_dict=False)
    assert (seen.tokens, seen.logits, seen.positions, seen.wrong_positions) == (32, 32, 32, 0)


# Evictions, by the caches' own records and by the audit


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", [KnormPress, StreamingLLMPress, H2OPress])
def test_queries_that_met_an_eviction_are_those_of_the_record(architecture: str, kind: Any) -> None:
    """With a skipped layer and a chunked prompt, the count is that of the cache's ``evicted_at``, query by query."""
    model, lengths = shared(architecture), [6, 9, 1, 1, 4, 1]
    press = kind(keep_ratio=0.5, prune_after=8, skip_layers=(0,))
    cache = PressedCache(press, model.config)
    with watch(model) as seen, press(model):
        feed(model, tokens(1, 22), lengths, cache)
    assert seen.affected_queries == by_hand(cache.evicted_at, lengths) == 7
    assert seen.held == cache.held
    assert seen.nbytes > 0


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    ratio=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    prune_after=st.integers(0, 12),
    skipped=st.sampled_from([(), (0,), (1, 2), (0, 1, 2)]),
    schedule=st.sampled_from(["budget", "step", "prefill"]),
)
def test_counts_are_those_of_the_record(
    lengths: list[int], ratio: float, prune_after: int, skipped: tuple[int, ...], schedule: Any
) -> None:
    """For any budget and passes, queries, entries and positions are those of the cache's own record."""
    model, columns = shared("llama"), sum(lengths)
    press = KnormPress(ratio, prune_after, skip_layers=skipped, schedule=schedule)
    cache = PressedCache(press, model.config)
    with warnings.catch_warnings(), watch(model) as seen:
        warnings.simplefilter("ignore", pressgauge.VacuousWarning)
        with press(model):
            feed(model, tokens(1, columns), lengths, cache)
    assert seen.affected_queries == seen.affected_logits == by_hand(cache.evicted_at, lengths)
    assert (seen.held, seen.longest, seen.tokens) == (cache.held, columns, columns)
    assert (seen.positions, seen.wrong_positions, seen.unreadable_queries) == (columns, 0, 0)


@pytest.mark.parametrize("lengths", [[20, 1, 1, 6, 1], [3, 3, 3, 20]])
def test_queries_that_met_an_eviction_are_those_of_the_audit(lengths: list[int]) -> None:
    """The audit finds evictions by matching entries, and shares no code with a watch."""
    model = shared("llama")
    subject = subject_of("knorm", lambda **given: KnormPress(**given), {"kind": "cache"})
    with watch(model) as seen:
        trace = run(subject, model, tokens(1, sum(lengths)), lengths, keep_ratio=0.5, prune_after=8, skip_layers=())
    tables = [table[None] if table.dim() == 2 else table for table in Audit(trace).evicted_at]
    assert seen.affected_queries == by_hand(tables, lengths) > 0
    assert seen.held == [one.positions.shape[2] for one in Audit(trace).held[-1]]


def test_padding_is_not_counted() -> None:
    """Rows of a padded batch are counted singly: a short row that has lost nothing meets nothing."""
    model = shared("llama")
    (ids, mask), lengths = padded([24, 9, 17]), [20, 2, 1, 1]
    press = KnormPress(keep_ratio=0.5, prune_after=8)
    cache = PressedCache(press, model.config)
    with watch(model) as seen, press(model):
        feed(model, ids, lengths, cache, mask)
    assert seen.tokens == seen.logits == seen.positions == 24 + 9 + 17
    assert seen.affected_queries == by_hand(cache.evicted_at, lengths, [0, 15, 7]) == 8
    assert (seen.longest, seen.held, seen.wrong_positions) == (24, [12, 12, 12], 0)


def test_a_cache_that_loses_only_padding_is_not_said_to_lose_entries() -> None:
    """A third-party cache stores padding slots as entries; fewer slots than columns may be fewer padding slots."""
    model = shared("llama")
    ids, mask = padded([20, 8])
    cache = empty(model)
    with watch(model) as seen:
        feed(model, ids, [18], cache, mask)
        keep_last(cache, 10)
        given = (mask.cumsum(-1) - 1)[:, 18:]
        model(ids[:, 18:], attention_mask=mask, position_ids=given, **using(cache))
    # Ten slots are left: the first row had 18 tokens, the second had 6.
    assert (seen.affected_queries, seen.tokens, seen.unreadable_queries) == (2, 28, 0)


# Other compressors


class Evicts:
    """Evicts all but the last entries in hooks of the attention modules, as kvpress does."""

    def __init__(self, keep: int, layers: Sequence[int] = (0, 1, 2), *, copies: bool = True) -> None:
        self.keep, self.layers, self.copies = keep, layers, copies

    @contextmanager
    def __call__(self, model: Model) -> Iterator[None]:
        def evict(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            layer = kwargs[CACHE].layers[module.layer_idx]
            if kwargs["hidden_states"].shape[1] > 1:
                left = [states[:, :, -self.keep :] for states in (layer.keys, layer.values)]
                layer.keys, layer.values = [states.clone() for states in left] if self.copies else left

        handles = [
            model.model.layers[index].self_attn.register_forward_hook(evict, with_kwargs=True) for index in self.layers
        ]
        yield
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("layers", [(0, 1, 2), (2,)])
def test_a_compressor_in_hooks_of_attention(layers: tuple[int, ...]) -> None:
    """What a hook evicts during the prompt is missing for each later query, also if only in the last layer."""
    model, cache = build("llama"), DynamicCache()
    positions = torch.arange(24)[None]
    with watch(model) as seen, Evicts(12, layers)(model), torch.no_grad():
        model(tokens(1, 20), **using(cache))
        for step in range(20, 24):
            model(tokens(1, 1), position_ids=positions[:, step : step + 1], **using(cache))
    assert (seen.affected_queries, seen.affected_logits, seen.wrong_positions) == (4, 4, 0)
    assert seen.held == [16 if layer in layers else 24 for layer in range(3)]


def test_positions_counted_by_entries_are_wrong() -> None:
    """A model that counts its positions from a shortened cache rotates its queries wrongly."""
    model, cache = build("llama"), DynamicCache()
    with watch(model) as seen, Evicts(12)(model):
        feed(model, tokens(1, 24), [20, 1, 1, 1, 1], cache)
    assert (seen.positions, seen.wrong_positions) == (24, 4)
    assert str(seen).splitlines()[2] == "4 of 24 positions disagree with the tokens seen."


def test_positions_given_by_the_caller() -> None:
    """A position is wrong if it is not the number of tokens before it in its row, without padding."""
    model = shared("neox")
    ids, mask = padded([6, 4])
    own = (mask.cumsum(-1) - 1).clamp(min=0)
    with watch(model) as seen:
        model(ids, attention_mask=mask, position_ids=own)
        assert seen.wrong_positions == 0
        model(ids, attention_mask=mask, position_ids=torch.arange(6)[None])
        # The four tokens of the padded row are numbered by columns.
        assert seen.wrong_positions == 4
        model(ids, attention_mask=mask, position_ids=own + (own == 5))
    assert (seen.positions, seen.wrong_positions) == (30, 5)


def test_a_function_between_passes() -> None:
    """A function over the whole cache evicts when the pass is over; positions say that nothing was cropped."""

    def halve(layers: Any) -> Any:
        return [(keys[:, :, ::2].clone(), values[:, :, ::2].clone()) for keys, values in layers]

    model = shared("llama")
    subject = subject_of("halve", lambda **given: halve, {"kind": "function", "prune_after": None, "skip_layers": None})
    with watch(model) as seen, Session(subject, halve, model) as session:
        for start in range(0, 20, 5):
            session.feed(tokens(1, 20)[:, start : start + 5])
    # 5 entries; 3 and 5; 4 and 5; 5 and 5 after the last pass, before the function.
    assert (seen.affected_queries, seen.held, seen.wrong_positions) == (15, [10, 10, 10], 0)


class OwnLayout:
    """A cache with a layout of its own: one tensor for all layers."""

    def __init__(self, layers: int) -> None:
        self.stored: list[Any] = [(None, None)] * layers
        self.tokens = 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        old = self.stored[layer]
        pair = tuple(n if o is None else torch.cat([o, n], dim=2) for o, n in zip(old, (keys, values), strict=True))
        self.stored[layer] = pair
        self.tokens += keys.shape[2] if layer == 0 else 0
        return pair

    def get_seq_length(self, layer: int = 0) -> int:
        return self.tokens

    def get_mask_sizes(self, query: Any, layer: int) -> tuple[int, int]:
        return self.tokens + (query if isinstance(query, int) else query.shape[0]), 0

    def get_query_offset(self, layer: int = 0) -> int:
        return self.tokens

    is_compileable = False
    is_sliding = (False,)


def test_a_cache_of_unknown_layout_is_said_to_be_unreadable() -> None:
    """Its first pass met nothing, for it was empty; what the later ones met is not guessed."""
    model = shared("llama")
    with watch(model) as seen:
        feed(model, tokens(1, 12), [8, 3, 1], OwnLayout(3))
    assert (seen.affected_queries, seen.unreadable_queries, seen.held) == (0, 4, [-1])
    # Whether it was cropped is not known either, and so its positions are not compared after the first pass.
    assert (seen.tokens, seen.positions, seen.wrong_positions) == (12, 8, 0)
    assert seen.nbytes == 3 * 2 * 2 * 12 * 8 * 8
    assert str(seen).splitlines()[1].endswith("; what 4 of 12 queries met cannot be known.")


def test_lists_of_keys_are_read() -> None:
    """A cache with ``key_cache``, one tensor per layer, is read."""

    class Lists(OwnLayout):
        @property
        def key_cache(self) -> list[Tensor]:
            return [keys for keys, _ in self.stored if keys is not None]

        def evict(self) -> None:
            self.stored = [(keys[:, :, 4:], values[:, :, 4:]) for keys, values in self.stored]

    model, cache = shared("llama"), Lists(3)
    with watch(model) as seen:
        feed(model, tokens(1, 8), [8], cache)
        cache.evict()
        model(tokens(1, 1), position_ids=torch.tensor([[8]]), **using(cache))
    assert (seen.affected_queries, seen.unreadable_queries, seen.held, seen.wrong_positions) == (1, 0, [5, 5, 5], 0)


def test_a_cache_that_a_later_hook_supplies() -> None:
    """What the layers use counts, not what the caller gave; one that was filled by then has an unknown past."""
    model, cache = build("llama"), empty(build("llama"))
    with watch(model) as seen, Evicts(12)(model):
        handle = model.model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, **using(cache)}), with_kwargs=True
        )
        feed(model, tokens(1, 24), [20, 1, 3], None)
    handle.remove()
    assert (seen.affected_queries, seen.unreadable_queries, seen.held) == (4, 0, [12, 12, 12])
    with watch(model) as seen:
        handle = model.model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, **using(cache)}), with_kwargs=True
        )
        feed(model, tokens(1, 2), [2], None)
    handle.remove()
    assert (seen.affected_queries, seen.unreadable_queries) == (0, 2)


class Legacy(PreTrainedModel):
    """A model whose caches are tuples, of which each pass returns a new one."""

    config_class = LlamaConfig

    def __init__(self) -> None:
        super().__init__(LlamaConfig(hidden_size=4, num_attention_heads=1, num_hidden_layers=2, vocab_size=5))

    def forward(self, input_ids: Tensor, position_ids: Any = None, past_key_values: Any = None) -> Any:
        new = input_ids[:, None, :, None].float().expand(-1, 1, -1, 4)
        old = past_key_values or [(new[:, :, :0], new[:, :, :0])] * 2
        layers = tuple(tuple(torch.cat([states, new], dim=2) for states in pair) for pair in old)
        return BaseModelOutputWithPast(last_hidden_state=new[:, 0], **using(layers))


def test_tuples_are_caches() -> None:
    """A tuple that a pass returns has seen what the one that it was given had seen."""
    model: Any = Legacy()
    with watch(model) as seen:
        layers = cache_of(model(torch.ones(1, 6, dtype=torch.long), position_ids=torch.arange(6)[None]))
        layers = cache_of(model(torch.ones(1, 1, dtype=torch.long), torch.tensor([[6]]), layers))
        assert (seen.affected_queries, seen.longest, seen.held) == (0, 7, [7, 7])
        short = tuple(tuple(states[:, :, 3:] for states in pair) for pair in layers)
        model(torch.ones(1, 2, dtype=torch.long), torch.tensor([[7, 8]]), short)
    # The last tuple is one that nobody has seen before.
    assert (seen.affected_queries, seen.unreadable_queries, seen.wrong_positions) == (2, 0, 0)


def test_masked_heads_are_evictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """kvpress's presses with a budget per head mask keys that stay in the cache."""
    model, cache = build("llama"), DynamicCache()
    monkeypatch.setitem(sys.modules, "kvpress", SimpleNamespace())
    with watch(model) as seen:
        feed(model, tokens(1, 8), [8], cache)
        model.model.layers[2].self_attn.masked_key_indices = tuple(torch.zeros(3, 1, dtype=torch.long))
        model(tokens(1, 2), **using(cache))
        model(tokens(1, 4))  # a new cache
    assert seen.affected_queries == 2


# transformers' own caches


def test_a_sliding_window_is_no_eviction() -> None:
    """What a window does not cover the uncompressed model does not read either: it is counted, but vacuous."""
    model = build("mistral", sliding_window=6)
    with watch(model) as seen:
        model.generate(tokens(1, 10), max_new_tokens=4, do_sample=False)
    assert (seen.affected_queries, seen.window_queries, seen.vacuous) == (0, 3, True)
    assert (seen.longest, seen.held) == (13, [5, 5, 5])
    assert "3 met only the model's own sliding window" in str(seen)


def test_an_eviction_within_a_sliding_window() -> None:
    """A layer that holds fewer entries than its window covers has lost some."""
    model = build("mistral", sliding_window=6)
    cache = empty(model)
    with watch(model) as seen:
        feed(model, tokens(1, 10), [10], cache)
        feed(model, tokens(1, 1), [1], cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
            layer.get_mask_sizes = lambda query: (5, 7)
        feed(model, tokens(1, 1), [1], cache)
    assert (seen.affected_queries, seen.window_queries) == (1, 1)


def test_windows_of_a_cache_that_the_model_does_not_have_are_evictions() -> None:
    """A compressor may be a cache of windows for a model whose layers attend to everything."""
    model, cache = shared("llama"), empty(shared("llama"))
    cache.layers = [DynamicSlidingWindowLayer(sliding_window=6) for _ in range(3)]
    with watch(model) as seen:
        feed(model, tokens(1, 13), [10, 1, 1, 1], cache)
    assert (seen.affected_queries, seen.window_queries, seen.held) == (3, 0, [5, 5, 5])


def test_slots_that_were_allocated_are_no_entries() -> None:
    """A static cache has 40 slots from the start, of which those in use are entries."""
    model = shared("llama")
    cache = StaticCache(config=model.config, max_cache_len=40)
    with watch(model) as seen:
        feed(model, tokens(1, 13), [10, 1, 2], cache)
        assert (seen.longest, seen.held) == (13, [13, 13, 13])
        cache.reset()
        feed(model, tokens(1, 5), [4, 1], cache)
    assert (seen.affected_queries, seen.unreadable_queries, seen.wrong_positions) == (0, 0, 0)
    assert seen.nbytes >= 3 * 2 * 2 * 40 * 8 * 8


def test_a_compressor_of_a_static_cache() -> None:
    """Entries are moved to the front of the slots, and the layers count what is left."""
    model = build("llama")
    cache = StaticCache(config=model.config, max_cache_len=40)

    def evict(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        layer = kwargs[CACHE].layers[module.layer_idx]
        for states in (layer.keys, layer.values):
            states[:, :, :6] = states[:, :, 4:10].clone()
            states[:, :, 6:] = 0
        if hasattr(layer, "cumulative_length"):  # in transformers 5.2, slots that are zero are not counted
            layer.cumulative_length.fill_(6)

    with watch(model) as seen:
        handles = [layer.self_attn.register_forward_hook(evict, with_kwargs=True) for layer in model.model.layers]
        feed(model, tokens(1, 10), [10], cache)
        for handle in handles:
            handle.remove()
        assert seen.held == [6, 6, 6]
        feed(model, tokens(1, 2), [2], cache, position_ids=torch.tensor([[10, 11]]))
    assert (seen.affected_queries, seen.unreadable_queries, seen.wrong_positions) == (2, 0, 0)


def test_static_windows() -> None:
    """A static window is an eviction for a model that attends to everything, and none for its own model."""
    windowed = build("mistral", sliding_window=6)
    for model, expected in ((shared("llama"), (3, 0)), (windowed, (0, 3))):
        cache = StaticCache(config=windowed.config, max_cache_len=40)
        with watch(model) as seen:
            feed(model, tokens(1, 13), [10, 1, 2], cache)
        assert (seen.affected_queries, seen.window_queries) == expected
        assert seen.held == [6, 6, 6]


def test_generation_with_a_static_cache() -> None:
    """transformers then makes the masks before the pass: padding is not known, and positions are not compared."""
    model = build("llama")  # which keeps the cache
    ids, mask = padded([12, 9])
    with watch(model) as seen:
        model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert (seen.tokens, seen.held, seen.affected_queries) == (2 * 17, [17, 17, 17], 0)
    assert (seen.positions, seen.wrong_positions) == (0, 0)
    assert str(seen).splitlines()[2] == "Positions could not be compared with the tokens seen."


def test_a_decoder_with_an_encoder() -> None:
    """Its own tokens and entries are counted, neither those of the encoder nor those of cross-attention."""
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    ids: dict[str, Any] = {"vocab_size": 61, "decoder_start_token_id": 0, "eos_token_id": 60}
    model: Any = T5ForConditionalGeneration(T5Config(**sizes, **ids))
    model.eval()
    with watch(model) as seen:
        model.generate(tokens(1, 12), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert (seen.passes, seen.tokens, seen.longest, seen.held, seen.logits) == (4, 4, 4, [4, 4], 4)
    assert (seen.affected_queries, seen.unreadable_queries) == (0, 0)


def test_quantised_entries_are_entries() -> None:
    """What is quantised is held: nothing is missing, and the bytes are fewer than those of the keys and values."""
    model, ids = build("llama"), tokens(1, 40)
    model.float()
    try:
        cache = QuantizedCache(backend="fp8", config=model.config)
    except ValueError as error:
        pytest.skip(f"no quantised cache without a further package: {error}")
    with watch(model) as seen:
        feed(model, ids, [32, 1, 7], cache)
    assert (seen.affected_queries, seen.unreadable_queries, seen.held) == (0, 0, [40, 40, 40])
    assert 3 * 2 * 2 * 40 * 8 <= seen.nbytes < 3 * 2 * 2 * 40 * 8 * 4


def test_layers_without_keys_hold_nothing() -> None:
    """Linear attention caches no keys, so nothing of it can be missing."""
    model = hybrid()
    with watch(model) as seen:
        model.generate(tokens(1, 10), max_new_tokens=4, do_sample=False)
    assert seen.held == [None, None, None, 13]
    assert (seen.vacuous, seen.unreadable_queries) == (True, 0)
    with watch(model) as seen, KnormPress(0.5, 4, skip_layers="unprunable")(model):
        model.generate(tokens(1, 10), max_new_tokens=4, do_sample=False)
    assert (seen.affected_queries, seen.held) == (3, [None, None, None, 7])


# A cache that is changed between passes


def test_a_crop_is_no_eviction() -> None:
    """Cropped tokens are no longer seen, whether a mask says so, positions do, or the keys are a view of the old."""
    model = shared("llama")
    evidence: list[dict[str, Any]] = [
        {},
        {"attention_mask": torch.ones(1, 11)},
        {"position_ids": torch.arange(8, 11)[None]},
    ]
    for said in evidence:
        cache = empty(model)
        with watch(model) as seen:
            feed(model, tokens(1, 12), [10, 2], cache)
            cache.crop(-4)
            model(tokens(1, 3), **using(cache), **said)
        assert (seen.affected_queries, seen.unreadable_queries, seen.wrong_positions) == (0, 0, 0), said
        assert (seen.tokens, seen.longest, seen.held) == (15, 12, [12, 12, 12])


def test_an_eviction_between_passes_is_told_from_a_crop() -> None:
    """Mask and positions tell how many tokens came before; where neither does, the count is not guessed."""
    model = shared("llama")
    expected = {"mask": (3, 0), "positions": (3, 0), "mask of what is left, and positions": (3, 0), "neither": (0, 3)}
    for how, (affected, unreadable) in expected.items():
        said: dict[str, Any] = {}
        if how != "positions" and how != "neither":
            said["attention_mask"] = torch.ones(1, 15 if how == "mask" else 11)
        if how != "neither":
            said["position_ids"] = torch.arange(12, 15)[None]
        cache = empty(model)
        with watch(model) as seen, torch.no_grad():
            feed(model, tokens(1, 12), [10, 2], cache)
            keep_last(cache, 8)
            model(tokens(1, 3), **using(cache), **said)
        assert (seen.affected_queries, seen.unreadable_queries) == (affected, unreadable), how


def test_an_eviction_from_some_layers_is_no_crop() -> None:
    """A crop shortens all layers alike, so no further evidence is needed."""
    model, cache = shared("llama"), empty(shared("llama"))
    with watch(model) as seen, torch.no_grad():
        feed(model, tokens(1, 12), [12], cache)
        layer = cache.layers[2]
        layer.keys, layer.values = layer.keys[:, :, 4:].clone(), layer.values[:, :, 4:].clone()
        model(tokens(1, 1), **using(cache))
    assert (seen.affected_queries, seen.unreadable_queries, seen.held) == (1, 0, [13, 13, 9])


@pytest.mark.parametrize("kind", ["plain", "pressed", "static"])
def test_a_reset_begins_anew(kind: str) -> None:
    """After a reset the cache has seen nothing and lacks nothing."""
    model = shared("llama")
    cache: Any = {
        "plain": lambda: empty(model),
        "pressed": lambda: PRESS.cache(model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=30),
    }[kind]()
    with watch(model) as seen:
        feed(model, tokens(1, 20), [18, 2], cache)
        met = seen.affected_queries
        cache.reset()
        feed(model, tokens(1, 6), [5, 1], cache)
    assert met == (2 if kind == "pressed" else 0)
    assert (seen.affected_queries, seen.tokens, seen.unreadable_queries, seen.wrong_positions) == (met, 26, 0, 0)


@pytest.mark.parametrize("press", [None, PRESS], ids=["plain", "pressed"])
def test_beam_search_reorders_rows(press: Any) -> None:
    """Rows that are repeated and reordered stay what they are, with padding."""
    model = shared("llama")
    ids, mask = padded([12, 9])
    given = {"attention_mask": mask, "max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with watch(model) as seen:
        if press is None:
            model.generate(ids, **given)
        else:
            with press(model):
                model.generate(ids, **given)
    assert (seen.wrong_positions, seen.unreadable_queries) == (0, 0)
    assert seen.passes == 6
    assert seen.affected_queries == (0 if press is None else 5 * 2 * 3)


def test_assisted_decoding_crops_and_evicts_nothing() -> None:
    """Rejected candidates are cropped from the cache, which is no eviction."""
    model = shared("llama")
    ids = tokens(1, 6).repeat(1, 4)
    with watch(model) as seen:
        model.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=12, do_sample=False, eos_token_id=0)
    assert (seen.affected_queries, seen.unreadable_queries, seen.wrong_positions) == (0, 0, 0)


def test_a_cache_that_was_fed_before_the_watch() -> None:
    """Its past is unknown, unless it keeps a count; that it lacks what the mask says was fed is known."""
    model = shared("llama")
    pressed, plain = PRESS.cache(model.config), empty(model)
    for cache in (pressed, plain):
        feed(model, tokens(1, 20), [20], cache)
    with watch(model) as seen:
        model(tokens(1, 1), **using(pressed))
    assert (seen.affected_queries, seen.unreadable_queries, seen.longest) == (1, 0, 21)
    with watch(model) as seen:
        model(tokens(1, 3), **using(plain))
        model(tokens(1, 1), **using(plain))
    assert (seen.affected_queries, seen.unreadable_queries, seen.positions) == (0, 4, 0)
    shortened = empty(model)
    feed(model, tokens(1, 20), [20], shortened)
    keep_last(shortened, 12)
    with watch(model) as seen, torch.no_grad():
        mask, positions = torch.ones(1, 21), torch.tensor([[20]])
        model(tokens(1, 1), attention_mask=mask, position_ids=positions, **using(shortened))
    assert (seen.affected_queries, seen.unreadable_queries) == (1, 0)


def test_a_copied_cache_is_another_one() -> None:
    """A copy of a cache has a past that was not observed, unless it keeps a count."""
    model = shared("llama")
    prefix = empty(model)
    with watch(model) as seen:
        feed(model, tokens(1, 10), [10], prefix)
        model(tokens(1, 2), **using(copy.deepcopy(prefix)))
    assert (seen.affected_queries, seen.unreadable_queries) == (0, 2)
    cache = PRESS.cache(model.config)
    with watch(model) as seen:
        feed(model, tokens(1, 20), [20], cache)
        model(tokens(1, 2), **using(copy.deepcopy(cache)))
    assert (seen.affected_queries, seen.unreadable_queries) == (2, 0)


def test_a_pass_that_failed() -> None:
    """It is not counted, and what it left in a cache is not guessed."""
    model = build("llama")
    cache = empty(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with watch(model) as seen:
        feed(model, tokens(1, 6), [6], cache)
        handle = model.model.layers[1].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(tokens(1, 2), **using(cache))
        handle.remove()
        assert (seen.passes, seen.tokens) == (1, 6)
        model(tokens(1, 2))
        assert (seen.passes, seen.unreadable_queries) == (2, 0)
        with torch.no_grad(), pytest.raises(RuntimeError):
            model(tokens(1, 2), **using(cache))
    assert seen.passes == 2


# Around what people call


def test_a_pipeline() -> None:
    """A pipeline calls ``generate`` of the model that it was given."""
    model, tokenizer = pressgauge.models.load("reference")
    parts: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    run: Any = pipeline("text-generation", **parts)
    prompt = "remember bado red . the old river runs . recall bado"
    with watch(model) as seen:
        plain = run(prompt, max_new_tokens=6, do_sample=False)
    assert seen.vacuous
    assert seen.passes == 6
    with watch(model, require="evictions") as seen, PRESS(model):
        pressed = run(prompt, max_new_tokens=6, do_sample=False)
    assert (seen.affected_queries, seen.wrong_positions, seen.logits) == (5, 0, 6)
    assert plain[0]["generated_text"].startswith(prompt)
    assert pressed[0]["generated_text"].startswith(prompt)


class Wrapped(nn.Module):
    """A model inside another one that hands on what it does not know, as PEFT's do."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_wrapped_model() -> None:
    """Passes are observed however the model inside is called."""
    wrapped: Any = Wrapped(shared("llama"))
    with watch(wrapped) as seen:
        wrapped(tokens(1, 8))
        wrapped.generate(tokens(1, 8), max_new_tokens=2, do_sample=False)
        wrapped.inner.model(tokens(1, 8))
    assert (seen.passes, seen.tokens, seen.logits) == (4, 25, 10)


@pytest.mark.parametrize("method", ["onepass", "stepwise"])
@pytest.mark.parametrize("prompt", [1, 20])
def test_perplexity_says_the_same(method: Any, prompt: int) -> None:
    """The scored tokens that ``perplexity`` calls affected are those of a watch, and one query that scores none."""
    model, ids = shared("llama"), tokens(2, 30)
    press = KnormPress(keep_ratio=0.5, prune_after=8, skip_layers=(1,))
    with watch(model) as seen:
        result = perplexity(model, ids, press, prompt, method)
    assert seen.affected_queries == seen.affected_logits == result.affected_tokens + 2
    assert seen.held == list(result.held)
    assert (seen.tokens, seen.wrong_positions, seen.vacuous) == (60, 0, False)


def test_perplexity_of_padded_rows() -> None:
    """One pass feeds the rows of a padded batch by length, and the counts are those of decoding."""
    model = shared("llama")
    ids, mask = padded([30, 22, 22, 5])
    counts = []
    methods: tuple[Any, ...] = ("onepass", "stepwise")
    for method in methods:
        with watch(model) as seen:
            result = perplexity(model, ids, PRESS, 4, method, attention_mask=mask)
        assert seen.affected_queries == result.affected_tokens + 3
        counts.append((seen.tokens, seen.affected_queries, seen.affected_logits, seen.held, seen.wrong_positions))
    assert counts[0] == counts[1]
    with watch(model) as seen:
        assert perplexity(model, ids, PRESS, 4, "plain", attention_mask=mask).vacuous
    assert seen.vacuous


def test_perplexity_without_a_press_is_vacuous() -> None:
    """One pass that replays nothing meets nothing."""
    model = shared("llama")
    with watch(model) as seen:
        perplexity(model, tokens(1, 30))
    assert (seen.vacuous, seen.held, seen.logits) == (True, [30, 30, 30], 30)


def test_our_own_generation() -> None:
    """``generate`` over two turns: what was fed before is not fed again."""
    model, press = shared("qwen2"), KnormPress(keep_ratio=0.5, prune_after=8)
    with watch(model) as seen:
        first = generate(model, tokens(1, 20), press, 6)
        generate(model, torch.cat([first.tokens, tokens(1, 5)], dim=1), press, 4, cache=first.cache)
    # 20 and 5 in the first turn; then the last generated token with 5 new ones, and 3.
    assert (seen.passes, seen.tokens, seen.affected_queries) == (6 + 4, 20 + 5 + 6 + 3, 5 + 6 + 3)
    assert (seen.wrong_positions, seen.longest) == (0, 34)


# Nothing is changed


def contents(cache: Any) -> list[Tensor]:
    return [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("how", ["plain", "cache", "attached"])
@pytest.mark.parametrize("architecture", ["neox", "qwen3"])
def test_no_bit_changes(architecture: str, how: str) -> None:
    """Logits, generated tokens and the contents of the cache are bit-equal with a watch and without."""
    model = shared(architecture)

    def everything(observed: bool) -> list[Tensor]:
        cache = PRESS.cache(model.config) if how == "cache" else empty(model)
        contexts: list[Any] = [watch(model)] * observed + [PRESS(model)] * (how == "attached")
        with torch.no_grad(), _all(contexts):
            logits = [model(ids, **using(cache)).logits for ids in tokens(1, 24).split([20, 1, 1, 2], dim=1)]
            result = model.generate(
                tokens(1, 20), max_new_tokens=8, do_sample=True, return_dict_in_generate=True, generation_config=None
            )
        return [*logits, *contents(cache), result.sequences, *contents(cache_of(result))]

    runs = []
    for observed in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            runs.append(everything(observed))
    assert all(one.equal(other) for one, other in zip(*runs, strict=True))


@contextmanager
def _all(contexts: list[Any]) -> Iterator[None]:
    if not contexts:
        yield
        return
    with contexts[0], _all(contexts[1:]):
        yield


def test_reading_a_plain_cache_does_not_evict_early() -> None:
    """The last layer of a plain cache evicts when it is read; a watch leaves that to whoever reads it."""
    model, cache = shared("llama"), PRESS.cache(shared("llama").config)
    with watch(model) as seen:
        feed(model, tokens(1, 20), [20], cache)
        assert seen.held == [10, 10, 10]
        assert [layer.pending for layer in cache.pressed] == [False, False, True]
        assert cache.pressed[-1].used == 20
        feed(model, tokens(1, 1), [1], cache)
    assert seen.held == cache.held == [11, 11, 11]


def test_the_model_is_as_it_was() -> None:
    """No hook and no attribute stays, also after an error in the body."""
    model = build("llama")
    before = fingerprint(model)
    with watch(model):
        assert fingerprint(model) != before
        model(tokens(1, 4))
    assert fingerprint(model) == before
    with pytest.raises(KeyError), watch(model):
        raise KeyError
    assert fingerprint(model) == before


def test_a_closed_watch_no_longer_counts() -> None:
    """What is fed afterwards is not counted, neither by the model nor by a copy that was made inside."""
    model = build("llama")
    cache = empty(model)
    with watch(model) as seen:
        feed(model, tokens(1, 6), [6], cache)
        copied = copy.deepcopy(model)
        copied(tokens(1, 3))
    before = numbers(seen)
    feed(model, tokens(1, 6), [6], cache)
    copied(tokens(1, 3))
    assert numbers(seen) == before
    assert seen.passes == 1


def test_watches_may_be_nested() -> None:
    """Each counts from its own beginning."""
    model = shared("llama")
    with watch(model) as outer:
        model(tokens(1, 3))
        with watch(model) as inner:
            model(tokens(1, 4))
        model(tokens(1, 5))
    assert (outer.passes, outer.tokens, inner.passes, inner.tokens) == (3, 12, 1, 4)


def test_no_cache_is_kept_alive() -> None:
    """A cache dies when its owner drops it, and its bytes were counted at its full length."""
    model = shared("llama")
    with watch(model) as seen:
        cache = empty(model)
        feed(model, tokens(1, 12), [4, 1, 1, 1, 1, 1, 1, 1, 1], cache)
        layer, owner = weakref.ref(cache.layers[0].keys), weakref.ref(cache)
        del cache
        gc.collect()
        assert owner() is None
        assert layer() is None
        assert seen.nbytes == 3 * 2 * 2 * 12 * 8 * 8


def test_bytes_are_those_of_the_storages() -> None:
    """A view of a few entries keeps the whole storage alive."""
    model = build("llama")
    with watch(model) as seen, Evicts(2, copies=False)(model):
        model(tokens(1, 20))
    assert seen.held == [2, 2, 2]
    assert seen.nbytes == 3 * 2 * 2 * 20 * 8 * 8


# Devices whose values are read later


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are copied instead of read, as on a device that reading would synchronise."""
    monkeypatch.setattr(recorder, "noted", torch.clone)
    for module in (recorder, readings):
        monkeypatch.setattr(module, "scalar", lambda value: torch.as_tensor(value).clone())


LATER: list[Any] = [
    test_one_plain_pass_is_vacuous,
    test_padding_is_not_counted,
    test_positions_given_by_the_caller,
    test_positions_counted_by_entries_are_wrong,
    test_a_crop_is_no_eviction,
    test_an_eviction_between_passes_is_told_from_a_crop,
    test_a_cache_that_was_fed_before_the_watch,
    test_slots_that_were_allocated_are_no_entries,
    test_a_compressor_of_a_static_cache,
    test_static_windows,
    lambda: test_a_reset_begins_anew("static"),
    lambda: test_beam_search_reorders_rows(PRESS),
    lambda: test_logits_that_a_pass_returned(torch.tensor([0, -1]), 4),
]


@pytest.mark.parametrize("test", LATER)
@pytest.mark.usefixtures("accelerated")
def test_values_may_be_read_later(test: Any) -> None:
    """The counts are the same if they are taken only when somebody looks at them."""
    test()


@pytest.mark.usefixtures("accelerated")
def test_nothing_is_synchronised_in_a_pass() -> None:
    """With a watch, no more values are read from tensors than without one, until it is looked at."""
    model, ids = shared("llama"), tokens(2, 20)

    class Counts(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.read = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.read += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    def read(make: Any, observed: bool) -> int:
        cache, mask = make(), torch.ones(2, 20, dtype=torch.long)
        with _all([watch(model)] * observed), Counts() as counts:
            feed(model, ids, [16, 1, 1, 2], cache, mask)
            return int(counts.read)

    kinds: list[Any] = [
        lambda: empty(model),
        lambda: PRESS.cache(model.config, unpadded=True),
        lambda: StaticCache(config=model.config, max_cache_len=20),
    ]
    for make in kinds:
        assert read(make, True) == read(make, False)
    cache = empty(model)
    with watch(model) as seen, Counts() as counts:
        feed(model, ids, [16, 4], cache, torch.ones(2, 20, dtype=torch.long))
        assert seen.wrong_positions == 0
        assert counts.read > 0, "these reads are counted"


@pytest.mark.parametrize("later", [False, True])
def test_tensors_may_be_written_to_after_a_pass(later: bool, request: pytest.FixtureRequest) -> None:
    """What was given to a pass is what counts, not what its tensors hold when the pass is counted."""
    if later:
        request.getfixturevalue("accelerated")
    model, cache = shared("llama"), empty(shared("llama"))
    mask, positions = torch.ones(1, 9, dtype=torch.long), torch.arange(9)[None]
    with watch(model) as seen:
        model(tokens(1, 9), attention_mask=mask, position_ids=positions, **using(cache))
        mask.zero_()
        positions.zero_()
    assert (seen.tokens, seen.positions, seen.wrong_positions) == (9, 9, 0)


# What is said at the end


def test_three_lines() -> None:
    """Passes and caches, evictions, positions."""
    model = shared("llama")
    with watch(model) as seen, KnormPress(0.5, 8, skip_layers=(0,))(model):
        model.generate(tokens(1, 20), max_new_tokens=10, do_sample=False)
    assert str(seen).splitlines()[1:] == [
        "9 of 29 queries and 9 of 10 logits met an eviction.",
        "All 29 positions agree with the tokens seen.",
    ]
    assert str(seen).startswith(
        "10 passes fed 29 tokens; the longest cache saw 29 and holds 15 to 29 entries per layer, "
    )
    with watch(model) as seen:
        model(tokens(1, 4), use_cache=False)
    assert str(seen).splitlines()[0] == "1 pass fed 4 tokens, without a cache."
    with watch(model) as seen:
        pass
    assert str(seen).splitlines() == [
        "0 passes fed 0 tokens, without a cache.",
        "VACUOUS: no query met an eviction, so the result is that of the uncompressed model.",
        "Positions could not be compared with the tokens seen.",
    ]


def test_evictions_can_be_required() -> None:
    """The error at the end says what was seen and what to do."""
    model = shared("llama")
    expected = "none of 20 queries was seen .* uncompressed model: feed tokens after the prompt"
    with pytest.raises(ValueError, match=expected), watch(model, require="evictions"):
        model(tokens(1, 20))
    with watch(model, require="evictions"), PRESS(model):
        model.generate(tokens(1, 20), max_new_tokens=2)


def test_an_error_of_the_body_is_not_replaced() -> None:
    """Nothing is required of a body that failed."""
    with pytest.raises(KeyError), watch(shared("llama"), require="evictions"):
        raise KeyError


def test_what_is_refused() -> None:
    """Unknown requirements and what is no model are refused before anything is observed."""
    model = shared("llama")
    with pytest.raises(ValueError, match="require must be 'evictions' or None, got 'eviction'"):
        watch(model, require="eviction")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a transformers model, got 'llama'"):
        watch("llama")  # type: ignore[arg-type]
    bare: Any = nn.Linear(1, 1)
    bare.config = model.config
    with pytest.raises(TypeError, match="which of its modules decodes"):
        watch(bare)
