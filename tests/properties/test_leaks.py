"""Rule 10: nothing leaks."""

import dataclasses
import subprocess

import pytest
import torch
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressgauge import KnormPress, PressedCache, RandomPress
from pressgauge.conformance import architectures
from pressgauge.conformance.strategies import DIMENSION, HEADS
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import cache_of, using
from pressgauge.conventions.state import fingerprint
from support.drive import feed, run
from support.prepared import python


def test_a_press_is_an_immutable_value(subject: Subject) -> None:
    """Presses with equal options are equal, hashable and immutable."""
    press = subject(0.5, prune_after=3)
    assert press == subject(0.5, prune_after=3)
    assert hash(press) == hash(subject(0.5, prune_after=3))
    assert press != subject(0.6, prune_after=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        press.prune_after = 4


def test_a_second_cache_is_independent_of_the_first(subject: Subject) -> None:
    """The same keys in a second cache of a press give the same history (C5 of the bug catalogue)."""
    keys = torch.randn(1, HEADS, 20, DIMENSION, dtype=torch.float64)
    press = subject(0.5, prune_after=4)
    caches = [feed(press, keys, [8] + [1] * 12) for _ in range(2)]
    assert [cache.seen for cache in caches] == [20, 20]
    assert all(map(torch.equal, *(cache.evicted_at for cache in caches)))


def test_a_reset_cache_equals_a_new_one(subject: Subject) -> None:
    """After ``reset()``, a sequence is decoded as with a new cache."""
    model = architectures.shared("llama")
    press = subject(0.5, prune_after=4)
    first = run(model, press, architectures.tokens(1, 18), [10] + [1] * 8)
    first.cache.reset()
    assert (first.cache.seen, first.cache.nbytes, first.cache.evicted_at) == (0, 0, [])
    text = architectures.tokens(1, 14, seed=3)
    expected = run(model, press, text, [14])
    with torch.no_grad(), press(model):
        assert torch.equal(model(text, **using(first.cache)).logits, expected.logits)
    assert all(map(torch.equal, first.cache.evicted_at, expected.cache.evicted_at))


def test_inputs_are_never_written_to(subject: Subject) -> None:
    """``compress`` and caches never write to their inputs."""
    keys = torch.randn(1, 2, 20, 3)
    values = torch.randn(1, 2, 20, 3)
    before = keys.clone(), values.clone()
    press = subject(0.5, prune_after=4)
    press.compress(keys, values)
    cache = press.cache(architectures.shared("llama").config)
    for start in (0, 10, 11):
        for layer in range(architectures.LAYERS):
            cache.update(keys[:, :, start : start + 10], values[:, :, start : start + 10], layer)
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


def _registered() -> tuple[list[str], list[str]]:
    return sorted(ALL_ATTENTION_FUNCTIONS), sorted(ALL_MASK_ATTENTION_FUNCTIONS)


class InterruptedPassError(Exception):
    """Raised in the middle of a pass."""


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_leaving_the_context_removes_everything(goes_wrong: bool) -> None:
    """Hooks and registered functions are removed from the model, also after an exception (C6 of the bug catalogue)."""
    model = architectures.build("llama")
    before, registered = fingerprint(model), _registered()
    ids = architectures.tokens(1, 12)
    with torch.no_grad():
        expected = model(ids).logits
        try:
            with KnormPress(0.5, prune_after=3)(model):
                assert fingerprint(model) != before
                model(ids)
                if goes_wrong:
                    raise InterruptedPassError
        except InterruptedPassError:
            pass
        assert fingerprint(model) == before
        assert _registered() == registered
        assert torch.equal(model(ids).logits, expected)


def test_a_pass_that_fails_leaves_the_press_attached_and_its_own_error() -> None:
    """An exception in the model is not replaced, and the press stays attached and is correct in the next pass."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 12)
    press = KnormPress(0.5, prune_after=3)

    def fail(*_: object) -> None:
        raise InterruptedPassError

    expected = run(model, press, ids, [12])
    with torch.no_grad(), press(model):
        handle = model.model.layers[1].mlp.register_forward_hook(fail)
        cache = press.cache(model.config)
        with pytest.raises(InterruptedPassError):
            model(ids, **using(cache))
        handle.remove()
        with pytest.raises(RuntimeError, match="interrupted: start again with a new cache"):
            model(ids, **using(cache))
        assert torch.equal(model(ids).logits, expected.logits)


def test_a_model_generates_as_before_after_the_context() -> None:
    """The wrapped ``generate`` is removed with the context."""
    model = architectures.build("llama")
    ids = architectures.tokens(1, 10)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(ids, **settings)
    with KnormPress(0.3, prune_after=2)(model):
        model.generate(ids, **settings)
    assert "generate" not in vars(model)
    assert torch.equal(model.generate(ids, **settings), expected)


def test_a_dynamic_cache_becomes_a_pressed_one_in_place() -> None:
    """A ``DynamicCache`` that is passed in is compressed in place, and remains a plain pressed cache."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 20)
    press = KnormPress(0.5, prune_after=4)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        with press(model):
            model(ids[:, :12], **using(cache))
        assert isinstance(cache, PressedCache)
        assert cache.held == [6] * architectures.LAYERS
        after = [model(ids[:, t : t + 1], **using(cache)).logits for t in range(12, 20)]
    expected = run(model, press, ids, [12] + [1] * 8)
    assert (torch.cat(after, dim=1) - expected.logits[:, 12:]).abs().max() < 1e-10
    assert cache.held == [10] * architectures.LAYERS


def test_a_forward_call_without_a_cache_gets_a_pressed_one() -> None:
    """In the context, a cache created by the model is compressed as well."""
    model = architectures.shared("llama")
    press = KnormPress(0.5, prune_after=4)
    with torch.no_grad(), press(model):
        cache = cache_of(model(architectures.tokens(1, 12)))
    assert cache.held == [6] * architectures.LAYERS


def test_generate_declares_the_length_of_its_input() -> None:
    """The prompt of ``model.generate`` is its input, even if transformers feeds it in chunks."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 30)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
    press = KnormPress(0.5, prune_after=4, schedule="prefill")
    # transformers 5.2 generates other tokens from chunks even without a press, so only counts are compared.
    agrees = torch.equal(model.generate(ids, **settings), model.generate(ids, prefill_chunk_size=8, **settings))
    with press(model):
        whole = model.generate(ids, return_dict_in_generate=True, **settings)
        chunked = model.generate(ids, prefill_chunk_size=8, return_dict_in_generate=True, **settings)
    assert cache_of(whole).held == cache_of(chunked).held == [15 + 4] * architectures.LAYERS
    assert torch.equal(whole.sequences, chunked.sequences) == agrees


def test_importing_changes_nothing() -> None:
    """Importing the package registers nothing, sets no default and draws no random number."""
    script = """
import torch, transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as A
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as M
def state():
    return (sorted(A), sorted(M), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.random.get_rng_state().tolist(), torch.are_deterministic_algorithms_enabled())
before = state()
import pressgauge, pressgauge.cli
assert state() == before
"""
    subprocess.run([*python(), "-c", script], check=True)


def test_a_random_press_draws_no_random_numbers() -> None:
    """RandomPress draws no random numbers, and its scores depend on the seed."""
    state = torch.random.get_rng_state()
    keys = torch.zeros(1, 2, 50, 3)
    one = RandomPress(0.5, prune_after=0).compress(keys, torch.arange(50.0).expand(1, 2, 50)[..., None])[1]
    other = RandomPress(0.5, prune_after=0, seed=1).compress(keys, torch.arange(50.0).expand(1, 2, 50)[..., None])[1]
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
