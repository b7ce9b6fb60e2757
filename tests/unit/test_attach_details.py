"""What an attached press refuses, in whole sentences, and the masks and calls that it takes."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from pressgauge import H2OPress, KnormPress, Press, PressedCache, SnapKVPress, TOVAPress, perplexity
from pressgauge.attach import _Attachment, attach, refuse_implementation
from pressgauge.cache import Handed
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using
from pressgauge.models import interface, latents, support
from pressgauge.models.support import Support
from pressgauge.proof import OUTSIDE, UNFED, Problems, misfit, misread, strange_mask

PRESS = KnormPress(0.5, prune_after=4)
IDS = architectures.tokens(2, 6)


def said(sentence: str) -> str:
    """A pattern for the whole of a sentence."""
    return f"^{re.escape(sentence)}$"


def cache_of_tokens(columns: int) -> DynamicCache:
    """A plain cache that holds some."""
    cache = DynamicCache(config=architectures.shared("llama").config)
    cache.update(torch.zeros(2, 2, columns, 8), torch.zeros(2, 2, columns, 8), 0)
    return cache


WORDS: list[tuple[dict[str, Any], str]] = [
    (
        {"use_cache": False},
        "use_cache=False leaves a press nothing to compress, so the result would be the uncompressed one: leave it "
        "out, or leave the press",
    ),
    (
        {"attention_mask": torch.ones(2, 1, 6, 6)},
        "a press makes the masks of its layers itself: pass a 2-D attention_mask, or none",
    ),
    (
        {"attention_mask": torch.ones(2, 5)},
        "attention_mask must cover the 0 columns seen and the 6 new ones of 2 rows, got [2, 5]",
    ),
    (
        {"attention_mask": torch.tensor([[1] * 6, [0, 1, 1, 0, 1, 1]])},
        "row 1 has padding between or after its tokens: pad on the left",
    ),
    (
        {"attention_mask": torch.tensor([[1] * 5 + [0], [1] * 6])},
        "row 0 has padding between or after its tokens: pad on the left",
    ),
    (
        using(StaticCache(config=architectures.shared("llama").config, max_cache_len=8)),
        "a press cannot compress a StaticCache: pass a DynamicCache, or none at all",
    ),
    (
        using(KnormPress(0.6, prune_after=4).cache(architectures.shared("llama").config)),
        f"the cache belongs to {KnormPress(0.6, prune_after=4)}, but the model carries {PRESS}",
    ),
    (
        using(cache_of_tokens(3)),
        "the cache holds 3 tokens that no press has seen: start from an empty one",
    ),
]


@pytest.mark.parametrize(("given", "words"), WORDS, ids=[words for _, words in WORDS])
@torch.no_grad()
def test_what_a_press_cannot_serve_is_refused(given: dict[str, Any], words: str) -> None:
    """In one sentence; the model is as it was afterwards."""
    model = architectures.shared("llama")
    with pytest.raises(ValueError, match=said(words)), PRESS(model):
        model(IDS, **given)
    assert not interface.carries_a_press(model)
    assert torch.isfinite(model(IDS).logits).all()


@torch.no_grad()
def test_padding_of_earlier_passes_is_not_forgotten() -> None:
    """A mask has to show it again, and a pass without one is refused."""
    model = architectures.shared("llama")
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    cache = PRESS.cache(model.config)
    with PRESS(model):
        model(IDS[:, :4], attention_mask=mask[:, :4], **using(cache))
        sentence = "this cache holds padded rows: pass the attention_mask of all columns seen and new"
        with pytest.raises(ValueError, match=said(sentence)):
            model(IDS[:, 4:], **using(cache))
        sentence = "row 1 of attention_mask has 1 columns of padding, in earlier passes 2"
        with pytest.raises(ValueError, match=said(sentence)):
            model(IDS[:, 4:], attention_mask=torch.tensor([[1] * 6, [0] + [1] * 5]), **using(cache))
        model(IDS[:, 4:], attention_mask=mask, **using(cache))
    assert cache.ledger.padding == [0, 2]
    assert cache.attached is None


@torch.no_grad()
def test_a_row_may_go_on_being_padding() -> None:
    """Until its first token, in whatever pass that is."""
    model = architectures.shared("llama")
    cache = PRESS.cache(model.config)
    mask = torch.tensor([[1] * 6, [0, 0, 0, 0, 0, 1]])
    with PRESS(model):
        for end in (2, 4, 6):
            model(IDS[:, end - 2 : end], attention_mask=mask[:, :end], **using(cache))
            assert cache.ledger.padding == [0, min(end, 5)]


def test_an_implementation_that_cannot_be_routed_is_refused() -> None:
    """And a press on a model that carries one."""
    model = architectures.build("llama")
    with PRESS(model), pytest.raises(ValueError, match=said("the model already carries a press: leave that one first")):
        refuse_implementation(interface.decoder_of(model))
    for implementation in ("sdpa", "eager"):
        interface.decoder_of(model).config._attn_implementation = implementation
        refuse_implementation(interface.decoder_of(model))
    interface.decoder_of(model).config._attn_implementation = "flex_attention"
    sentence = (
        "a press works with the attention implementations 'sdpa' and 'eager', got 'flex_attention': load the model "
        "with attn_implementation='sdpa'"
    )
    with pytest.raises(ValueError, match=said(sentence)), attach(PRESS, model):
        pass


@torch.no_grad()
def test_a_model_is_given_a_cache_where_it_is_called_without_one() -> None:
    """By its configuration if the call does not say; a plain one is taken over in place."""
    model = architectures.build("llama")
    with PRESS(model):
        for given in ({}, {"use_cache": None}, {"use_cache": True}, using(DynamicCache(config=model.config))):
            output = model(IDS[:1], **given)
            cache = output[interface.cache_argument(model)] if hasattr(output, "keys") else None
            assert isinstance(cache, PressedCache)
            assert cache.held == [4] * architectures.LAYERS
        model.config.use_cache = False
        with pytest.raises(ValueError, match=r"^use_cache=False leaves a press nothing to compress, "):
            model(IDS[:1])
        assert model(IDS[:1], use_cache=True)


QUERY, KEY = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8)
VALUE = torch.ones(1, 2, 5, 8)
HANDED = Handed(3, KEY, VALUE)


@pytest.mark.parametrize(
    ("handed", "query", "key", "value", "reason"),
    [
        (HANDED, QUERY, KEY, VALUE, None),
        (HANDED, QUERY, KEY.view(KEY.shape), VALUE, None),
        (None, QUERY, KEY, VALUE, UNFED),
        (Handed(2, KEY, VALUE), QUERY, KEY, VALUE, "2 of 3 tokens passed to the cache, attention from 3"),
        (HANDED, QUERY[:, :, :2], KEY, VALUE, "3 of 3 tokens passed to the cache, attention from 2"),
        (HANDED, QUERY, KEY[:, :1], VALUE, "keys cached as [2, 5, 8] and attended to as [1, 5, 8]"),
        (HANDED, QUERY, KEY, VALUE[..., :7], "values cached as [2, 5, 8] and attended to as [2, 5, 7]"),
        (HANDED, QUERY, KEY.clone(), VALUE, "attention to keys that its cache did not return"),
        (HANDED, QUERY, KEY, VALUE.clone(), "attention to values that its cache did not return"),
    ],
)
def test_attention_has_to_read_what_the_cache_returned(
    handed: Handed | None, query: Tensor, key: Tensor, value: Tensor, reason: str | None
) -> None:
    """All tokens of the pass, the same storage in the same shape, by whatever view."""
    assert misread(handed, 3, query, key, value) == reason
    module = nn.Module()
    assert misfit(module, {}, False, handed, 3, query, key, value) == reason
    assert misfit(module, {"softcap": 4.0, "dropout": 1.0}, False, handed, 3, query, key, value) == reason
    assert misfit(module, {}, True, handed, 3, query, key, value) == "a second attention call in a pass"
    for name in ("sinks", "position_bias"):
        assert misfit(module, {name: 0.0}, False, handed, 3, query, key, value) == f"attention with {name}"


@pytest.mark.parametrize(
    ("own", "given", "reason"),
    [
        (torch.zeros(4), {"s_aux": torch.zeros(4)}, None),
        (torch.zeros(4), {}, "attention with sinks"),
        (None, {"s_aux": torch.zeros(4)}, "attention with sinks"),
        (torch.zeros(3), {"s_aux": torch.zeros(3)}, "attention with s_aux that is not one number per head"),
        (1.0, {"s_aux": 1.0}, "attention with s_aux that is not one number per head"),
        (None, {"softcap": 0.5}, None),
        (None, {"softcap": 0.0}, "attention with softcap 0.0"),
    ],
)
def test_sinks_are_those_of_the_module_and_a_softcap_is_positive(
    own: Any, given: dict[str, Any], reason: str | None
) -> None:
    """Sinks of a module have to be passed on, one number per query head, and a softcap divides."""
    module: Any = nn.Module()
    module.sinks = own
    assert misfit(module, given, False, HANDED, 3, QUERY, KEY, VALUE) == reason


def causal(tokens: int, columns: int, rows: int = 1) -> Tensor:
    """``[rows, 1, tokens, columns]``, the last tokens of the columns."""
    return torch.ones(rows, 1, tokens, columns, dtype=torch.bool).tril(columns - tokens)


def added(mask: Tensor, unseen: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same as numbers to be added."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, unseen)


LEAST = torch.finfo(torch.float32).min
NOT_CAUSAL = "a mask that is not causal"
VALUES = "a mask with values other than seen and unseen"
AHEAD = causal(3, 5).clone()
AHEAD[0, 0, 1, 4] = True
BLIND = causal(3, 5).clone()
BLIND[0, 0, 2, 0] = False


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (causal(3, 5), None),
        (causal(3, 5, rows=2), None),
        (added(causal(3, 5), LEAST), None),
        (added(causal(3, 5), -torch.inf), None),
        (added(causal(3, 5), LEAST / 2), None),
        (added(causal(3, 5), torch.finfo(torch.float16).min, torch.float16), None),
        (added(causal(3, 5), LEAST / 4), VALUES),
        (added(causal(3, 5), -1e4), VALUES),
        (added(causal(3, 5), LEAST) + 0.5, VALUES),
        (AHEAD, NOT_CAUSAL),
        (BLIND, NOT_CAUSAL),
        (added(AHEAD, LEAST), NOT_CAUSAL),
        (causal(3, 6), "a mask of its own, [1, 1, 3, 6] where [rows, 1, 3, 5] is causal"),
        (causal(2, 5), "a mask of its own, [1, 1, 2, 5] where [rows, 1, 3, 5] is causal"),
        (causal(3, 5).expand(1, 2, 3, 5), "a mask of its own, [1, 2, 3, 5] where [rows, 1, 3, 5] is causal"),
        (causal(3, 5)[0], "a mask of its own, [1, 3, 5] where [rows, 1, 3, 5] is causal"),
    ],
)
def test_a_mask_has_to_be_causal(mask: Tensor, reason: str | None) -> None:
    """Of its shape, of two values, and of what they say; in any form in which models make them."""
    assert strange_mask(nn.Module(), mask, 3, 5, [0, 0]) == reason


def test_no_mask_is_causal_where_the_module_is() -> None:
    """Which it is unless it says otherwise; a single token has none after it."""
    assert strange_mask(nn.Module(), None, 3, 5, []) is None
    module: Any = SimpleNamespace(is_causal=True)
    assert strange_mask(module, None, 3, 5, []) is None
    module.is_causal = False
    assert strange_mask(module, None, 3, 5, []) == "attention to later tokens"
    assert strange_mask(module, None, 1, 5, []) is None


def test_padding_is_hidden_from_all_but_itself() -> None:
    """What a query of padding sees does not matter; a token sees no padding and all before it."""
    mask = causal(3, 5, rows=2).clone()
    assert strange_mask(nn.Module(), mask, 3, 5, [0, 3]) == NOT_CAUSAL
    mask[1, :, :, :3] = False
    assert strange_mask(nn.Module(), mask, 3, 5, [0, 3]) is None
    assert strange_mask(nn.Module(), mask, 3, 5, [0, 2]) == NOT_CAUSAL
    mask[1, :, 0] = torch.tensor([True, False, True, False, True])
    assert strange_mask(nn.Module(), mask, 3, 5, [0, 3]) is None
    mask[1, :, 1, 2] = True
    assert strange_mask(nn.Module(), mask, 3, 5, [0, 3]) == NOT_CAUSAL


SUPPORT = Support("Toy", 3, None, {})


def test_the_first_problem_of_each_layer_is_reported() -> None:
    """Once the pass is over, or at once where attention fails, of which the error is then the cause."""
    problems = Problems(SUPPORT, nn.Linear(1, 1), (2,))
    assert problems.go_on(1, "one", lambda: 5) == 5
    assert problems.go_on(1, "two", lambda: 6) == 6
    expected = SUPPORT.refusal({1: "one"}, (2,))
    assert str(problems.error()) == str(expected)
    cause = KeyError("broken")

    def fail() -> None:
        raise cause

    with pytest.raises(ValueError, match=said(str(SUPPORT.refusal({0: OUTSIDE, 1: "one"}, (2,))))) as refused:
        problems.go_on(0, OUTSIDE, fail)
    assert refused.value.__cause__ is cause


def test_gradient_checkpointing_is_the_problem_where_there_is_some() -> None:
    """It takes the cache from all layers."""
    decoder: Any = nn.Linear(1, 1).train()
    decoder.gradient_checkpointing = True
    problems = Problems(SUPPORT, decoder, ())
    problems.reasons[0] = UNFED
    assert str(problems.error()) == (
        "gradient checkpointing takes the cache from the layers in training, so that nothing would be compressed: turn "
        "it off, or call model.eval()"
    )
    decoder.eval()
    assert str(problems.error()) == str(SUPPORT.refusal({0: UNFED}))


@torch.no_grad()
def test_a_cache_is_released_by_a_pass_that_fails_before_the_decoder() -> None:
    """It serves outside the context as it did before."""
    model = architectures.build("llama")
    cache = PRESS.cache(model.config)
    with PRESS(model):
        model(IDS[:1], **using(cache))
        handle = model.register_forward_pre_hook(stop)
        with pytest.raises(KeyError, match="stop"):
            model(IDS[:1], **using(cache))
        handle.remove()
        assert cache.attached is None
    assert cache.seen == 6


class Bare(nn.Module):
    """A decoder whose configuration does not say whether it uses a cache."""

    config = SimpleNamespace()

    def forward(self, input_ids: Any = None, cache: Any = None, past_key_values: Any = None) -> None:
        """Never called."""


def test_a_configuration_that_does_not_say_uses_a_cache() -> None:
    """As transformers' own do unless told."""
    model = architectures.build("llama")
    attachment = _Attachment(PRESS, model, support.of_model(model))
    given = attachment.before(Bare(), (IDS,), {})
    assert given is not None
    args, kwargs = given
    assert args == ()
    assert isinstance(kwargs[interface.cache_argument(model)], PressedCache)
    assert kwargs["input_ids"] is IDS
    with pytest.raises(ValueError, match=r"^use_cache=False leaves a press nothing to compress, "):
        attachment.before(Bare(), (IDS,), {"use_cache": False})
    for length in (None, 9):
        attachment.running.prompt_length = length
        for cache in ({}, using(DynamicCache(config=model.config))):
            given = attachment.before(Bare(), (IDS,), dict(cache))
            assert given is not None
            assert given[1][interface.cache_argument(model)].ledger.prompt_length == length


