"""Perplexity, in the cases that only one line of code decides."""

import re
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import KnormPress, likelihood, perplexity
from pressgauge.conformance import architectures
from pressgauge.likelihood import Method
from pressgauge.models import interface
from pressgauge.onepass import OnePass

PRESS = KnormPress(0.5, prune_after=4)


def said(sentence: str) -> str:
    """A pattern for the whole of a sentence."""
    return f"^{re.escape(sentence)}$"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (ValueError, {"method": "none"}, "method must be one of onepass, stepwise, plain, got 'none'"),
        (TypeError, {"prompt": 1.5}, "prompt must be a whole number, got 1.5"),
        (ValueError, {"prompt": 0}, "prompt must be at least 1 and leave one of the 6 tokens to score, got 0"),
        (ValueError, {"prompt": 6}, "prompt must be at least 1 and leave one of the 6 tokens to score, got 6"),
        (
            ValueError,
            {"attention_mask": torch.tensor([[0] * 5 + [1]] * 2)},
            "no token after the first 1 has a token before it: the rows are nothing but padding",
        ),
        (
            ValueError,
            {"press": KnormPress(0.5, prune_after=3, schedule="prefill"), "prompt": 3},
            "schedule 'prefill' acts once, after the prompt, and never with a prompt of 3 tokens and prune_after=3: "
            "give a longer prompt or a smaller prune_after",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(kind: type[Exception], changes: dict[str, Any], words: str) -> None:
    """In one sentence, with the argument, the rule and what was given."""
    given = {"press": PRESS, "prompt": 1, **changes}
    with pytest.raises(kind, match=said(words)):
        perplexity(architectures.shared("llama"), architectures.tokens(2, 6), **given)


def test_the_longest_row_has_to_fit_the_context() -> None:
    """Its tokens count, and its padding does not."""
    model = architectures.build("llama", max_position_embeddings=8)
    ids, mask = architectures.padded([9, 8])
    perplexity(model, ids[1:], PRESS, 3, attention_mask=mask[1:])
    with pytest.raises(ValueError, match=said("input_ids must fit the model's context of 8 tokens, got 9: give fewer")):
        perplexity(model, ids, PRESS, 3, attention_mask=mask)


FED = [[3, 1, 4], [1, 5, 9]]


@pytest.mark.parametrize(
    ("dtype", "change", "refused"),
    [
        (torch.float64, 0.0, False),
        (torch.float64, 0.9e-4, False),
        (torch.float64, 1.2e-4, True),
        (torch.float32, 0.9e-4, False),
        (torch.float32, 1.2e-4, True),
        (torch.bfloat16, 0.25, False),
        (torch.bfloat16, 0.255, True),
        (torch.bfloat16, 0.3, True),
        (torch.float64, float("nan"), True),
    ],
)
def test_layers_without_keys_are_fed_singly_once(
    dtype: torch.dtype, change: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass is refused if their logits then differ by more than rounding, relative to the largest logit; a NaN is a
    difference."""
    model = architectures.hybrid()
    logits = torch.tensor([[[8.0, -0.5], [0.25, 1.0], [2.0, -16.0]]], dtype=dtype)
    fed: list[tuple[list[int], Any]] = []

    def feed(given: Any, ids: Tensor, cache: dict[str, Any]) -> Tensor:
        assert given is model
        fed.append((ids[0].tolist(), cache))
        if not cache:
            return logits
        token = len(fed) - 1
        found = logits[:, token : token + 1].clone()
        if token == 1:
            found[0, 0, 1] -= 16 * change
        return found

    monkeypatch.setattr(interface, "feed", feed)
    ids = torch.tensor([[3, 1, 4]])
    if refused:
        size = "nan" if change != change else r"[123]\.\d" + "e-0[14]"
        sentence = (
            rf"^{type(model).__name__} \({re.escape(interface.VERSION)}\) computes other logits for tokens fed singly, "
            rf"off by {size} of their size, so that one pass over a text is not what decoding computes: use "
            "method='stepwise'$"
        )
        with pytest.raises(ValueError, match=sentence):
            likelihood._check_recurrence(model, ids)
    else:
        likelihood._check_recurrence(model, ids)
    assert [tokens for tokens, _ in fed] == [[3], [1], [4], [3, 1, 4]]
    caches = [cache for _, cache in fed]
    assert caches[3] == {}
    (cache,) = caches[0].values()
    assert type(cache) is DynamicCache
    assert list(caches[0]) == [interface.cache_argument(model)]
    assert len(cache.layers) == model.config.num_hidden_layers
    assert all(other is caches[0] for other in caches[1:3])


def test_layers_with_keys_are_not_fed_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute the same in any number of passes."""
    monkeypatch.setattr(interface, "feed", None)
    likelihood._check_recurrence(architectures.shared("llama"), torch.tensor([[3, 1, 4]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_those_of_the_softmax_written_out(dtype: torch.dtype) -> None:
    """In blocks, of which there are several here; of equal logits the first is the prediction."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 150, 11, generator=generator, dtype=torch.float64).mul(4).round().to(dtype)
    targets = torch.randint(11, (2, 150), generator=generator)
    nll, hits = likelihood.score(logits, targets)
    assert (nll.dtype, hits.dtype) == (torch.float64, torch.bool)
    for row in range(2):
        for column in range(150):
            own = logits[row, column].double().tolist()
            target = int(targets[row, column])
            total = torch.tensor(own, dtype=torch.float64).exp().sum().log()
            assert abs(float(nll[row, column]) - float(total - own[target])) < (
                1e-12 if dtype == torch.float64 else 1e-5
            )
            assert bool(hits[row, column]) is (own.index(max(own)) == target)


def test_tokens_are_affected_from_the_first_eviction_of_their_row_on() -> None:
    """Whichever layer it is in; padding is no eviction."""
    never = torch.iinfo(torch.int32).max
    tables = (
        torch.tensor([[[never] * 6], [[0, 5, never, never, never, never]]], dtype=torch.int32),
        torch.tensor([[[never, 4, never, never, never, never]], [[0, never, 4, never, never, never]]]),
    )
    scored = torch.ones(2, 4, dtype=torch.bool)
    scored[1, 3] = False
    # Token i of the prompt's successors is scored by query i - 1; what 4 columns have evicted, query 4 does not see.
    assert likelihood._affected(tables, scored, 2).tolist() == [
        [False, False, False, True],
        [False, False, False, False],
    ]
    scored[1, 3] = True
    assert likelihood._affected(tables, scored, 2).tolist() == [[False, False, False, True]] * 2
    assert likelihood._affected(tables, scored, 3).tolist() == [[False, False, True, True]] * 2
    assert not likelihood._affected((), scored, 2).any()


@pytest.mark.parametrize(
    "press", [None, KnormPress(0.5, prune_after=50), KnormPress(0.5, prune_after=50, skip_layers=(0,))]
)
def test_a_scale_of_the_models_own_is_used_where_nothing_is_evicted(press: Any) -> None:
    """In one pass as in a plain one."""
    model = architectures.build("llama")
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.5
    ids = architectures.tokens(1, 12)
    expected = perplexity(model, ids, None, 3, "plain")
    assert torch.equal(perplexity(model, ids, press, 3).nll, expected.nll)
    assert not torch.equal(expected.nll, perplexity(architectures.shared("llama"), ids, None, 3, "plain").nll)


@dataclass(frozen=True)
class Recording(KnormPress):
    """A press that notes the keys that it is asked about."""

    fixed_scores: ClassVar[bool] = False
    asked: ClassVar[list[Tensor]] = []

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Any = None) -> Tensor:
        self.asked.append(torch.cat([positions[..., None].to(keys), keys], dim=-1))
        return super().score(keys, positions=positions, layer=layer)


def test_padding_is_before_the_entries_of_a_row_and_is_zero() -> None:
    """A press is asked about the same keys in one pass as in decoding, whose padding slots are columns of zeros."""
    ids, mask = architectures.padded([9, 6])
    asked = {}
    methods: list[Method] = ["onepass", "stepwise"]
    for method in methods:
        Recording.asked.clear()
        perplexity(architectures.shared("llama"), ids, Recording(0.5, prune_after=4), 5, method, attention_mask=mask)
        asked[method] = [keys.clone() for keys in Recording.asked]
    decoded = asked["stepwise"]
    assert {keys.shape[-1] for keys in asked["onepass"]} == {1 + 8}
    for keys in decoded + asked["onepass"]:
        padding = keys[..., 0] < 0
        assert not keys[..., 1:][padding].any()
    # The row without padding is measured first.
    torch.testing.assert_close(asked["onepass"][0][0], decoded[0][0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_counts_passes_or_layers(progress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown where it is asked for, and gone when all is done; rows of two lengths are two passes of all layers."""
    shown: list[Any] = []

    def track(steps: Any, *described: Any, **settings: Any) -> Any:
        shown.append((list(steps), described, settings))
        return steps

    class Bar:
        """A bar that counts."""

        def __init__(self, **settings: Any) -> None:
            shown.append(settings)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            shown.append("gone")

        def add_task(self, description: str, total: int) -> str:
            """A task, whose name is given to ``advance``."""
            shown.append((description, total))
            return "task"

        def advance(self, task: str) -> None:
            """One more."""
            shown.append(task)

    monkeypatch.setattr(likelihood, "track", track)
    monkeypatch.setattr(likelihood, "Progress", Bar)
    ids, mask = architectures.padded([8, 6])
    model = architectures.shared("llama")
    asked: dict[str, Any] = {"progress": True} if progress else {}
    settings = {"disable": not progress, "transient": True}
    perplexity(model, ids, PRESS, 5, "stepwise", attention_mask=mask, **asked)
    assert shown == [([5, 1, 1, 1], ("scoring",), settings)]
    shown.clear()
    perplexity(model, ids, PRESS, 5, attention_mask=mask, **asked)
    assert shown == [settings, ("scoring", 6), *["task"] * 6, "gone"]


def test_rows_of_one_length_share_passes_of_so_many_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one row a pass; the result does not depend on it."""
    model, ids = architectures.shared("llama"), architectures.tokens(5, 10)
    expected = perplexity(model, ids, PRESS, 4)
    rows: list[int] = []
    own = OnePass.logits

    def logits(self: Any, model: Any, ids: Tensor) -> Tensor:
        rows.append(len(ids))
        return own(self, model, ids)

    monkeypatch.setattr(OnePass, "logits", logits)
    one = 10 * architectures.VOCABULARY
    for most, shares in ((5 * one, [5]), (5 * one - 1, [4, 1]), (2 * one, [2, 2, 1]), (one - 1, [1] * 5)):
        rows.clear()
        monkeypatch.setattr(likelihood, "_MOST_LOGITS", most)
        found = perplexity(model, ids, PRESS, 4)
        assert rows == shares
        torch.testing.assert_close(found.nll, expected.nll, rtol=0, atol=1e-12)
        assert (found.held, found.kv_bytes, found.evictions) == (expected.held, expected.kv_bytes, expected.evictions)


@pytest.mark.parametrize("press", [None, KnormPress(0.5, prune_after=4, skip_layers="unprunable")])
def test_layers_without_keys_hold_nothing(press: Any) -> None:
    """In one pass as in decoding, in which they have no entries either."""
    model, ids = architectures.hybrid(), architectures.tokens(1, 12)
    one, stepwise = perplexity(model, ids, press, 5), perplexity(model, ids, press, 5, "stepwise")
    assert one.held == stepwise.held
    assert [one.held[layer] for layer in architectures.LINEAR] == [0] * len(architectures.LINEAR)
    assert max(one.held) == (6 if press else 12)
    assert one.evictions == stepwise.evictions


def test_sizes_are_those_of_the_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the configuration of a model for images has inside."""
    model, ids = architectures.shared("llama"), architectures.tokens(1, 12)
    asked: list[Any] = []
    own = type(model.config).get_text_config

    def get_text_config(config: Any, decoder: Any = None, encoder: Any = None) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("pressgauge."):
            asked.append((decoder, encoder))
        return own(config, decoder=decoder, encoder=encoder)

    monkeypatch.setattr(type(model.config), "get_text_config", get_text_config)
    perplexity(model, ids, PRESS, 5)
    assert set(asked) == {(True, None)}


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("failing", [1, 3])
@pytest.mark.parametrize("error", [KeyError("stop"), torch.OutOfMemoryError("full")])
def test_a_model_that_does_not_go_on_with_its_cache_is_refused(
    error: Exception, failing: int, outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it attends in a way of its own and fails in a later pass; any other error is its own."""
    model, ids = architectures.shared("llama"), architectures.tokens(1, 8)
    own, calls = interface.feed, []

    def feed(*given: Any) -> Tensor:
        calls.append(given)
        if len(calls) == failing:
            raise error
        return own(*given)

    monkeypatch.setattr(interface, "feed", feed)
    monkeypatch.setattr(interface, "goes_through_interface", lambda kind: not outside)
    if outside and failing > 1 and isinstance(error, KeyError):
        sentence = (
            f"LlamaForCausalLM ({interface.VERSION}) does not continue with the cache that it was given (KeyError: "
            "'stop'): measure it without a press and without a cache (press=None, method='plain')"
        )
        with pytest.raises(ValueError, match=said(sentence)) as refused:
            perplexity(model, ids, None, 4, "stepwise")
        assert refused.value.__cause__ is error
    else:
        with pytest.raises(type(error)) as raised:
            perplexity(model, ids, None, 4, "stepwise")
        assert raised.value is error
    assert len(calls) == failing
