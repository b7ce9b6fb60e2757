"""Calls that an attached press handles, leaves unchanged and refuses, in edge cases."""

import copy
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.models.llama.modeling_llama import LlamaAttention

from pressgauge import KnormPress, PressedCache, perplexity
from pressgauge.conformance import architectures
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.versions import CACHE, cache_of, using
from support.attention_modules import Beside, broken
from support.drive import run

PRESS = KnormPress(0.5, prune_after=4)


class FailedError(Exception):
    """Raised in the middle of a pass."""


def fail(*_: object) -> None:
    """A hook that fails."""
    raise FailedError


class Between:
    """Wrapper between an attention layer and its cache."""

    def __init__(self, cache: Any, update: Callable[..., Any]) -> None:
        self.cache, self.changed = cache, update

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.changed(lambda k, v: self.cache.update(k, v, *args, **kwargs), keys, values)


def between(update: Callable[..., Any]) -> type[LlamaAttention]:
    """Attention with a modified cache update."""

    class Changed(LlamaAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, CACHE: Between(kwargs[CACHE], update)})

    return Changed


def in_two_parts(update: Callable[..., Any], keys: Tensor, values: Tensor) -> Any:
    """Update with the first token, then with the others."""
    if keys.shape[2] > 1:
        update(keys[:, :, :1], values[:, :, :1])
        keys, values = keys[:, :, 1:], values[:, :, 1:]
    return update(keys, values)


def all_but_one(update: Callable[..., Any], keys: Tensor, values: Tensor) -> Any:
    """The first token is attended to, but not passed to the cache."""
    stored = update(keys[:, :, 1:], values[:, :, 1:])
    return tuple(torch.cat([own[:, :, :1], kept], dim=2) for own, kept in zip((keys, values), stored, strict=True))


def copied_keys(update: Callable[..., Any], keys: Tensor, values: Tensor) -> Any:
    """Attention reads other keys of the same shape than those stored."""
    stored, kept = update(keys, values)
    return stored + 1, kept


def copied_values(update: Callable[..., Any], keys: Tensor, values: Tensor) -> Any:
    """Attention reads other values of the same shape than those stored."""
    stored, kept = update(keys, values)
    return stored, kept + 1


class Unmasked(LlamaAttention):
    """Attention to later tokens, without a mask."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.is_causal = False
        return super().forward(*args, **{**kwargs, "attention_mask": None})


class Absent(LlamaAttention):
    """A layer without attention, as when a model skips layers."""

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return hidden_states, None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (between(all_but_one), "11 of 12 tokens passed to the cache, attention from 12"),
        (between(copied_keys), "attention to keys that its cache did not return"),
        (between(copied_values), "attention to values that its cache did not return"),
        (Unmasked, "attention to later tokens"),
        (Absent, "tokens of the pass that never reached the cache that it was given"),
    ],
    ids=["all-but-one", "copied-keys", "copied-values", "unmasked", "absent"],
)
def test_a_layer_of_non_standard_attention_is_refused(kind: type[LlamaAttention], reason: str) -> None:
    """Non-standard attention is refused in its pass, with the layer and the reason."""
    ids = architectures.tokens(1, 12)
    layer = 1
    model = broken(kind, layer)
    with (
        torch.no_grad(),
        PRESS(model),
        pytest.raises(ValueError, match=f"a press does not support layer {layer}") as refusal,
    ):
        model(ids)
    assert f"layer {layer} ({reason})" in str(refusal.value)
    assert f"pass skip_layers=({layer},), which leaves layers 0, 2 to" in str(refusal.value)


def test_no_mask_is_needed_for_single_tokens() -> None:
    """Attention to later tokens is correct for single tokens."""
    ids = architectures.tokens(1, 12)
    found = run(broken(Unmasked, 0), PRESS, ids, [1] * 12)
    assert found.cache.evictions
    expected = run(architectures.shared("llama"), PRESS, ids, [1] * 12)
    assert torch.equal(found.logits, expected.logits)


def views(update: Callable[..., Any], keys: Tensor, values: Tensor) -> Any:
    """Reshaped tensors of the same storage."""
    return tuple(stored[:] for stored in update(keys, values))


class Nameless(LlamaAttention):
    """Attention without ``is_causal``, which in transformers means causal."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        vars(self).pop("is_causal", None)
        return super().forward(*args, **kwargs)