def stop(*_: Any) -> None:
    """A hook that fails."""
    raise KeyError("stop")


@torch.no_grad()
def test_a_cache_is_released_by_a_pass_of_the_decoder_alone() -> None:
    """Finished or not."""
    model = architectures.build("llama")
    cache = PRESS.cache(model.config)
    with PRESS(model):
        model.model(IDS[:1], **using(cache))
        assert cache.attached is None
        model.model.layers[0].register_forward_pre_hook(stop)
        with pytest.raises(KeyError, match="stop"):
            model.model(IDS[:1], **using(cache))
        assert cache.attached is None


def with_sinks(model: Any) -> Any:
    """The model, whose layers pass an argument on that a press does not support."""

    def add(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "s_aux": 1.0}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(add, with_kwargs=True)
    return model


@torch.no_grad()
def test_one_error_reports_the_problems_of_all_layers() -> None:
    """Of a pass that is attached, and of one pass over a text."""
    model = with_sinks(architectures.build("llama"))
    sentence = (
        f"LlamaForCausalLM ({interface.VERSION}): a press does not support layers 0-2 (attention with sinks); that "
        "leaves no layer to compress, so no press supports this model: measure it without a press (press=None, "
        "method='stepwise' or 'plain')"
    )
    with pytest.raises(ValueError, match=said(sentence)), PRESS(model):
        model(IDS)
    with pytest.raises(ValueError, match=said(sentence)):
        perplexity(model, IDS, PRESS, 2)


