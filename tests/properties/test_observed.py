"""Stepwise measurement of compressors of any convention, against one pass and against masked attention.

Tests take their cases as arguments, so that ``harness/test_observed_mutants.py`` can run them on broken code.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import CacheLayerMixin

from pressgauge import KnormPress, Perplexity, Press, perplexity
from pressgauge.bench import observed
from pressgauge.bench.compressors import Compressor, Failed, compressors
from pressgauge.bench.observed import Changed, Decoded, Observed
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.trained import trained_model
from pressgauge.conventions.state import difference, fingerprint
from pressgauge.models import load
from pressgauge.presses import PRESSES
from pressgauge.texts import load_text
from pressgauge.uncompressed import Uncompressed

TOKENS = 40
OPTIONS: dict[str, dict[str, Any]] = {"snapkv": {"recent": 4}, "streaming-llm": {"sinks": 2}}
FLOAT32 = 2e-5
"""Nats by which decoding in float32 may differ from one pass."""


@cache
def model_of(dtype: str = "float64") -> Any:
    return trained_model("reference", dtype)[0]


@cache
def texts(dtype: str = "float64", samples: int = 2) -> Tensor:
    return load_text("reference", trained_model("reference", dtype)[1], samples=samples, tokens=TOKENS)


@cache
def decoded(prompt: int = 1, dtype: str = "float64") -> Decoded:
    model, rows = model_of(dtype), texts(dtype).split(1)
    singly = [perplexity(model, row, None, prompt, method="stepwise").nll for row in rows]
    return Decoded.between(singly, [perplexity(model, row, None, prompt).nll for row in rows], model.dtype)


@cache
def against(prompt: int = 1, dtype: str = "float64") -> Uncompressed:
    return Uncompressed(model_of(dtype), texts(dtype), prompt)


def observe(given: Compressor, model: Any, ids: Tensor, base: Decoded, prompt: int = 1) -> Observed:
    """The result on all samples."""
    runs = [Uncompressed(model, row, prompt) for row in ids.split(1)]
    return Observed.joined(observed.observe(given, model, runs, range(len(runs))), base)


def compressor_of(factory: Any, *, ratio: float = 0.5, **options: Any) -> Compressor:
    found = compressors("mine", "my_package.my_module:mine", factory, options, (1.0, ratio), {})
    assert found is not None
    return found[-1]


def measured(factory: Any, prompt: int = 1, dtype: str = "float64", **options: Any) -> Observed:
    given = compressor_of(factory, **options)
    return observe(given, model_of(dtype), texts(dtype), decoded(prompt, dtype), prompt)


class Cached:
    def __init__(self, press: Press) -> None:
        self.press = press

    def cache(self, config: Any) -> Any:
        return self.press.cache(config)


class Patch:
    def __init__(self, press: Press) -> None:
        self.press = press

    def patch(self, model: Any) -> Callable[[], Any]:
        context = self.press(model)
        context.__enter__()
        return lambda: context.__exit__(None, None, None)


def maker(press: Press) -> Any:
    def make(model: Any) -> Any:
        return press.cache(model.config)

    return make


def context(press: Press) -> Any:
    @contextmanager
    def attached(model: Any) -> Iterator[None]:
        with press(model):
            yield

    return attached


CONVENTIONS: dict[str, Callable[[Press], Any]] = {
    "context": context,
    "patch": Patch,
    "cache": Cached,
    "maker": maker,
}


def factory_of(convention: str, press: Callable[[float], Press]) -> Any:
    """Factory that makes a press in the clothes of a convention."""
    if convention == "instance":
        return lambda keep_ratio, config: press(keep_ratio).cache(config)
    return lambda keep_ratio: CONVENTIONS[convention](press(keep_ratio))


def press_of(name: str, schedule: str) -> Callable[[float], Press]:
    options: dict[str, Any] = {"prune_after": 8, "schedule": schedule, **OPTIONS.get(name, {})}
    return lambda keep_ratio: PRESSES[name](keep_ratio, **options)


@cache
def in_one_pass(name: str, schedule: str, prompt: int) -> Perplexity:
    """A press in one pass, with which every convention is compared. Read-only."""
    return perplexity(model_of(), texts(), press_of(name, schedule)(0.5), prompt, against=against(prompt))


ALL = [
    (convention, name, schedule, prompt)
    for convention in (*CONVENTIONS, "instance")
    for name, press in PRESSES.items()
    for schedule, prompt in (("budget", 1), ("prefill", 20))
    if convention in ("context", "patch") or not press.needs_queries
]


@pytest.mark.parametrize(("convention", "name", "schedule", "prompt"), ALL)
def test_a_press_in_any_convention_gives_the_digits_of_one_pass(
    convention: str, name: str, schedule: str, prompt: int
) -> None:
    """NLL to 1e-9 nats, top-1 hits, affected tokens and retained entries are those of one pass, in float64."""
    press = press_of(name, schedule)
    found = measured(factory_of(convention, press), prompt)
    expected = in_one_pass(name, schedule, prompt)
    assert expected.kl is not None
    assert (found.kl - expected.kl).abs().max() < 1e-9
    assert expected.agrees is not None
    assert found.agrees.equal(expected.agrees)
    assert (found.nll - expected.nll).abs().max() < 1e-9
    assert found.hits.equal(expected.hits)
    assert found.affected.equal(expected.affected)
    assert found.held == expected.held
    assert expected.affected_tokens
    assert not found.vacuous
    assert found.altered
    assert found.evictions is None
    assert found.unreadable_tokens == 0


@pytest.mark.parametrize("convention", [*CONVENTIONS, "instance"])
def test_float32_differs_by_rounding(convention: str) -> None:
    """In float32, the NLL of a token is that of one pass within the stated number of nats."""
    press = press_of("knorm", "budget")
    found = measured(factory_of(convention, press), dtype="float32")
    expected = perplexity(model_of("float32"), texts("float32"), press(0.5))
    assert (found.nll - expected.nll).abs().max() < FLOAT32
    assert found.affected.equal(expected.affected)


WINDOW = 12


class WindowCache(DynamicCache):
    """Retains the last entries of each layer, by default 12."""

    def __init__(self, config: Any, size: int = WINDOW) -> None:
        super().__init__(config=config)
        self.size = size
        self.seen = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.seen += key_states.shape[2] * (layer_idx == 0)
        states = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        own: Any = self.layers[layer_idx]
        own.keys, own.values = (own.keys[:, :, -self.size :].clone(), own.values[:, :, -self.size :].clone())
        return states


@pytest.mark.parametrize("prompt", [1, 20])
def test_a_window_is_measured_as_masked_attention_computes_it(prompt: int) -> None:
    """The NLL under a cache that retains a window is that of one pass with a mask; queries after it are affected."""
    found = measured(WindowCache, prompt)
    # An entry is evicted after the pass in which it falls out of the window; the first pass has the whole prompt.
    evicted_at = torch.tensor([max(token + WINDOW, prompt - 1) + 1 for token in range(TOKENS)])
    tables = [evicted_at.expand(2, layer.self_attn.config.num_key_value_heads, -1) for layer in _layers()]
    logits = masked_logits(model_of(), texts(), tables)
    whole = -logits.log_softmax(-1)[:, prompt - 1 : -1].gather(-1, texts()[:, prompt:, None])[..., 0]
    assert (found.nll - whole).abs().max() < 1e-9
    queries = torch.arange(prompt - 1, TOKENS - 1)
    first = max(WINDOW, prompt - 1) + 1
    assert found.affected.equal((queries >= first).expand(2, -1))
    assert set(found.held) == {WINDOW}
    # Keys and values in float64, two samples.
    heads, size = _layers()[0].self_attn.config.num_key_value_heads, _layers()[0].self_attn.head_dim
    assert found.kv_bytes == 2 * len(_layers()) * 2 * heads * WINDOW * size * 8


def _layers() -> Any:
    return model_of().model.layers


def test_samples_do_not_share_anything() -> None:
    """Each sample is a sequence of its own: in the other order it has the same NLL to the bit."""
    given = compressor_of(WindowCache)
    base = decoded()
    turned = Decoded(base.nll.flip(0), base.rounding)
    found, other = (observe(given, model_of(), ids, own) for ids, own in ((texts(), base), (texts().flip(0), turned)))
    assert found.nll.equal(other.nll.flip(0))
    assert found.affected.equal(other.affected.flip(0))


class Rounding(DynamicCache):
    """Rounds entries to a multiple of a step, as a quantised cache does."""

    def __init__(self, config: Any, step: float = 0.25) -> None:
        super().__init__(config=config)
        self.step = step

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        keys, values = ((states / self.step).round() * self.step for states in (key_states, value_states))
        return super().update(keys, values, layer_idx, *args, **kwargs)


def plain_cache(config: Any) -> Any:
    return DynamicCache(config=config)


def static_cache(config: Any) -> Any:
    return StaticCache(config=config, max_cache_len=TOKENS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("factory", [plain_cache, static_cache])
def test_a_cache_that_does_nothing_is_vacuous(factory: Any, dtype: str) -> None:
    """Without evictions and with the NLL of the uncompressed run up to rounding, a result says nothing."""
    found = measured(factory, dtype=dtype)
    assert found.vacuous
    assert not found.altered
    assert found.affected_tokens == 0
    assert set(found.held) == {TOKENS}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_cache_that_changes_entries_is_altered_and_not_vacuous(dtype: str) -> None:
    """A quantised cache evicts nothing, and is not the uncompressed one."""
    found = measured(Rounding, dtype=dtype)
    assert found.altered
    assert not found.vacuous
    assert found.affected_tokens == 0
    assert set(found.held) == {TOKENS}


class HiddenLayer(CacheLayerMixin):
    """Keeps entries where nobody looks."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.stored: Any = None

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        pair = (key_states, value_states)
        if self.stored is not None:
            pair = tuple(torch.cat([old, new], dim=2) for old, new in zip(self.stored, pair, strict=True))  # type: ignore[assignment]
        self.stored = pair
        self.keys = self.values = torch.zeros(1, 1)
        return pair

    def get_seq_length(self) -> int:
        return 0 if self.stored is None else int(self.stored[0].shape[2])

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        return self.get_seq_length() + (query if isinstance(query, int) else query.shape[0]), 0

    def get_max_cache_shape(self) -> int:
        return -1

    def get_max_length(self) -> int:
        return -1