class Low(LlamaAttention):
    """Attention with a mask of low numbers that are not the lowest."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen, tokens = kwargs[CACHE].get_seq_length(self.layer_idx), hidden_states.shape[1]
        later = torch.ones(1, 1, tokens, seen + tokens, dtype=torch.bool).triu(seen + 1)
        least = 0.6 * torch.finfo(torch.float64).min
        mask = torch.zeros(later.shape, dtype=torch.float64).masked_fill(later, least)
        return super().forward(hidden_states, *args, **{**kwargs, "attention_mask": mask})


@pytest.mark.parametrize("kind", [between(views), Nameless, Low], ids=["views", "nameless", "low"])
def test_correct_non_standard_attention_is_accepted(kind: type[LlamaAttention]) -> None:
    """Correct attention in another style is compressed."""
    ids = architectures.tokens(1, 18)
    expected = run(architectures.shared("llama"), PRESS, ids, [12, 1, 1, 3, 1])
    found = run(broken(kind, 0), PRESS, ids, [12, 1, 1, 3, 1])
    assert (found.logits - expected.logits).abs().max() < 1e-10
    assert all(map(torch.equal, found.cache.evicted_at, expected.cache.evicted_at))


@torch.no_grad()
def test_tokens_may_be_passed_in_parts() -> None:
    """Tokens may be passed to the cache in parts, if all are there before attention."""
    ids = architectures.tokens(1, 20)
    expected = architectures.shared("llama")(ids[:, :12]).logits
    with PRESS(model := broken(between(in_two_parts))):
        output = model(ids[:, :12])
    assert torch.equal(output.logits, expected)
    assert cache_of(output).held == [6] * architectures.LAYERS


@torch.no_grad()
def test_attention_outside_layers_is_unchanged() -> None:
    """Modules without a layer index attend as before, and layers evict."""
    model = broken(Beside)
    aside: Any = LlamaAttention(model.config, 0).double().requires_grad_(False)
    aside.layer_idx = None
    model.model.layers[1].self_attn.aside = aside
    ids = architectures.tokens(1, 12)
    expected = model(ids).logits
    with PRESS(model):
        output = model(ids)
    assert torch.equal(output.logits, expected)
    assert cache_of(output).held == [6] * architectures.LAYERS


@torch.no_grad()
def test_attention_outside_a_pass_is_unchanged() -> None:
    """A layer called directly attends as before."""
    model = architectures.shared("llama")
    hidden = torch.randn(1, 9, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rotary = model.model.rotary_emb(hidden, torch.arange(9)[None])
    layer = model.model.layers[0].self_attn
    expected = layer(hidden, position_embeddings=rotary, attention_mask=None)[0]
    with PRESS(model):
        assert torch.equal(layer(hidden, position_embeddings=rotary, attention_mask=None)[0], expected)
        model(architectures.tokens(1, 9))
        assert torch.equal(layer(hidden, position_embeddings=rotary, attention_mask=None)[0], expected)


@torch.no_grad()
def test_copying_a_model_does_not_detach_the_press() -> None:
    """After copying an attached model, the original is compressed and the copy is not."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 12)
    with PRESS(model):
        copied: Any = copy.deepcopy(model)
        assert cache_of(model(ids)).held == [6] * architectures.LAYERS
        assert not isinstance(cache_of(copied(ids)), PressedCache)
        assert cache_of(model(ids)).held == [6] * architectures.LAYERS


@torch.no_grad()
def test_a_cache_of_a_press_is_a_plain_one_for_a_copied_model() -> None:
    """A pressed cache works as a plain cache with a copied model, with the same evictions."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 20)
    expected = run(model, PRESS, ids, [12] + [1] * 8)
    with PRESS(model):
        copied = copy.deepcopy(model)
        found = run(copied, PRESS, ids, [12] + [1] * 8, attached=False)
    assert (found.logits - expected.logits).abs().max() < 1e-10
    assert all(map(torch.equal, found.cache.evicted_at, expected.cache.evicted_at))


@torch.no_grad()
def test_the_decoder_of_an_attached_model_may_be_called_by_itself() -> None:
    """Passes of the decoder alone are compressed like those of the model."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 16)
    expected = run(model, PRESS, ids, [12, 1, 1, 2])
    cache = PRESS.cache(model.config)
    with PRESS(model):
        assert cache_of(model.model(ids)).held == [8] * architectures.LAYERS
        states = [model.model(part, **using(cache)).last_hidden_state for part in ids.split([12, 1, 1, 2], dim=1)]
    assert torch.equal(model.lm_head(states[-1]), expected.logits[:, -2:])
    assert all(map(torch.equal, cache.evicted_at, expected.cache.evicted_at))


