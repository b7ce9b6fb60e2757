"""Rule 12: what a press does not support is refused before it has effects, with a message that gives the way out."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GPTNeoConfig,
    PreTrainedModel,
    StaticCache,
)

from pressgauge import KnormPress, Press, PressedCache, StreamingLLMPress, replay
from pressgauge.attach import attach
from pressgauge.conformance import architectures
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import cache_of, using
from pressgauge.presses.attention_scores import Attention, LastQueries, Votes
from support.drive import CONFIG, run
from support.query_press import QueryPress

MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"keep_ratio": 1.5}, ValueError, "keep_ratio must be in (0, 1], got 1.5"),
    ({"keep_ratio": 0}, ValueError, "keep_ratio must be in (0, 1], got 0"),
    ({"keep_ratio": -0.1}, ValueError, "keep_ratio must be in (0, 1], got -0.1"),
    ({"keep_ratio": float("nan")}, ValueError, "keep_ratio must be in (0, 1], got nan"),
    ({"keep_ratio": "0.5"}, TypeError, "keep_ratio must be a number in (0, 1], got '0.5'"),
    ({"keep_ratio": True}, TypeError, "keep_ratio must be a number in (0, 1], got True"),
    ({"prune_after": -1}, ValueError, "prune_after must be at least 0, got -1"),
    ({"prune_after": 1.5}, TypeError, "prune_after must be a whole number, got 1.5"),
    ({"skip_layers": (0, -1)}, ValueError, "a layer index in skip_layers must be at least 0, got -1"),
    ({"skip_layers": 3}, TypeError, "skip_layers must be a sequence of layer indices or 'unprunable', got 3"),
    ({"skip_layers": "01"}, TypeError, "skip_layers must be a sequence of layer indices or 'unprunable', got '01'"),
    ({"sinks": -2}, ValueError, "sinks must be at least 0, got -2"),
    ({"recent": -2}, ValueError, "recent must be at least 0, got -2"),
    ({"schedule": "always"}, ValueError, "schedule must be one of budget, step, prefill, got 'always'"),
    ({"interval": 0}, ValueError, "interval must be at least 1, got 0"),
    ({"interval": 2, "schedule": "prefill"}, ValueError, "interval must be 1 with schedule 'prefill'"),
]


@pytest.mark.parametrize(("options", "kind", "sentence"), MISTAKES, ids=lambda value: str(value)[:40])
def test_invalid_options_are_refused_by_the_constructor(
    options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    """Invalid options are refused by the constructor of every press, with the value and the rule."""
    for press in (KnormPress, StreamingLLMPress):
        with pytest.raises(kind, match=re.escape(sentence)):
            press(**{"keep_ratio": 0.5, **options})


@pytest.fixture(params=["cache", "attached"])
def meet(request: pytest.FixtureRequest) -> Callable[[Press, PreTrainedModel], object]:
    """The two ways of applying a press to a model."""

    def enter(press: Press, model: PreTrainedModel) -> None:
        with attach(press, model):
            pass

    return enter if request.param == "attached" else lambda press, model: press.cache(model.config)


Meet = Callable[[Press, PreTrainedModel], object]


def test_a_missing_layer_is_refused_with_the_number_of_layers(meet: Meet) -> None:
    """``skip_layers`` with a missing layer is refused with the number of layers."""
    with pytest.raises(ValueError, match="skip_layers names layer 3, but the model has 3 layers, 0 to 2"):
        meet(KnormPress(0.5, skip_layers=(0, 3)), architectures.shared("llama"))


def test_layers_without_keys_are_refused_unless_they_are_skipped(meet: Meet) -> None:
    """A Qwen3-Next has one layer with keys; a refusal names the layers that are left."""
    model = architectures.hybrid()
    for skipped, named in (((), "layers 0-2"), ((0,), "layers 1-2"), ((0, 2), "layer 1")):
        sentence = f"a press does not support {named} (linear attention, which caches no keys); pass skip_layers=(0, 1,"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            meet(KnormPress(0.5, skip_layers=skipped), model)
    meet(KnormPress(0.5, skip_layers=(0, 1, 2)), model)


def mixed() -> architectures.Model:
    """A Qwen2 with a window in its last layer."""
    return architectures.build(
        "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2, layer_types=None
    )


def test_a_refusal_lists_all_layers_by_reason_and_the_way_out(meet: Meet) -> None:
    """A refusal lists unsupported layers by reason, with the value of ``skip_layers``."""
    model = architectures.hybrid()
    sentence = (
        "a press does not support layers 0-2 (linear attention, which caches no keys); pass skip_layers=(0, 1, 2) or "
        "skip_layers='unprunable', which leaves layer 3 to compress"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        meet(KnormPress(0.5), model)


def test_unprunable_layers_are_skipped_by_that_word() -> None:
    """``"unprunable"`` skips unsupported layers, and caches and results list them."""
    model = architectures.hybrid()
    press = KnormPress(0.5, prune_after=4, skip_layers="unprunable")
    assert press.resolved(model) == KnormPress(0.5, prune_after=4, skip_layers=(0, 1, 2))
    ids = architectures.tokens(1, 30)
    attached, plain = (run(model, press, ids, [12] + [1] * 18, attached=way) for way in (True, False))
    for result in (attached, plain):
        assert result.cache.press.skip_layers == (0, 1, 2)
        assert result.cache.held[3] == 15
    assert KnormPress(0.5, skip_layers="unprunable").resolved(architectures.shared("llama")).skip_layers == ()


def test_unprunable_layers_are_layers_of_a_model() -> None:
    """``"unprunable"`` is refused without a model, and if no layer is left."""
    press = KnormPress(0.5, prune_after=0, skip_layers="unprunable")
    keys = torch.zeros(1, 1, 4, 2)
    alone: list[Callable[[], object]] = [lambda: press.compress(keys, keys), lambda: replay(press, keys, [4])]
    for action in alone:
        with pytest.raises(ValueError, match="'unprunable' means layers of a model, and there is none here"):
            action()
    local = GPTNeoConfig(num_layers=2, attention_types=[[["local"], 2]])
    with pytest.raises(ValueError, match=r"layers 0-1 \(local attention.*leaves no layer to compress.*press=None"):
        press.cache(local)


@pytest.mark.parametrize("attached", [True, False])
def test_skipped_sliding_layers_keep_their_own_cache(attached: bool) -> None:
    """With all windowed layers skipped, results are bit-identical to the plain model."""
    model = architectures.build("mistral", sliding_window=16)
    ids = architectures.tokens(1, 40)
    plain = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = [model(ids[:, :20], **using(plain)).logits]
        expected += [model(ids[:, t : t + 1], **using(plain)).logits for t in range(20, 40)]
    result = run(model, KnormPress(0.5, skip_layers=(0, 1, 2)), ids, [20] + [1] * 20, attached=attached)
    assert torch.equal(result.logits, torch.cat(expected, dim=1))
    assert [type(ours) for ours in result.cache.layers] == [type(theirs) for theirs in plain.layers]


def test_a_mixture_of_windows_and_full_attention_evicts_from_full_layers() -> None:
    """In a Qwen2 with a window in its last layer, the other layers evict, and the last is unchanged."""
    model = mixed()
    assert model.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    ids = architectures.tokens(1, 30)
    press = KnormPress(0.5, prune_after=4, skip_layers=(2,))
    whole = run(model, press, ids, [12] + [1] * 18)
    assert whole.cache.held == [15, 15, 7]
    chunks = run(model, press, ids, [12, 1, 1, 1, 6] + [1] * 9)
    assert chunks.cache.held == [15, 15, 7]
    assert whole.logits.isfinite().all()


def test_a_model_that_already_carries_a_press_is_refused() -> None:
    """A second press on a model is refused."""
    model = architectures.shared("llama")
    with (
        attach(KnormPress(0.5), model),
        pytest.raises(ValueError, match="already carries a press"),
        attach(KnormPress(0.6), model),
    ):
        pass


def test_flash_attention_is_refused() -> None:
    """Attention implementations with unknown masks are refused by name."""
    model = architectures.build("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="'sdpa' and 'eager', got 'flex_attention'"), attach(KnormPress(0.5), model):
        pass


def test_cropping_into_evicted_history_is_refused(subject: Subject) -> None:
    """Cropping to before an eviction is refused, without effects."""
    model = architectures.shared("llama")
    press = subject(0.5, prune_after=4, interval=1)
    cache = run(model, press, architectures.tokens(1, 12), [12]).cache
    held = cache.held
    with pytest.raises(ValueError, match="cannot crop to 8 tokens: layer 0 evicted entries after token 12"):
        cache.crop(-4)
    assert cache.held == held


def test_cropping_without_evictions_undoes_the_tokens(subject: Subject) -> None:
    """Cropping to before the first or after the last eviction undoes the cropped tokens."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 30)
    interval = 1 if subject.schedule == "prefill" else 8
    press = subject(0.5, prune_after=4, interval=interval)
    cache = run(model, press, ids[:, :15], [12, 1, 1, 1]).cache
    if subject.schedule != "prefill":
        assert cache.held == [6 + 3] * architectures.LAYERS
    cache.crop(-2)
    expected = run(model, press, ids, [12, 1, 17])
    with torch.no_grad(), press(model):
        logits = model(ids[:, 13:], **using(cache)).logits
    assert (logits - expected.logits[:, 13:]).abs().max() < 1e-10
    assert all(map(torch.equal, cache.evicted_at, expected.cache.evicted_at))