def hidden(config: Any) -> Any:
    made = DynamicCache()
    made.layers = [HiddenLayer() for _ in range(config.num_hidden_layers)]
    return made


def test_what_cannot_be_read_is_missing() -> None:
    """Of a cache with an unknown layout neither affected tokens nor held entries are known, and neither is 0."""
    found = measured(hidden)
    assert found.affected_tokens is None
    assert found.held == ()
    assert found.unreadable_tokens == found.scored_tokens - 2  # the first query of each sample has an empty cache
    assert found.evictions is None


def halved(keep_ratio: float) -> Any:
    """A function over the cache that retains the newest entries, at least 8."""

    def compress(layers: Any) -> Any:
        def size(held: int) -> int:
            return held if held <= 8 else max(8, round(held * keep_ratio))

        return [tuple(states[:, :, -size(states.shape[2]) :].clone() for states in pair) for pair in layers]

    return compress


def test_a_function_over_the_cache_is_measured() -> None:
    """Entries that a function evicts after a pass are met by the next query."""
    found = measured(halved)
    assert set(found.held) == {8}
    queries = torch.arange(TOKENS - 1)
    assert found.affected.equal((queries >= 9).expand(2, -1))
    assert found.kv_bytes
    assert not found.vacuous


def test_a_failure_says_where() -> None:
    """An error in the middle of a text names sample and token, and the model is as it was."""

    class Fails(WindowCache):
        def update(self, *args: Any, **kwargs: Any) -> Any:
            if self.seen == 30:
                raise RuntimeError("expected size 3\nbut got 4")
            return super().update(*args, **kwargs)

    with pytest.raises(Failed, match="failed in sample 1 at token 30: RuntimeError: expected size 3 but got 4"):
        measured(Fails)