@torch.no_grad()
def test_a_cache_outlives_the_context_whatever_was_called() -> None:
    """After the context, a cache is a plain one, also after passes of the decoder and failed passes."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 20)
    expected = run(model, PRESS, ids, [12] + [1] * 8, attached=False)
    for fails in (False, True):
        cache = PRESS.cache(model.config)
        with PRESS(model):
            model.model(ids[:, :12], **using(cache))
            if fails:
                handle = model.register_forward_pre_hook(fail)
                with pytest.raises(FailedError):
                    model(ids[:, 12:13], **using(cache))
                handle.remove()
        logits = [model(ids[:, t : t + 1], **using(cache)).logits for t in range(12, 20)]
        assert (torch.cat(logits, dim=1) - expected.logits[:, 12:]).abs().max() < 1e-10
        assert all(map(torch.equal, cache.evicted_at, expected.cache.evicted_at))
    cache = PRESS.cache(model.config)
    with PRESS(model):
        # It fails after all layers.
        handle = model.model.norm.register_forward_pre_hook(fail)
        with pytest.raises(FailedError):
            model.model(ids[:, :12], **using(cache))
        handle.remove()
    logits = [model(ids[:, t : t + 1], **using(cache)).logits for t in range(12, 20)]
    assert (torch.cat(logits, dim=1) - expected.logits[:, 12:]).abs().max() < 1e-10


@torch.no_grad()
def test_custom_masks_are_refused() -> None:
    """Custom masks are refused, for the model and for its decoder."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 12)
    made = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    for called in (model, model.model):
        with PRESS(model), pytest.raises(ValueError, match="pass a 2-D attention_mask, or none"):
            called(ids, attention_mask=made)


@pytest.mark.parametrize("by", ["prompt_lookup_num_tokens", "assistant_early_exit"])
def test_assisted_decoding_is_refused_by_any_option(by: str) -> None:
    """Assisted decoding is refused, also if a generation configuration requests it."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 12)
    config = GenerationConfig(max_new_tokens=4, **{by: 2})
    with PRESS(model), pytest.raises(ValueError, match=f"assisted decoding.*: leave {by} out"):
        model.generate(ids, generation_config=config)


@torch.no_grad()
def test_attention_of_a_missing_layer_is_refused() -> None:
    """A module whose layer index is beyond the model's layers is refused."""
    model = broken(Beside)
    aside: Any = LlamaAttention(model.config, 0).double().requires_grad_(False)
    aside.layer_idx = architectures.LAYERS
    model.model.layers[1].self_attn.aside = aside
    ids = architectures.tokens(1, 12)
    sentence = "attends by modules whose layer_idx is 3, outside 0 to 2"
    with PRESS(model), pytest.raises(ValueError, match=sentence):
        model(ids)
    with pytest.raises(ValueError, match=sentence):
        perplexity(model, ids, PRESS, prompt=6)


def test_two_caches_of_one_pass_are_refused() -> None:
    """A second cache in a pass is refused, under any name."""
    model = architectures.shared("llama")
    given = {name: PRESS.cache(model.config) for name in (CACHE, "memory")}
    with PRESS(model), pytest.raises(ValueError, match="a pass was given 2 caches: pass one"):
        model(architectures.tokens(1, 12), **given)


@torch.no_grad()
def test_a_mask_without_padding_equals_none() -> None:
    """A mask without padding equals no mask, also for several rows."""
    model = architectures.shared("llama")
    ids = architectures.tokens(3, 16)
    expected = run(model, PRESS, ids, [12, 1, 1, 2])
    found = run(model, PRESS, ids, [12, 1, 1, 2], mask=torch.ones_like(ids))
    assert torch.equal(found.logits, expected.logits)
    assert all(map(torch.equal, found.cache.evicted_at, expected.cache.evicted_at))


@torch.no_grad()
def test_passes_of_two_tokens_are_causal() -> None:
    """Rule 1: short passes are causal, also after evictions."""
    ids = architectures.tokens(2, 32)
    for implementation in ("sdpa", "eager"):
        model = architectures.build("llama")
        model.set_attn_implementation(implementation)
        found = run(model, PRESS, ids, [10, 2, 2, 3, 2, 1, 2, 4, 2, 4])
        expected = masked_logits(architectures.shared("llama"), ids, found.cache.evicted_at)
        assert found.cache.evictions
        assert (found.logits - expected).abs().max() < (1e-10 if implementation == "sdpa" else 1e-4)


