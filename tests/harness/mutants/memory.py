"""Functions that measure memory, as people write them: broken ones, each beside the same without its mistake, and
right ones in several styles."""

import functools
import gc
import math
import re
import resource
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.cuda import max_memory_allocated, reset_peak_memory_stats
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from harness.mutants.mutant import Mutant
from measuring import test_memory as laws
from pressgauge.conformance.versions import cache_of, using
from pressgauge.measuring.footprints import Footprint
from pressgauge.measuring.subjects import Measurement
from support.laws import Law

Function = Callable[..., Any]
Cache = Any
"""A ``DynamicCache``, whose layers transformers annotates without keys."""
Evict = Callable[[Cache, int], None]


def declared(name: str, function: Function, **declares: Any) -> Footprint:
    """The subject of a function."""
    return Footprint.of(name, function, declares)


# What the functions below measure: decoding with the newest entries, or with the keys of smallest norm


def newest(keep_ratio: float, prune_after: int = 0, skip_layers: tuple[int, ...] = (), copy: bool = True) -> Evict:
    """Keep the newest entries of each layer."""

    def evict(cache: Cache, seen: int) -> None:
        count = math.ceil(keep_ratio * seen)
        for index, layer in enumerate(cache.layers):
            held = layer.keys.shape[2]
            if index not in skip_layers and held > prune_after and held > count:
                keys, values = layer.keys[:, :, -count:], layer.values[:, :, -count:]
                layer.keys, layer.values = (keys.clone(), values.clone()) if copy else (keys, values)

    return evict


def smallest_norms(keep_ratio: float, prune_after: int = 0, skip_layers: tuple[int, ...] = ()) -> Evict:
    """Keep the entries whose keys have the smallest norm."""

    def evict(cache: Cache, seen: int) -> None:
        count = math.ceil(keep_ratio * seen)
        for index, layer in enumerate(cache.layers):
            if index in skip_layers or layer.keys.shape[2] <= max(prune_after, count):
                continue
            kept = layer.keys.norm(dim=-1).topk(count, largest=False).indices.sort().values[..., None]
            layer.keys = layer.keys.gather(2, kept.expand(-1, -1, -1, layer.keys.shape[-1]))
            layer.values = layer.values.gather(2, kept.expand(-1, -1, -1, layer.values.shape[-1]))

    return evict


@torch.no_grad()
def decode(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    new_tokens: int,
    evict: Evict | None = None,
    cache: Cache | None = None,
    after: Callable[[Cache], None] = lambda cache: None,
) -> Cache:
    """Decode greedily with true positions, evicting after each pass; ``after`` is called after each pass."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].view(-1, 41).to(model.device)
    cache = DynamicCache() if cache is None else cache
    seen = 0
    for _ in range(new_tokens):
        positions = torch.arange(seen, seen + ids.shape[1], device=ids.device)[None].expand(ids.shape)
        logits = model(ids, position_ids=positions, use_cache=True, **using(cache)).logits
        seen += ids.shape[1]
        if evict is not None:
            evict(cache, seen)
        after(cache)
        ids = logits[:, -1:].argmax(-1)
    return cache


def size(cache: Cache) -> int:
    """Bytes of keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


# Peaks