@pytest.mark.parametrize("result", [None, [], [(torch.zeros(1), torch.zeros(1))] * 3])
def test_an_unusable_result_fails(result: Any) -> None:
    """What a function returns instead of entries fails the measurement by a sentence."""

    def factory() -> Any:
        def compress(layers: Any) -> Any:
            return result

        return compress

    with pytest.raises(Failed, match=r"failed in sample 1 at token 1: ValueError: the function (must return|returned)"):
        measured(factory)


def hook_left(model: Any) -> None:
    model.register_forward_hook(lambda *given: None)


def attribute_left(model: Any) -> None:
    model.model.layers[0].self_attn.extra = 1


def module_left(model: Any) -> None:
    model.model.layers[0].self_attn.rotary_emb = model.model.rotary_emb


def class_left(model: Any) -> None:
    attention = model.model.layers[1].self_attn
    attention.__class__ = type("Mine", (type(attention),), {})


def forward_left(model: Any) -> None:
    model.model.norm.forward = lambda states: states


def configuration_left(model: Any) -> None:
    model.config.mine = 3


def evaluation_left(model: Any) -> None:
    model.train()


def weight_left(model: Any) -> None:
    model.model.norm.weight.mul_(1.5)


def function_left(model: Any) -> None:
    own = nn.functional.silu
    nn.functional.silu = lambda input, inplace=False: own(input)