def carried(model: Any) -> _Attachment:
    """The attachment of the press that a model carries."""
    found: _Attachment = model.__dict__["generate"].attachment
    return found


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({"inputs_embeds": torch.ones(2, 7, 4)}, 7),
        ({"input_ids": torch.ones(2, 6)}, 6),
        ({"inputs": torch.ones(2, 5)}, 5),
        ({"inputs": torch.ones(5)}, None),
        ({}, None),
    ],
)
def test_the_prompt_of_generate_is_its_input(given: dict[str, Any], length: int | None) -> None:
    """However it is passed, and only while ``generate`` runs."""
    model, lengths = architectures.build("llama"), []
    with attach(PRESS, model):
        attachment = carried(model)
        attachment.generate(lambda **_: lengths.append(attachment.running.prompt_length), **given)
        assert attachment.running.prompt_length is None
    assert lengths == [length]


def test_only_the_mask_of_the_whole_model_that_has_two_dimensions_is_noted() -> None:
    """It is released with the pass."""
    model, mask = architectures.build("llama"), torch.ones(1, 4)
    with attach(PRESS, model):
        attachment = carried(model)
        for given, noted in ((mask, mask), (mask[None], None), ("causal", None)):
            attachment.enter(model, (), {"attention_mask": given})
            assert attachment.running.mask is noted
        attachment.enter(model, (), {"attention_mask": mask})
        attachment.leave(model, (), {}, None)
        assert attachment.running.mask is None