@torch.no_grad()
def test_a_plain_cache_refuses_to_evict_from_a_batch_that_may_be_padded() -> None:
    """A plain cache refuses to evict from several rows, since it does not see padding, and the refused pass stores
    nothing."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 12)
    press = KnormPress(0.5, prune_after=4)
    cache = press.cache(model.config)
    model(ids[:, :4], **using(cache))
    with pytest.raises(ValueError, match=r"batch of 2 rows.*with press\(model\): or.*unpadded=True"):
        model(ids[:, 4:], **using(cache))
    assert cache.seen == 4
    assert cache.held == [4] * architectures.LAYERS
    promised = press.cache(model.config, unpadded=True)
    model(ids, **using(promised))
    assert promised.held == [6] * architectures.LAYERS


@torch.no_grad()
def test_a_plain_cache_refuses_one_mask_for_layers_of_different_lengths() -> None:
    """A plain cache refuses passes of several tokens if layers hold different numbers (C8 of the bug catalogue)."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 20)
    cache = KnormPress(0.5, prune_after=4, skip_layers=(0,)).cache(model.config)
    model(ids[:, :12], **using(cache))
    with pytest.raises(ValueError, match=r"different numbers of entries \(6 to 12\).*with press\(model\):"):
        model(ids[:, 12:], **using(cache))
    model(ids[:, 12:13], **using(cache))
    assert cache.seen == 13