def leaving(leave: Callable[[Any], None], *, fails: bool = False) -> Any:
    """Factory of a context that leaves something behind."""

    @contextmanager
    def attached(model: Any) -> Iterator[None]:
        leave(model)
        if fails:
            raise RuntimeError("too late")
        yield

    return lambda keep_ratio: attached


@cache
def own_model() -> Any:
    """A model of these tests, which may be changed."""
    return load("reference", dtype="float64")[0]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (hook_left, "the model has changed"),
        (attribute_left, "module model.layers.0.self_attn has changed"),
        (module_left, "module model.layers.0.self_attn.rotary_emb is new"),
        (class_left, "a LlamaAttention is now a Mine"),
        (forward_left, "module model.norm has changed"),
        (configuration_left, "config 0 has changed"),
        (evaluation_left, "the model has changed"),
    ],
)
def test_what_is_left_in_a_model_is_undone(leave: Callable[[Any], None], what: str, fails: bool) -> None:
    """What a context leaves behind is named and undone, also if it failed: the model is as before, to the bit."""
    model, given = own_model(), compressor_of(leaving(leave, fails=fails))
    before, logits = fingerprint(model), model(texts()).logits
    if fails:
        with pytest.raises(Failed, match="RuntimeError: too late") as raised:
            observe(given, model, texts(), decoded())
        assert not isinstance(raised.value, Changed)
    else:
        assert observe(given, model, texts(), decoded()).left == what
    assert difference(before, fingerprint(model)) == ""
    assert model(texts()).logits.equal(logits)
    assert type(model.model.layers[1].self_attn).__name__ == "LlamaAttention"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (weight_left, "weight model.norm.weight has changed"),
        (function_left, "torch.nn.functional.silu is now that of"),
    ],
)
def test_what_cannot_be_undone_is_named(
    leave: Callable[[Any], None], what: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights changed in place and functions of others that were replaced end the measurements, by name."""
    monkeypatch.setattr(nn.functional, "silu", nn.functional.silu)
    model = load("reference", dtype="float64")[0]
    with pytest.raises(Changed, match=f"left the model changed.*: {what}") as raised:
        observe(compressor_of(leaving(leave, fails=fails)), model, texts(), decoded())
    assert ("RuntimeError: too late" in str(raised.value)) is fails


def test_a_compressor_that_evicts_in_the_prompt_only() -> None:
    """With a prompt of 20 tokens, the first query after it is the first that is affected."""
    press = KnormPress(0.5, prune_after=8, schedule="prefill")
    found = measured(factory_of("context", lambda keep_ratio: press), 20)
    assert found.affected[0].tolist() == [False] + [True] * (TOKENS - 21)