def test_on_an_accelerator_the_mask_of_the_first_pass_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of later passes, whose values would have to be waited for; on the CPU all are."""
    monkeypatch.setattr("pressgauge.attach.strange_mask", lambda *_: "strange")
    cache: Any = SimpleNamespace(ledger=SimpleNamespace(columns=6, padding=[]))
    strange: Any = _Attachment._strange
    cases = (("meta", 6, "strange"), ("meta", 2, None), ("cpu", 6, "strange"), ("cpu", 2, "strange"))
    for device, tokens, reason in cases:
        assert strange(None, None, torch.empty(1, device=device), tokens, cache) == reason
    assert strange(None, None, None, 2, cache) == "strange"


def test_a_body_may_remove_generate() -> None:
    """The model has its own again."""
    model = architectures.build("llama")
    with attach(PRESS, model):
        del model.generate
    assert "generate" not in model.__dict__


@torch.no_grad()
def test_rows_of_a_batch_share_a_mask_under_eager_attention() -> None:
    """Where none of them is padded; the logits are those of rows alone."""
    model, ids = architectures.attending_by("eager"), architectures.tokens(3, 9)

    def logits(rows: Tensor) -> Tensor:
        cache = PRESS.cache(model.config)
        with attach(PRESS, model):
            return torch.cat([model(part, **using(cache)).logits for part in rows.split([8, 1], dim=1)], dim=1)

    alone = torch.cat([logits(row) for row in ids.split(1)])
    torch.testing.assert_close(logits(ids), alone)


@pytest.mark.parametrize("method", ["onepass", "stepwise"])
def test_attention_scores_without_a_scaling_use_that_of_the_head_dimension(method: Any) -> None:
    """As attention itself does."""
    press, ids = TOVAPress(0.5, prune_after=4), architectures.tokens(1, 12)
    model = architectures.build("llama")
    expected = perplexity(model, ids, press, 6, method=method).nll
    for layer in model.model.layers:
        layer.self_attn.scaling = None
    assert torch.equal(perplexity(model, ids, press, 6, method=method).nll, expected)


def test_a_pass_that_fails_leaves_nothing_handed() -> None:
    """A layer that passed entries to the cache and did not attend to them starts the next pass as any other."""
    model = architectures.build("llama")
    cache = PRESS.cache(model.config)

    def forward(hidden_states: Tensor, **given: Any) -> tuple[Tensor, None]:
        own = given["past_key_values"] if given.get("past_key_values") is not None else given["cache"]
        entries = torch.zeros(1, model.config.num_key_value_heads, hidden_states.shape[1], 8)
        own.update(entries, entries, 1)
        return hidden_states, None

    model.model.layers[1].self_attn.forward = forward
    with attach(PRESS, model), pytest.raises(ValueError, match="layer 1"):
        model(architectures.tokens(1, 6), **using(cache))
    assert [layer.handed for layer in cache.pressed] == [None] * len(cache.pressed)


def test_numbers_below_half_of_the_least_one_hide() -> None:
    """Smaller ones do not."""
    mask = torch.zeros(1, 1, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), torch.finfo(torch.float32).min)
    assert strange_mask(nn.Module(), mask, 3, 3, []) is None
    assert strange_mask(nn.Module(), mask * 0.4, 3, 3, []) is not None


@pytest.mark.parametrize(
    ("press", "passes"),
    [(SnapKVPress(0.5, prune_after=4, recent=2), 1), (H2OPress(0.5, prune_after=4), 3)],
    ids=["after the prompt", "always"],
)
def test_queries_are_expanded_only_while_they_are_scored(
    press: Press, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of latents take a product with a large matrix in each layer, which no later pass of ``prefill`` needs."""
    own, calls = latents.scored_queries, []

    def noted(*given: Any) -> Any:
        calls.append(1)
        return own(*given)

    monkeypatch.setattr(latents, "scored_queries", noted)
    model = architectures.shared("llama")
    cache = PressedCache(press, model.config)
    with torch.no_grad(), press(model):
        for tokens in (IDS, IDS[:, :1], IDS[:, :1]):
            model(tokens, **using(cache))
    assert len(calls) == passes * architectures.LAYERS
    assert cache.evictions