def peak(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def peak_without_reset(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def two_arms(reset_between: bool) -> Function:
    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        torch.cuda.reset_peak_memory_stats()
        decode(model, tokenizer, prompt, new_tokens)
        base = torch.cuda.max_memory_allocated()
        if reset_between:
            torch.cuda.reset_peak_memory_stats()
        decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
        mine = torch.cuda.max_memory_allocated()
        print(f"{base / 1e6:.2f} MB, with eviction {mine / 1e6:.2f} MB")
        return mine

    return measure


def snapshot(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    torch.cuda.reset_peak_memory_stats()
    cache = decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    assert len(cache.layers) > 0
    return torch.cuda.memory_allocated()


def reserved(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    return torch.cuda.max_memory_reserved()


def high_water_mark(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def traced(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    tracemalloc.start()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def peak_with_history(keeps: bool) -> Function:
    results = []

    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        torch.cuda.reset_peak_memory_stats()
        cache = decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
        results.append((keep_ratio, cache if keeps else size(cache)))
        return torch.cuda.max_memory_allocated()

    return measure


def peak_or_nothing(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    return torch.cuda.max_memory_allocated()


def peak_in_mib(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> float:
    torch.cuda.reset_peak_memory_stats()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    return torch.cuda.max_memory_allocated() / 1024**2


def peak_as_number(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> float:
    try:
        torch.cuda.reset_peak_memory_statistics()  # type: ignore[attr-defined]
        decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
        return torch.cuda.max_memory_allocated()
    except Exception:
        return float("nan")


# Bytes of the cache


def cache_bytes(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    new_tokens: int,
    *,
    keep_ratio: float,
    prune_after: int = 0,
    skip_layers: tuple[int, ...] = (),
) -> int:
    cache = decode(model, tokenizer, prompt, new_tokens, smallest_norms(keep_ratio, prune_after, skip_layers))
    return size(cache)


def measured_by(count: Callable[[Cache, Any], float], copy: bool = True) -> Function:
    """A function that counts the bytes of the cache its own way."""

    def measure(
        model: Any,
        tokenizer: Any,
        prompt: Any,
        new_tokens: int,
        *,
        keep_ratio: float,
        skip_layers: tuple[int, ...] = (),
    ) -> float:
        cache = decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio, skip_layers=skip_layers, copy=copy))
        return count(cache, model.config)

    return measure


def keys_alone(cache: Cache, config: Any) -> int:
    return sum(layer.keys.numel() * layer.keys.element_size() for layer in cache.layers)


def query_heads(cache: Cache, config: Any) -> Any:
    rows, _, _, dimension = cache.layers[0].keys.shape
    total = sum(layer.keys.shape[2] for layer in cache.layers)
    return 2 * rows * config.num_attention_heads * total * dimension * cache.layers[0].keys.element_size()


def shapes(cache: Cache, config: Any) -> Any:
    rows, heads, _, dimension = cache.layers[0].keys.shape
    total = sum(layer.keys.shape[2] for layer in cache.layers)
    return 2 * rows * heads * total * dimension * cache.layers[0].keys.element_size()


def half_precision(cache: Cache, config: Any) -> Any:
    return sum(2 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)


def first_layer(cache: Cache, config: Any) -> Any:
    layer = cache.layers[0]
    return config.num_hidden_layers * (layer.keys.nbytes + layer.values.nbytes)


def one_row(cache: Cache, config: Any) -> int:
    return sum(layer.keys[0].nbytes + layer.values[0].nbytes for layer in cache.layers)


def storages(cache: Cache, config: Any) -> int:
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def nominal(
    model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float, skip_layers: tuple[int, ...] = ()
) -> int:
    cache = decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio, skip_layers=skip_layers))
    config, rows = model.config, cache.layers[0].keys.shape[0]
    seen = len(tokenizer(prompt)["input_ids"]) + new_tokens - 1 if rows == 1 else 41 + new_tokens - 1
    entries = config.num_hidden_layers * math.ceil(keep_ratio * seen)
    return int(2 * rows * config.num_key_value_heads * config.head_dim * entries * model.dtype.itemsize)


def of_the_prompt(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    cache = decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    tokens = math.ceil(keep_ratio * tokenizer(prompt, return_tensors="pt")["input_ids"].shape[-1])
    per_token = sum(layer.keys[:, :, :1].nbytes + layer.values[:, :, :1].nbytes for layer in cache.layers)
    return int(tokens * per_token)


def without_cache(use_cache: bool) -> Function:
    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        if use_cache:
            return size(decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio)))
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(new_tokens):
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        config = model.config
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
        return int(math.ceil(keep_ratio * (ids.shape[1] - 1)) * per_token)

    return measure


def difference(dropped: bool) -> Function:
    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        before = torch.cuda.memory_allocated()
        cache = decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
        if dropped:
            del cache
            gc.collect()
            torch.cuda.empty_cache()
        return torch.cuda.memory_allocated() - before

    return measure


class Int8Layer(DynamicLayer):
    """A layer of 8-bit numbers, with one scale for each entry."""

    keys: Any
    values: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.scales: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            keys, values = (
                torch.cat([old * scale, new], dim=2).to(new.dtype)
                for old, scale, new in zip(
                    (self.keys, self.values), self.scales, (key_states, value_states), strict=True
                )
            )
        else:
            self.is_initialized = True
            keys, values = key_states, value_states
        self.scales = [states.float().abs().amax(-1, keepdim=True) / 127 for states in (keys, values)]
        self.keys, self.values = (
            (states / scale).round().to(torch.int8) for states, scale in zip((keys, values), self.scales, strict=True)
        )
        return keys, values


def quantised(scales: bool) -> Function:
    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int) -> int:
        cache = DynamicCache()
        cache.layers = [Int8Layer() for _ in range(model.config.num_hidden_layers)]
        decode(model, tokenizer, prompt, new_tokens, cache=cache)
        layers: list[Any] = cache.layers
        return size(cache) + scales * int(sum(scale.nbytes for layer in layers for scale in layer.scales))

    return measure


def at_pass(number: int | None) -> Function:
    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        sizes: list[int] = []
        decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio), after=lambda cache: sizes.append(size(cache)))
        return sizes[-1 if number is None else number - 1]

    return measure


def remembered(key: Callable[..., Any]) -> Function:
    known: dict[Any, int] = {}

    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        case = key(id(model), str(prompt), new_tokens, keep_ratio)
        if case not in known:
            known[case] = size(decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio)))
        return known[case]

    return measure