@torch.no_grad()
def test_embeddings_are_fed_like_tokens() -> None:
    """Passes of ``inputs_embeds`` have the evictions of passes of their tokens."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 20)
    expected = run(model, PRESS, ids, [14] + [1] * 6)
    cache = PRESS.cache(model.config)
    with PRESS(model):
        for start, end in [(0, 14), *((t, t + 1) for t in range(14, 20))]:
            logits = model(inputs_embeds=model.get_input_embeddings()(ids[:, start:end]), **using(cache)).logits
    assert torch.equal(logits, expected.logits[:, -1:])
    assert all(map(torch.equal, cache.evicted_at, expected.cache.evicted_at))


def test_a_failed_pass_shows_only_its_own_error() -> None:
    """A failed pass shows its own error, without errors or warnings about the unfinished pass."""
    model = architectures.build("llama")
    model.model.layers[1].mlp.register_forward_hook(fail)
    with warnings.catch_warnings(record=True) as said, PRESS(model):
        warnings.simplefilter("always")
        with pytest.raises(FailedError):
            model(architectures.tokens(1, 12))
    assert not said


def test_generate_keeps_its_name_and_signature_while_a_press_is_attached() -> None:
    """``generate`` keeps its name and signature, which wrappers inspect."""
    model = architectures.build("llama")
    own = model.generate
    with PRESS(model):
        assert model.generate.__name__ == own.__name__
        assert inspect.signature(model.generate) == inspect.signature(own)
        assert model.generate.__doc__ == own.__doc__
    assert model.generate == own


def test_an_overridden_generate_is_used_and_restored() -> None:
    """A ``generate`` set on the model instance is used, and restored afterwards."""
    model = architectures.build("llama")
    calls: list[int] = []

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(self).generate(self, *args, **kwargs)

    own = types.MethodType(generate, model)
    model.generate = own
    ids = architectures.tokens(1, 12)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 2, "return_dict_in_generate": True}
    with PRESS(model):
        assert isinstance(cache_of(model.generate(ids, **settings)), PressedCache)
    assert len(calls) == 1
    assert vars(model)["generate"] is own
    assert not isinstance(cache_of(model.generate(ids, **settings)), PressedCache)


@pytest.mark.parametrize("given", ["positional", "inputs", "input_ids", "none"])
def test_the_input_of_generate_is_the_prompt_however_it_is_given(given: str) -> None:
    """Under ``prefill``, a prompt evicts once, at its end, also if fed in chunks; without an input, the prompt is a
    single token."""
    model = architectures.build("llama")
    model.generation_config.prefill_chunk_size = 6
    ids = architectures.tokens(1, 16)
    press = KnormPress(0.5, prune_after=4, schedule="prefill")
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    positional: tuple[Tensor, ...] = ()
    if given == "positional":
        positional = (ids,)
    elif given != "none":
        settings[given] = ids
    if given != "none":
        settings["attention_mask"] = torch.ones_like(ids)
    with press(model):
        cache = cache_of(model.generate(*positional, **settings))
    assert cache.held == [8 + 3 if given != "none" else cache.seen] * architectures.LAYERS


class Later(LlamaAttention):
    """Attention with its own window, except in the first pass."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen, tokens = kwargs[CACHE].get_seq_length(self.layer_idx), hidden_states.shape[1]
        if seen:
            kwargs["attention_mask"] = torch.ones(1, 1, tokens, seen + tokens, dtype=torch.bool).tril(seen).triu(seen)
        return super().forward(hidden_states, *args, **kwargs)


def test_every_mask_is_checked_on_a_cpu() -> None:
    """On the CPU, masks are checked in every pass."""
    with pytest.raises(ValueError, match=r"layer 1 \(a mask that is not causal\)"):
        run(broken(Later), PRESS, architectures.tokens(1, 18), [12, 3, 3])
    run(broken(Later), PRESS, architectures.tokens(1, 12), [12])


def first_sees_padding(padding: int) -> type[LlamaAttention]:
    """Attention in which a padded row's first token attends to the column before it."""

    class Seeing(LlamaAttention):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            rows, tokens = hidden_states.shape[:2]
            mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool).tril()
            mask[0, :, :, :padding] = False
            mask[0, :, padding, padding - 1] = True
            mask |= torch.eye(tokens, dtype=torch.bool)
            return super().forward(hidden_states, *args, **{**kwargs, "attention_mask": mask})

    return Seeing


def test_a_first_token_that_sees_padding_is_refused() -> None:
    """Queries of padding may attend to anything, and other queries not to padding."""
    ids, mask = architectures.padded([9, 12])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model = broken(first_sees_padding(3))
    with PRESS(model), pytest.raises(ValueError, match=r"layer 1 \(a mask that is not causal\)"):
        model(ids, attention_mask=mask, position_ids=positions)


@pytest.mark.parametrize("kind", [Unmasked, between(copied_values), Absent], ids=["unmasked", "values", "absent"])
def test_one_pass_refuses_them_as_well(kind: type[LlamaAttention]) -> None:
    """One pass refuses what decoding refuses."""
    with pytest.raises(ValueError, match="a press does not support layer 1"):
        perplexity(broken(kind), architectures.tokens(1, 16), PRESS, prompt=12)