@torch.no_grad()
def test_eager_attention_refuses_it_for_single_tokens_too() -> None:
    """With eager attention, single tokens are refused as well, since layers share one mask."""
    model = architectures.build("llama")
    model.set_attn_implementation("eager")
    ids = architectures.tokens(1, 20)
    cache = KnormPress(0.5, prune_after=4, skip_layers=(0,)).cache(model.config)
    model(ids[:, :12], **using(cache))
    with pytest.raises(ValueError, match=r"attention 'eager'.*attn_implementation='sdpa', or use with press\(model\):"):
        model(ids[:, 12:13], **using(cache))


@torch.no_grad()
def test_a_cache_with_padded_rows_is_refused_outside_the_context() -> None:
    """A cache with padded rows is refused outside the context, where attention would include its padding slots."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 12)
    mask = torch.tensor([[0] * 5 + [1] * 7, [1] * 12])
    cache = run(model, KnormPress(0.5, prune_after=4), ids, [12], mask=mask).cache
    with pytest.raises(ValueError, match=r"this cache holds padded rows.*with press\(model\):"):
        model(ids[:, :1], **using(cache))


Call = Callable[[PreTrainedModel, Press], object]
IDS = architectures.tokens(2, 6)
CALLS: dict[str, tuple[Call, str]] = {
    "no cache": (
        lambda model, press: model(IDS, use_cache=False),
        "use_cache=False leaves a press nothing to compress",
    ),
    "a static cache": (
        lambda model, press: model(IDS, **using(StaticCache(config=model.config, max_cache_len=9))),
        "cannot compress a StaticCache",
    ),
    "another press's cache": (
        lambda model, press: model(IDS, **using(KnormPress(0.9).cache(model.config))),
        "the cache belongs to KnormPress.*but the model carries",
    ),
    "a mask of four dimensions": (
        lambda model, press: model(IDS, attention_mask=torch.ones(2, 1, 6, 6, dtype=torch.bool)),
        "pass a 2-D attention_mask",
    ),
    "a mask of another size": (
        lambda model, press: model(IDS, attention_mask=torch.ones(2, 7)),
        "must cover the 0 columns seen and the 6 new ones of 2 rows",
    ),
    "padding on the right": (
        lambda model, press: model(IDS, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])),
        "row 0 has padding between or after its tokens: pad on the left",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_would_be_silently_wrong_are_refused(call: str) -> None:
    """Unsupported calls in the context are refused before the model runs."""
    model = architectures.shared("llama")
    press = KnormPress(0.5, prune_after=2)
    action, sentence = CALLS[call]
    with torch.no_grad(), press(model), pytest.raises(ValueError, match=sentence):
        action(model, press)


@torch.no_grad()
def test_a_nonempty_dynamic_cache_is_refused() -> None:
    """A ``DynamicCache`` that is not empty is refused, and not changed."""
    model = architectures.shared("llama")
    cache = DynamicCache(config=model.config)
    model(IDS[:1], **using(cache))
    press = KnormPress(0.5, prune_after=2)
    with press(model), pytest.raises(ValueError, match="the cache holds 6 tokens that no press has seen"):
        model(IDS[:1, :1], **using(cache))
    assert type(cache) is DynamicCache
    assert cache.get_seq_length() == 6


@torch.no_grad()
def test_masks_that_contradict_each_other_are_refused() -> None:
    """A mask that contradicts the padding of earlier passes is refused."""
    model = architectures.shared("llama")
    press = KnormPress(0.5, prune_after=2)
    with press(model):
        cache = cache_of(model(IDS, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])))
        with pytest.raises(ValueError, match="pass the attention_mask of all columns"):
            model(IDS[:, :1], **using(cache))
        with pytest.raises(ValueError, match="row 0 of attention_mask has 1 columns of padding, in earlier passes 2"):
            model(IDS[:, :1], **using(cache), attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1] * 7]))


def test_a_press_that_needs_queries_works_attached_only() -> None:
    """A press that needs queries is refused as a plain cache and by ``compress``."""

    press = QueryPress(0.5)
    with pytest.raises(
        ValueError, match=r"QueryPress needs queries, which a cache never sees: use with press\(model\):"
    ):
        press.cache(CONFIG)
    with pytest.raises(ValueError, match="QueryPress needs queries"):
        press.compress(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))


@torch.no_grad()
def test_attached_presses_receive_queries() -> None:
    """An attached press that needs queries receives those of the last pass."""
    seen: list[tuple[int, ...]] = []

    class Looking(LastQueries):
        def observe(self, attention: Attention) -> None:
            seen.append(tuple(attention.queries.shape))
            super().observe(attention)

    class LookingPress(QueryPress):
        def votes(self) -> Votes:
            return Looking(1)

    model = architectures.shared("llama")
    press = LookingPress(0.5, prune_after=4)
    with press(model):
        cache = cache_of(model(architectures.tokens(1, 12)))
        model(architectures.tokens(1, 1), **using(cache))
    layers = architectures.LAYERS
    assert seen == [(1, 6, 12, 8)] * layers + [(1, 6, 1, 8)] * layers
    assert isinstance(cache, PressedCache)


def test_a_press_that_needs_queries_says_which() -> None:
    """A press that needs queries and lacks ``votes`` is refused."""

    class Forgetful(KnormPress):
        needs_queries = True

    with pytest.raises(NotImplementedError, match=r"Forgetful needs queries: define votes\(\)"):
        Forgetful(0.5).votes()


@pytest.mark.parametrize(
    ("keys", "values"),
    [((2, 3, 4), (2, 3, 4)), ((1, 2, 5, 3), (1, 2, 4, 3)), ((1, 2, 5, 3), (1, 1, 5, 3))],
)
def test_compress_refuses_shapes_that_do_not_fit(keys: tuple[int, ...], values: tuple[int, ...]) -> None:
    """``compress`` refuses keys and values that disagree in batch, heads or tokens."""
    with pytest.raises(ValueError, match="keys and values must be"):
        KnormPress(0.5).compress(torch.zeros(keys), torch.zeros(values))