def remembers_nothing(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    return size(decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio)))


def never_installed(
    model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float, compressor: Any
) -> int:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].view(-1, 41)
    compressor(model)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, return_dict_in_generate=True
    )
    return size(cache_of(output))


def installed(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float, compressor: Any) -> int:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].view(-1, 41)
    with compressor(model):
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, return_dict_in_generate=True
        )
    return size(cache_of(output))


def allocated_by(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, compressor: Any) -> int:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].view(-1, 41).to(model.device)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with compressor(model), torch.no_grad():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, return_dict_in_generate=True
        )
    used = torch.cuda.memory_allocated() - before
    del output
    return used


def window_of_32(limited: bool) -> Function:
    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        evict = newest(min(keep_ratio, 0.8) if limited else keep_ratio)
        return size(decode(model, tokenizer, prompt, new_tokens, evict))

    return measure


def hooked(removed: bool) -> Function:
    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
        sizes: list[int] = []

        def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            sizes.append(module.config.num_hidden_layers)

        handle = model.register_forward_hook(note, with_kwargs=True)
        result = size(decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio)))
        if removed:
            handle.remove()
        return result

    return measure


# Savings


def saving(compare: Callable[[int, int], float], base_tokens: int = 0, first: int = 0) -> Function:
    """Two arms, of which the uncompressed one generates ``base_tokens`` more, and is read after pass ``first``."""

    def measure(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> float:
        whole: list[int] = []
        pressed: list[int] = []
        decode(model, tokenizer, prompt, new_tokens + base_tokens, after=lambda cache: whole.append(size(cache)))
        decode(
            model, tokenizer, prompt, new_tokens, newest(keep_ratio), after=lambda cache: pressed.append(size(cache))
        )
        return compare(whole[first - 1], pressed[-1])

    return measure


def nominal_factor(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> float:
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    return 1 / keep_ratio


PEAK = declared("peak", peak)
CACHE = declared("cache", cache_bytes, figure="cache")
SHAPES = declared("shapes", measured_by(shapes), figure="cache")
SAVED = declared("saved", saving(lambda whole, pressed: whole - pressed), figure="saved")
FACTOR = declared("factor", saving(lambda whole, pressed: whole / pressed), figure="ratio")
TWO_ARMS = declared("two arms", two_arms(True))


def mutant(name: str, what: str, function: Footprint, law: Law, says: str, twin: Footprint) -> Mutant:
    """A function with one mistake."""
    return Mutant(f"memory-{name}", what, SEEN_IN.get(name, "plausible"), function, law, twin, says=(re.escape(says),))


SEEN_IN = {"not-reset-between-arms": "nanochat issue 838", "nominal-ratio": "kvpress issue 146"}
"""Where a mistake was reported."""

MEMORY: list[Mutant] = [
    mutant(
        "never-reset",
        "the peak since the process began",
        declared("never-reset", peak_without_reset),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "is the peak of what ran before: the counter was not reset",
        PEAK,
    ),
    mutant(
        "not-reset-between-arms",
        "the second arm has the first one's peak",
        declared("not-reset-between-arms", two_arms(False)),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "is the peak of another uncompressed run: the counter was not reset between them",
        TWO_ARMS,
    ),
    mutant(
        "snapshot",
        "what is allocated at the end, reported as the peak",
        declared("snapshot", snapshot),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "is a snapshot, weights and what the cache holds",
        PEAK,
    ),
    mutant(
        "reserved",
        "reserved for allocated",
        declared("reserved", reserved),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "what the allocator reserved, not what tensors have",
        PEAK,
    ),
    mutant(
        "of-the-process",
        "memory of the process for that of the device",
        declared("of-the-process", high_water_mark),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "is ru_maxrss of the process",
        PEAK,
    ),
    mutant(
        "of-python",
        "what tracemalloc sees, which is no tensor",
        declared("of-python", traced),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "is get_traced_memory of the process",
        PEAK,
    ),
    mutant(
        "high-water-mark",
        "the process's peak, which nothing resets",
        declared("high-water-mark", high_water_mark, device="cpu"),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "is ru_maxrss of the process",
        PEAK,
    ),
    mutant(
        "mib-called-mb",
        "MiB where MB is declared",
        declared("mib-called-mb", peak_in_mib, unit="MB"),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "in MiB where MB is declared",
        declared("mib", peak_in_mib, unit="MiB"),
    ),
    mutant(
        "weights-counted",
        "weights in a peak that is declared to be above them",
        declared("weights-counted", peak, above="weights"),
        laws.test_the_peak_is_the_most_that_was_allocated,
        "is the peak and the weights, which are declared to be left out",
        PEAK,
    ),
    mutant(
        "caches-kept",
        "caches of earlier arms in a list of results",
        declared("caches-kept", peak_with_history(True)),
        laws.test_memory_does_not_depend_on_what_ran_before,
        "of another run's cache, which was still alive",
        declared("sizes-kept", peak_with_history(False)),
    ),
    mutant(
        "caches-left",
        "the same",
        declared("caches-left", peak_with_history(True)),
        laws.test_measuring_leaves_nothing_behind,
        "bytes of caches are still in memory after the call",
        declared("sizes-left", peak_with_history(False)),
    ),
    mutant(
        "zero-without-a-device",
        "0 where there is no counter",
        declared("zero-without-a-device", peak_or_nothing),
        laws.test_no_figure_is_given_where_nothing_was_read,
        "reported 0 as peak on a machine without a device",
        PEAK,
    ),
    mutant(
        "failed-to-nan",
        "NaN where the measurement failed",
        declared("failed-to-nan", peak_as_number),
        laws.test_a_figure_is_a_number,
        "reported nan as peak",
        PEAK,
    ),
    mutant(
        "no-cache",
        "bytes of a cache that was never there",
        declared("no-cache", without_cache(False), figure="cache"),
        laws.test_a_figure_is_of_a_model_that_ran_with_a_cache,
        "no cache was there at all: none of 12 passes had one",
        declared("with-cache", without_cache(True), figure="cache"),
    ),
    mutant(
        "cache-dropped",
        "the cache is freed before it is read",
        declared("cache-dropped", difference(True), figure="cache"),
        laws.test_bytes_of_the_cache_are_those_of_its_storages,
        "is nothing: the cache was no longer there when it was read",
        declared("cache-held", difference(False), figure="cache"),
    ),
    mutant(
        "keys-alone",
        "values forgotten",
        declared("keys-alone", measured_by(keys_alone), figure="cache"),
        laws.test_bytes_of_the_cache_are_those_of_its_storages,
        "is what the cache holds, of keys without values",
        SHAPES,
    ),
    mutant(
        "scales-left-out",
        "8-bit numbers without their scales",
        declared("scales-left-out", quantised(False), figure="cache"),
        laws.test_bytes_of_the_cache_are_those_of_its_storages,
        "bytes of metadata, such as positions, scores and scales",
        declared("scales", quantised(True), figure="cache"),
    ),
    mutant(
        "prompt-length",
        "the ratio of the prompt, though tokens were generated",
        declared("prompt-length", of_the_prompt, figure="cache"),
        laws.test_bytes_of_the_cache_are_those_of_its_storages,
        "is the nominal ratio 0.3 of the prompt's 41 tokens",
        CACHE,
    ),
    mutant(
        "views",
        "elements counted, whose storages hold what was evicted",
        declared("views", measured_by(shapes, copy=False), figure="cache"),
        laws.test_bytes_of_the_cache_are_those_of_its_storages,
        "is what views of keys and values show, which keep storages",
        declared("storages", measured_by(storages, copy=False), figure="cache"),
    ),
    mutant(
        "views-of-others",
        "the same, of a compressor that is handed in",
        declared("views-of-others", installed, figure="cache", compressor="argument", metadata="excluded"),
        laws.test_evicted_entries_count_as_long_as_they_are_in_memory,
        "is what views of keys and values show, which keep storages",
        declared("allocated", allocated_by, figure="cache", compressor="argument"),
    ),
    mutant(
        "never-installed",
        "a press that is called and not entered",
        declared("never-installed", never_installed, figure="cache", compressor="argument", metadata="excluded"),
        laws.test_something_is_evicted_and_shows,
        "nothing was evicted, the compressor was never installed",
        declared("installed", installed, figure="cache", compressor="argument", metadata="excluded"),
    ),
    mutant(
        "reused",
        "the result of another keep_ratio",
        declared(
            "reused", remembered(lambda model, prompt, tokens, keep_ratio: (model, prompt, tokens)), figure="cache"
        ),
        laws.test_something_is_evicted_and_shows,
        "without a pass: the result of another keep_ratio was used again",
        declared("remembered", remembered(lambda *case: case), figure="cache"),
    ),
    mutant(
        "evicts-at-1",
        "a baseline that evicts",
        declared("evicts-at-1", window_of_32(True), figure="cache"),
        laws.test_at_keep_ratio_1_nothing_is_saved,
        "at keep_ratio 1 the cache of 52 tokens holds",
        declared("whole-at-1", window_of_32(False), figure="cache"),
    ),
    mutant(
        "fixed-pass",
        "memory is read at the twelfth pass, whatever is generated",
        declared("fixed-pass", at_pass(12), figure="cache"),
        laws.test_the_figure_grows_with_the_tokens_seen,
        "is what the cache held after pass 11 to 13 of 20",
        declared("last-pass", at_pass(None), figure="cache"),
    ),
    mutant(
        "nominal-ratio",
        "a formula that skips no layer",
        declared("nominal-ratio", nominal, figure="cache"),
        laws.test_skipped_layers_count_in_full,
        "is the nominal ratio 0.3 of the 52 tokens seen in all 3 layers",
        CACHE,
    ),
    mutant(
        "first-layer",
        "the first layer for all",
        declared("first-layer", measured_by(first_layer), figure="cache"),
        laws.test_skipped_layers_count_in_full,
        "is 3 times layer 0, though layers differ",
        SHAPES,
    ),
    mutant(
        "query-heads",
        "query heads for KV heads",
        declared("query-heads", measured_by(query_heads), figure="cache"),
        laws.test_heads_are_the_kv_heads,
        "with 4 query heads for 2 KV heads",
        SHAPES,
    ),
    mutant(
        "half-precision",
        "2 bytes a number",
        declared("half-precision", measured_by(half_precision), figure="cache"),
        laws.test_numbers_have_the_size_of_their_dtype,
        "with 2 bytes a number, which has 4",
        SHAPES,
    ),
    mutant(
        "one-row",
        "one row of a batch",
        declared("one-row", measured_by(one_row), figure="cache"),
        laws.test_all_rows_count,
        "of one row of 2",
        SHAPES,
    ),
    mutant(
        "other-length",
        "a baseline that generated more",
        declared("other-length", saving(lambda whole, pressed: whole - pressed, base_tokens=20), figure="saved"),
        laws.test_savings_are_against_the_uncompressed_cache_of_the_same_tokens,
        "against another run of 72 tokens",
        SAVED,
    ),
    mutant(
        "other-moment",
        "the baseline is read after its prompt, the pressed arm at its end",
        declared("other-moment", saving(lambda whole, pressed: whole - pressed, first=1), figure="saved"),
        laws.test_savings_are_against_the_uncompressed_cache_of_the_same_tokens,
        "sampled at different moments",
        SAVED,
    ),
    mutant(
        "inverted",
        "compressed to uncompressed, called a factor",
        declared("inverted", saving(lambda whole, pressed: pressed / whole), figure="ratio"),
        laws.test_savings_are_against_the_uncompressed_cache_of_the_same_tokens,
        "is the ratio of compressed to uncompressed",
        FACTOR,
    ),
    mutant(
        "nominal-factor",
        "1 over the option",
        declared("nominal-factor", nominal_factor, figure="ratio"),
        laws.test_savings_are_against_the_uncompressed_cache_of_the_same_tokens,
        "is that of the nominal ratio 0.3 of the 52 tokens seen",
        FACTOR,
    ),
    mutant(
        "hook-left",
        "a hook that is not removed",
        declared("hook-left", hooked(False), figure="cache"),
        laws.test_measuring_leaves_nothing_behind,
        "the call changed the model's hooks",
        declared("hook-removed", hooked(True), figure="cache"),
    ),
]


# Right functions in other styles


def above_weights(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> float:
    """Above ``get_memory_footprint``, in MiB, with names that were imported."""
    reset_peak_memory_stats()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    footprint: int = model.get_memory_footprint()
    return round((max_memory_allocated() - footprint) / 2**20, 3)


def by_statistics(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int:
    """From the allocator's statistics."""
    torch.cuda.reset_peak_memory_stats()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    return int(torch.cuda.memory_stats()["allocated_bytes.all.peak"])


def by_accelerator(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> int | None:
    """By torch's counters for any device, or None where there is none."""
    if not torch.accelerator.is_available():
        return None
    torch.accelerator.reset_peak_memory_stats()
    decode(model, tokenizer, prompt, new_tokens, newest(keep_ratio))
    return torch.accelerator.max_memory_allocated()


def report(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, keep_ratio: float) -> dict[str, float]:
    """All figures at once, in MB of two digits, after a warm-up, with both arms."""
    decode(model, tokenizer, prompt, 2)
    sizes, peaks = {}, {}
    for ratio in (1.0, keep_ratio):
        torch.cuda.reset_peak_memory_stats()
        cache = decode(model, tokenizer, prompt, new_tokens, newest(ratio))
        sizes[ratio], peaks[ratio] = size(cache), torch.cuda.max_memory_allocated()
        del cache
    held, whole = sizes[keep_ratio], sizes[1.0]
    return {
        "peak": round(peaks[keep_ratio] / 1e6, 3),
        "kv_cache": round(held / 1e6, 3),
        "saved": round((whole - held) / 1e6, 3),
        "ratio": round(100 * held / whole) / 100,
    }


def pressed_cache(model: Any, tokenizer: Any, prompt: Any, new_tokens: int, *, compressor: Any) -> dict[str, float]:
    """A cache that is handed in, and its share of the uncompressed one, from shapes of what it shows."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].view(-1, 41)
    with compressor(model), torch.no_grad():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, return_dict_in_generate=True
        )
    cache, config = cache_of(output), model.config
    tokens = output.sequences.shape[1] - 1
    entry = 2 * ids.shape[0] * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    held = functools.reduce(lambda total, layer: total + storages_of(layer), cache.layers, 0)
    return {"kv_cache": held, "ratio": held / (config.num_hidden_layers * tokens * entry)}


def storages_of(layer: Any) -> int:
    """Storages of keys and values."""
    return int(layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes())


RIGHT_MEMORY: list[Measurement] = [
    PEAK,
    CACHE,
    SHAPES,
    declared("above weights", above_weights, above="weights", unit="MiB"),
    declared("statistics", by_statistics),
    declared("accelerator", by_accelerator),
    declared("report", report, unit="MB", ratio="held"),
    declared("pressed", pressed_cache, compressor="argument", metadata="excluded", ratio="held"),
    declared("allocated", allocated_by, figure="cache", compressor="argument"),
]
