"""Rule 14: layers with a sliding window or chunks, and layers that read the keys of another.

Evictions are compared with a plain loop over lists, and logits with the stock model under its own masks, with minus
infinity at evicted keys. Neither shares code with the package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from pressgauge import (
    H2OPress,
    KeyDiffPress,
    KnormPress,
    Press,
    PressedCache,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
    generate,
    perplexity,
    replay,
    watch,
)
from pressgauge.conformance.versions import using
from pressgauge.history import NEVER
from pressgauge.rules import Window
from support.windows import Sight, evictions
from support.zoo import oracle, specimens

PRESSES: dict[str, Press] = {
    "knorm": KnormPress(0.5, prune_after=3),
    "knorm-step": KnormPress(0.5, prune_after=3, recent=1, schedule="step"),
    "knorm-interval": KnormPress(0.4, prune_after=2, interval=3),
    "knorm-prefill": KnormPress(0.5, prune_after=2, schedule="prefill"),
    "streaming": StreamingLLMPress(0.6, prune_after=2, sinks=2, recent=1),
    "keydiff": KeyDiffPress(0.5, prune_after=3),
    "keydiff-step": KeyDiffPress(0.6, prune_after=4, sinks=1, schedule="step", interval=2),
    "h2o": H2OPress(0.5, prune_after=3),
    "h2o-step": H2OPress(0.6, prune_after=4, recent_share=0.3, schedule="step"),
    "snapkv": SnapKVPress(0.5, prune_after=3, recent=3, kernel=3, schedule="budget"),
    "snapkv-prefill": SnapKVPress(0.4, prune_after=3, recent=2),
    "snapkv-wide": SnapKVPress(0.5, prune_after=3, recent=6, kernel=3, schedule="step"),
    "tova": TOVAPress(0.5, prune_after=3),
    "tova-interval": TOVAPress(0.5, prune_after=3, interval=2),
}
MODELS = {
    "mistral": "a window in all layers",
    "gemma3_text": "windows in some layers",
    "llama4_text": "chunks in some layers",
    "gemma3n_text, shared keys": "layers that read the keys of layers with a window, and of others",
}
LENGTH = 40
"""Five times the window of the models."""


@cache
def built(name: str) -> Any:
    """A tiny model in float64, with windows of 8."""
    if name not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return specimens.build(name)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    """A model with windows, chunks or shared keys."""
    return built(request.param)


def close(model: Any, found: Tensor, expected: Tensor) -> None:
    """Both are equal to 1e-9, or as far as a model is that computes in float32."""
    off = 1e-6 if model.config.model_type == "llama4_text" else 1e-9
    torch.testing.assert_close(found, expected, rtol=0, atol=off)


def stock(
    model: Any,
    ids: Tensor,
    passes: Sequence[int],
    tables: Sequence[Tensor],
    noted: dict[int, list[oracle.Call]] | None = None,
) -> Tensor:
    """Logits of the stock model under these evictions, with a softmax in float64."""
    softmax = torch.nn.functional.softmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))
        return oracle.expected(model, ids, passes, tables, noted)


def attached(model: Any, press: Press, ids: Tensor, passes: Sequence[int], mask: Tensor | None = None) -> Any:
    """Logits of passes with a press attached, and the cache."""
    cache: Any = DynamicCache(config=model.config)
    logits, seen = [], 0
    with torch.no_grad(), press(model):
        for part in ids.split(list(passes), dim=1):
            seen += part.shape[1]
            given = {} if mask is None else {"attention_mask": mask[:, :seen]}
            if mask is not None:
                given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, seen - part.shape[1] : seen]
            logits.append(model(part, **given, **using(cache)).logits)
    return torch.cat(logits, dim=1), cache


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(PRESSES)))
def test_replay_equals_a_plain_loop(data: st.DataObject, name: str) -> None:
    """What leaves a window is no eviction; the target is that of the tokens in the window, for each KV head alone."""
    press = PRESSES[name]
    size, chunked = data.draw(st.integers(2, 9) | st.integers(10, 60)), data.draw(st.booleans())
    passes = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 5, 12]), min_size=1, max_size=20))
    prompt = data.draw(st.sampled_from([None, 1, 6]))
    pad = data.draw(st.sampled_from([0, 0, 3]))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    keys = torch.randn(2, 2, pad + sum(passes), 3, generator=draw, dtype=torch.float64)
    queries = torch.randn(2, 4, pad + sum(passes), 3, generator=draw, dtype=torch.float64)
    columns = [pad + passes[0], *passes[1:]]
    table = replay(
        press,
        keys,
        columns,
        prompt_length=None if prompt is None else pad + prompt,
        padding=[0, pad],
        queries=queries,
        scale=0.7,
        window=Window(size, chunked),
    )
    for row, padding in enumerate([0, pad]):
        own = passes if padding else columns
        prompt_length = None if prompt is None else prompt + (pad - padding)
        expected, _ = evictions(
            press,
            keys[row, :, padding:].tolist(),
            queries[row, :, padding:].tolist(),
            0.7,
            own,
            Sight(size, chunked),
            prompt_length,
        )
        shifted = [[0] * padding + [at if at == NEVER else at + padding for at in head] for head in expected]
        assert table[row].tolist() == shifted


@dataclass(frozen=True)
class Case:
    """A model and a press, by name."""

    model: str
    press: str


CASES = [
    *(Case("mistral", press) for press in PRESSES),
    *(Case(model, press) for model in list(MODELS)[1:] for press in ("knorm-interval", "keydiff-step", "h2o")),
]
PASSES = ([20, *[1] * 20], [4, 7, 1, 9, 1, 1, 17])


@pytest.mark.parametrize("subject", CASES, ids=lambda case: f"{case.model}-{case.press}")
def test_evictions_and_logits_are_those_of_a_plain_loop_and_the_stock_model(subject: Case) -> None:
    """Fed in passes, the press evicts what a plain loop over lists evicts, and the logits are those of the stock model
    under its own masks and these evictions, to 1e-9; one pass over the text has both."""
    model, press, ids = built(subject.model), PRESSES[subject.press], specimens.tokens(1, LENGTH)
    for passes in PASSES:
        logits, cache = attached(model, press, ids, passes)
        calls: dict[int, list[oracle.Call]] = {}
        expected = stock(model, ids, passes, cache.evicted_at, calls)
        assert calls
        assert cache.evictions
        for layer, own in calls.items():
            table = in_a_plain_loop(model, press, layer, own, passes)
            assert cache.evicted_at[layer][0].tolist() == table, f"layer {layer} evicts others"
        close(model, logits, expected)
        if passes is PASSES[0]:
            found = perplexity(model, ids, press, passes[0])
            close(model, found.nll, oracle.nll(expected, ids, passes[0]))
            assert all(map(torch.equal, found.evicted_at, cache.evicted_at)), "one pass evicts others"
            assert list(found.held) == cache.held


def in_a_plain_loop(
    model: Any, press: Press, layer: int, calls: Sequence[oracle.Call], passes: Sequence[int]
) -> list[list[int]]:
    """``evicted_at`` of a layer, from its keys and queries in the stock model."""
    keys, queries = calls[-1].key[0].tolist(), torch.cat([call.query for call in calls], dim=2)[0].tolist()
    types = getattr(model.config, "layer_types", None)
    kind = "sliding_attention" if types is None else types[layer]
    size = 2 * LENGTH if kind == "full_attention" else specimens.WINDOW
    sight = Sight(size, kind == "chunked_attention")
    return evictions(press, keys, queries, calls[0].scale, passes, sight)[0]


@pytest.mark.parametrize("subject", CASES[:4] + CASES[len(PRESSES) :: 3], ids=lambda case: f"{case.model}-{case.press}")
def test_stepwise_and_in_one_pass_the_same_is_measured(subject: Case) -> None:
    """Counts, bytes and affected tokens of ``method="stepwise"`` are those of one pass."""
    model, press, ids = built(subject.model), PRESSES[subject.press], specimens.tokens(1, LENGTH)
    one, other = (perplexity(model, ids, press, 20, method) for method in ("onepass", "stepwise"))
    assert (one.held, one.affected_tokens, one.evictions) == (other.held, other.affected_tokens, other.evictions)
    assert one.kv_bytes <= other.kv_bytes <= 1.02 * one.kv_bytes


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *(("mistral", name) for name in ("knorm-step", "keydiff-step", "h2o", "snapkv", "tova-interval")),
        *((model, name) for model in list(MODELS)[1:] for name in ("knorm-interval",)),
    ],
    indirect=["model"],
)
def test_rows_of_a_padded_batch_are_those_alone(model: Any, name: str) -> None:
    """Rule 11 with windows: chunks and windows count a row's own tokens."""
    press, lengths = PRESSES[name], (LENGTH, 31, 18)
    texts = [specimens.tokens(1, length, seed=row) for row, length in enumerate(lengths)]
    ids = torch.cat([torch.nn.functional.pad(text, (LENGTH - text.shape[1], 0)) for text in texts])
    mask = torch.tensor([[int(column >= LENGTH - length) for column in range(LENGTH)] for length in lengths])
    for method in ("onepass", "stepwise"):
        batch = perplexity(model, ids, press, 25, method, attention_mask=mask)
        for row, text in enumerate(texts):
            alone = perplexity(model, text, press, 25 - (LENGTH - lengths[row]), method)
            own = batch.nll[row : row + 1, -alone.nll.shape[1] :]
            close(model, own, alone.nll)


@pytest.mark.parametrize("model", ["mistral"], indirect=True)
@pytest.mark.parametrize("name", ["snapkv", "tova-interval", "keydiff-step"])
def test_a_row_beside_a_padded_one_is_that_row_alone(model: Any, name: str) -> None:
    """Live, with a later pass in which entries leave the window and others are evicted by its attention."""
    torch.manual_seed(0)
    ids = torch.randint(4, 20, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    passes = [12, *[1] * 6, 5, *[1] * (LENGTH - 23)]
    batch, alone = (attached(model, PRESSES[name], ids[rows], passes, mask[rows])[0] for rows in ([0, 1], [0]))
    close(model, batch[:1], alone)


def test_eager_attention_is_sdpa(model: Any) -> None:
    """Also where KV heads hold different numbers of entries."""
    ids, found = specimens.tokens(1, LENGTH), []
    before = model.config._attn_implementation
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        found.append(attached(model, PRESSES["knorm-interval"], ids, [12, *[1] * 20, 8])[0])
    model.set_attn_implementation(before)
    # The softmax of eager attention is in float32.
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_a_ratio_of_one_is_the_model_itself(model: Any) -> None:
    """Rule 7 with windows: logits and stored tensors are bit-identical to transformers' own cache, in every way."""
    ids, press = specimens.tokens(1, LENGTH), KnormPress(1, prune_after=0)
    for passes in ([20, *[1] * 20], [4, 7, 1, 9, 1, 1, 17]):
        logits, stocked = oracle.decode(model, ids, passes, DynamicCache(config=model.config))
        for found, own_cache in (
            attached(model, press, ids, passes),
            oracle.decode(model, ids, passes, press.cache(model.config)),
        ):
            assert torch.equal(found, logits)
            for mine, own in zip(own_cache.layers, stocked.layers, strict=True):
                if own.keys is not None:
                    assert torch.equal(mine.keys, own.keys)
                    assert torch.equal(mine.values, own.values)
    assert not perplexity(model, ids, press, 8, "stepwise").affected_tokens


def test_a_window_alone_evicts_nothing(model: Any) -> None:
    """Tokens that leave a window affect no token, and are in no count of evictions."""
    ids = specimens.tokens(1, LENGTH)
    for press in (None, KnormPress(0.5, prune_after=LENGTH)):
        for method in ("onepass", "stepwise"):
            found = perplexity(model, ids, press, 8, method)
            assert (found.evictions, found.affected_tokens) == (0, 0)
            windows = [
                getattr(layer, "sliding_window", LENGTH + 1) for layer in DynamicCache(config=model.config).layers
            ]
            assert all(held < window for held, window in zip(found.held, windows, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["knorm", "knorm-step", "knorm-prefill", "keydiff"])
def test_memory_is_that_of_the_entries_in_the_window(name: str) -> None:
    """Rule 9 with windows: what leaves the window is freed, and heads that hold fewer have padding slots."""
    model, press, ids = built("mistral"), PRESSES[name], specimens.tokens(1, LENGTH)
    _, cache = attached(model, press, ids, [12, *[1] * (LENGTH - 12)])
    uneven = False
    for layer in cache.pressed:
        own = evicted_and_held(model, press, ids, layer, [12, *[1] * (LENGTH - 12)])
        held = [len(head) for head in own]
        assert layer.positions[0].tolist() == [[-1] * (max(held) - len(head)) + head for head in own]
        rows, heads, most, width = layer.keys.shape
        assert most == max(held) <= 7
        assert layer.nbytes <= 1.02 * 2 * rows * heads * most * width * 8
        uneven |= len(set(held)) > 1
    assert cache.held == [layer.keys.shape[2] for layer in cache.pressed]
    assert uneven or name in ("knorm", "keydiff", "knorm-prefill")


def evicted_and_held(model: Any, press: Press, ids: Tensor, layer: Any, passes: Sequence[int]) -> list[list[int]]:
    """Tokens that a plain loop holds at the end, per KV head, given the evictions of a cache."""
    table = layer.evicted_at[0].tolist()
    return [[j for j, at in enumerate(head) if at == NEVER and ids.shape[1] - j < 8] for head in table]


@torch.no_grad()
def test_a_plain_cache_is_right_or_refuses(model: Any) -> None:
    """Single tokens have the logits of the stock model under the same evictions; what one mask cannot do is refused."""
    ids = specimens.tokens(1, LENGTH)
    for passes in ([20, *[1] * 20], [1] * LENGTH):
        press = PRESSES["knorm"]
        cache = press.cache(model.config)
        logits, _ = oracle.decode(model, ids, passes, cache)
        close(model, logits, stock(model, ids, passes, cache.evicted_at))
    with pytest.raises(ValueError, match=r"use with press\(model\):$"):
        oracle.decode(model, ids, [20, 2, 18], press.cache(model.config))


@torch.no_grad()
def test_a_plain_cache_refuses_heads_of_different_length() -> None:
    """They need a mask for each head, which a plain cache does not have."""
    model = built("mistral")
    with pytest.raises(
        ValueError, match=r"^layer \d has a window of 8 and has evicted entries, so that KV heads hold "
    ):
        oracle.decode(model, specimens.tokens(1, LENGTH), [1] * LENGTH, PRESSES["knorm-step"].cache(model.config))


def test_what_left_a_window_cannot_be_cropped_back() -> None:
    """A crop is possible as long as nothing has left the window, as in transformers' cache."""
    model, ids = built("mistral"), specimens.tokens(1, LENGTH)
    _, cache = attached(model, KnormPress(0.5, prune_after=20), ids[:, :7], [7])
    cache.crop(5)
    assert (cache.seen, cache.held) == (5, [5] * 4)
    _, cache = attached(model, KnormPress(0.5, prune_after=20), ids[:, :8], [8])
    with pytest.raises(ValueError, match=r"^cannot crop to 5 tokens: layer 0 has a window of 8, and what has left it"):
        cache.crop(5)


@torch.no_grad()
def test_several_turns_and_generation_go_on_with_the_same_cache(model: Any) -> None:
    """A second turn continues as the stock model does under the same evictions, and ``generate`` gives its tokens."""
    press, ids = PRESSES["knorm"], specimens.tokens(1, 20)
    made = generate(model, ids, press, max_new_tokens=12)
    assert isinstance(made.cache, PressedCache)
    turns = torch.cat([made.tokens, specimens.tokens(1, 6, seed=3)], dim=1)
    end = made.tokens.shape[1]
    with press(model):
        logits = model(turns[:, end - 1 :], **using(made.cache)).logits
    passes = [20, *[1] * (end - 21), 7]
    expected = stock(model, turns, passes, made.cache.evicted_at)
    close(model, logits[:, -7:], expected[:, -7:])
    assert expected[0, 19 : end - 1].argmax(dim=-1).tolist() == made.tokens[0, 20:].tolist()


@torch.no_grad()
def test_layers_that_read_the_keys_of_another_are_skipped_with_it() -> None:
    """Skipping the owner leaves both as they are; the reader alone is refused."""
    model = built("gemma3n_text, shared keys")
    ids = specimens.tokens(1, LENGTH)
    press = KnormPress(0.5, prune_after=3, skip_layers=(0, 1, 2, 3))
    logits, _ = oracle.decode(model, ids, [20, *[1] * 20], DynamicCache(config=model.config))
    assert torch.equal(attached(model, press, ids, [20, *[1] * 20])[0], logits)
    with pytest.raises(ValueError, match=r"skip_layers names layer 5, which reads the keys and values of layer 3, so "):
        attached(model, KnormPress(0.5, skip_layers=(5,)), ids, [LENGTH])


@torch.no_grad()
@pytest.mark.parametrize("name", ["knorm", "knorm-step", "knorm-prefill"])
def test_watch_tells_evictions_from_the_window(name: str) -> None:
    """Queries after the first eviction are affected, also once all that was evicted is outside the window."""
    model, press, ids = built("mistral"), PRESSES[name], specimens.tokens(1, LENGTH)
    with watch(model) as seen:
        _, cache = attached(model, press, ids, [4, *[1] * (LENGTH - 4)])
    first = int(min(table.min() for table in cache.evicted_at))
    assert seen.affected_queries == LENGTH - first > 0
    assert seen.window_queries == 0
    assert seen.held == cache.held
