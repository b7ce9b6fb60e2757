"""Rule 14: perplexity in one pass equals decoding with the compressed cache.

These properties are about the package's own measurement, which replays its presses, not about a compressor under test.
"""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conformance.ours import SCORED_BY_ATTENTION, SUBJECTS
from pressgauge import KnormPress, Perplexity, Press, RandomPress, StreamingLLMPress, perplexity, replay
from pressgauge.attach import attach
from pressgauge.conformance import architectures
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.oracle import NEVER
from pressgauge.conformance.strategies import options
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import CACHE
from pressgauge.conventions.state import fingerprint
from pressgauge.likelihood import Method
from support.query_press import QueryPress
from support.small_config import SMALL

TOLERANCE = 1e-9
"""Nats per token, between two computations of the same NLL in float64."""


def assert_same(onepass: Perplexity, stepwise: Perplexity, tolerance: float = TOLERANCE) -> None:
    """Check that results are equal, NLL within the tolerance and the rest exactly."""
    torch.testing.assert_close(onepass.nll, stepwise.nll, rtol=0, atol=tolerance, equal_nan=True)
    assert torch.equal(onepass.hits, stepwise.hits)
    assert len(onepass.evicted_at) == len(stepwise.evicted_at)
    assert all(map(torch.equal, onepass.evicted_at, stepwise.evicted_at))
    assert torch.equal(onepass.affected, stepwise.affected)
    assert (onepass.evictions, onepass.held) == (stepwise.evictions, stepwise.held)
    assert (onepass.compressing, onepass.vacuous) == (stepwise.compressing, stepwise.vacuous)
    # The storage of the cache may be 2 % larger than its entries.
    assert onepass.kv_bytes <= stepwise.kv_bytes <= onepass.kv_bytes * 1.02


def both(model: architectures.Model, ids: torch.Tensor, press: Press | None, prompt: int = 1, **given: Any) -> Any:
    """Results of one pass and of decoding."""
    return [perplexity(model, ids, press, prompt, method, **given) for method in ("onepass", "stepwise")]


# One pass equals stepwise


@dataclass(frozen=True)
class Case:
    """A press and the lengths of the rows that it is measured on."""

    press: Press
    lengths: list[int]
    prompt: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any press under any schedule, on up to three padded rows; a prompt of one token, some, or all except one."""
    subject: Subject = draw(st.sampled_from([*SUBJECTS, *SCORED_BY_ATTENTION]))
    # The first row is long enough to exercise every rule; the others may be empty.
    lengths = [draw(st.integers(2, 28)), *draw(st.lists(st.integers(0, 28), max_size=2))]
    columns = max(lengths)
    prompt = draw(st.one_of(st.integers(1, columns - 1), st.sampled_from([1, columns - 1])))
    chosen = draw(options(subject.schedule))
    if not chosen.get("recent", 1):
        del chosen["recent"]  # SnapKVPress has to have some, and says how many
    if subject.schedule == "prefill":
        chosen["prune_after"] = min(chosen["prune_after"], prompt - 1)  # more would be refused
    return Case(subject(**chosen), lengths, prompt)


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
@settings(max_examples=16)
@given(case=cases())
def test_one_pass_equals_decoding(architecture: str, case: Case) -> None:
    """One pass has the NLL, hits, evictions, affected tokens and held entries of decoding, for every press and
    option."""
    ids, mask = architectures.padded(case.lengths)
    assert_same(*both(architectures.shared(architecture), ids, case.press, case.prompt, attention_mask=mask))


def test_every_press_in_one_pass_equals_decoding(subject: Subject) -> None:
    """One pass equals decoding for every press and schedule, with evictions from rows with and without padding."""
    ids, mask = architectures.padded([28, 1, 21, 12])
    press = subject(0.4, prune_after=4, recent=1, skip_layers=(1,))
    onepass, stepwise = both(architectures.shared("llama"), ids, press, 14, attention_mask=mask)
    for table in (onepass.evicted_at[0], onepass.evicted_at[2]):
        evicted = ((table > 0) & (table < NEVER)).flatten(1).any(dim=1).tolist()
        # ``prefill`` acts at the end of the prompt: on 14 tokens, none, 7 and none.
        assert evicted == [True, False, True, subject.schedule != "prefill"]
    assert_same(onepass, stepwise)


LONG: dict[str, tuple[str, Press, int]] = {
    "llama": ("llama", KnormPress(0.4, prune_after=50, recent=3), 250),
    "neox": ("neox", RandomPress(0.3, prune_after=20, schedule="step", interval=7), 330),
}


@pytest.mark.parametrize(("architecture", "press", "prompt"), LONG.values(), ids=LONG)
def test_a_text_of_several_blocks_equals_decoding(architecture: str, press: Press, prompt: int) -> None:
    """One pass equals decoding over several blocks of 256 queries, with keys visible to all or part of a block."""
    model = architectures.build(architecture, num_hidden_layers=2, max_position_embeddings=600)
    onepass, stepwise = both(model, architectures.tokens(1, 600), press, prompt)
    assert_same(onepass, stepwise)
    assert onepass.affected_tokens >= 256 + 1, "this text is to meet more than one block"


@pytest.mark.parametrize("method", ["onepass", "stepwise"])
@pytest.mark.parametrize(("prune_after", "refused"), [(6, False), (7, True), (9, True)])
def test_prefill_that_can_never_act_is_refused_by_both_methods(prune_after: int, refused: bool, method: Any) -> None:
    """``prefill`` is refused if no row has more than P tokens in its prompt, without padding."""
    ids, mask = architectures.padded([12, 10])
    ids, mask = (torch.nn.functional.pad(tensor, (2, 0)) for tensor in (ids, mask))
    press = KnormPress(0.5, prune_after=prune_after, schedule="prefill")
    sentence = f"never with a prompt of 7 tokens and prune_after={prune_after}"
    with pytest.raises(ValueError, match=sentence) if refused else nullcontext():
        assert perplexity(architectures.shared("llama"), ids, press, 9, method, attention_mask=mask).evictions


# Layers and implementations


def test_windows_in_every_layer_are_left_unchanged() -> None:
    """With all layers of a Mistral skipped, nothing is evicted, and each layer keeps its window."""
    model = architectures.build("mistral", sliding_window=16)
    onepass, stepwise = both(model, architectures.tokens(2, 40), KnormPress(0.5, prune_after=4, skip_layers=(0, 1, 2)))
    assert_same(onepass, stepwise)
    assert (onepass.evictions, onepass.kv_bytes) == (0, 2 * 2 * 3 * 16 * (8 + 8) * 8)


@pytest.mark.parametrize("press", [None, KnormPress(0.5, prune_after=4, skip_layers=(2,))], ids=["none", "knorm"])
def test_windows_in_some_layers_are_left_unchanged(press: Press | None) -> None:
    """A window of 8 in the last layer of a Qwen2 is unchanged, and the other layers evict."""
    model = architectures.build(
        "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2, layer_types=None
    )
    ids, mask = architectures.padded([30, 5, 30, 17])
    onepass, stepwise = both(model, ids, press, 3, attention_mask=mask)
    assert_same(onepass, stepwise)
    assert bool(onepass.evictions) == (press is not None)


@pytest.mark.parametrize(
    "press", [None, KnormPress(0.5, prune_after=4, skip_layers=architectures.LINEAR)], ids=["none", "knorm"]
)
def test_linear_attention_in_some_layers_is_left_unchanged(press: Press | None) -> None:
    """Layers of linear attention of a Qwen3-Next hold no entries, and keep their place in every list."""
    model = architectures.hybrid()
    onepass, stepwise = both(model, architectures.tokens(2, 40), press, 5)
    # The recurrence of its linear layers is in float32 by both methods.
    assert_same(onepass, stepwise, tolerance=1e-3)
    assert onepass.held == (0, 0, 0, 20 if press else 40)
    assert [int((table < 50).sum()) for table in onepass.evicted_at] == ([0, 0, 0, 80] if press else [])


@pytest.mark.parametrize(
    "press",
    [RandomPress(0.4, prune_after=5), StreamingLLMPress(0.6, prune_after=5, schedule="step", skip_layers=(0,))],
    ids=["random", "streaming-llm"],
)
def test_eager_attention_in_one_pass_is_close_to_decoding(press: Press) -> None:
    """One pass is close to decoding with eager attention, whose softmax is in float32.

    Keys differ too, so the presses do not depend on them.
    """
    model = architectures.build("llama")
    model.set_attn_implementation("eager")
    onepass, stepwise = both(model, architectures.tokens(2, 26), press, 4)
    assert_same(onepass, stepwise, tolerance=1e-4)
    assert onepass.evictions


@pytest.mark.parametrize("architecture", ["llama", "neox"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 0.5)], ids=str)
def test_lower_precision_is_near_an_oracle_with_the_same_evictions(
    architecture: str, dtype: torch.dtype, tolerance: float, device: torch.device
) -> None:
    """Below float64, one pass is close to the oracle with the ``evicted_at`` of the same run."""
    model = architectures.cast(architecture, dtype, device)
    ids, mask = (tensor.to(device) for tensor in architectures.padded([60, 33]))
    result = perplexity(model, ids, KnormPress(0.5, prune_after=6), 5, attention_mask=mask)
    tables = [table.to(device) for table in result.evicted_at]
    logits = masked_logits(model, ids, tables, mask).double().log_softmax(dim=-1)
    expected = -logits[:, 4:-1].gather(2, ids[:, 5:, None])[..., 0].cpu()
    scored = ~result.nll.isnan()
    assert result.scored_tokens == 55 + 32
    assert (result.nll - expected)[scored].abs().max() < tolerance
    assert result.affected_tokens > 60


# Defaults


def test_one_pass_is_the_default_and_runs_the_model_once() -> None:
    """One pass is the default, and runs the model once for rows of equal length."""
    model = architectures.build("llama")
    passes = []
    model.register_forward_hook(lambda module, args, output: passes.append(output.logits.shape[:2]))
    perplexity(model, architectures.tokens(2, 24), KnormPress(0.5, prune_after=4))
    assert passes == [(2, 24)]
    assert inspect.signature(perplexity).parameters["method"].default == "onepass"


# Leaks and refusals


class InterruptedPassError(Exception):
    """Raised in the middle of a pass."""


class FailingPress(KnormPress):
    """A press that fails to score the keys of layer 1."""

    def score(self, keys: torch.Tensor, **given: Any) -> torch.Tensor:
        if given["layer"] == 1:
            raise InterruptedPassError
        return super().score(keys, **given)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [KnormPress, FailingPress])
def test_one_pass_leaves_nothing_behind(kind: type[KnormPress], implementation: str) -> None:
    """Rule 10: after one pass, or an exception in it, the model and transformers' registries are unchanged."""
    model = architectures.build("llama")
    model.set_attn_implementation(implementation)
    before = fingerprint(model), sorted(ALL_ATTENTION_FUNCTIONS), sorted(ALL_MASK_ATTENTION_FUNCTIONS)
    ids = architectures.tokens(1, 12)
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    generated = model.generate(ids, **asked)
    press = kind(0.5, prune_after=3)
    if kind is FailingPress:
        with pytest.raises(InterruptedPassError):
            perplexity(model, ids, press)
    else:
        assert perplexity(model, ids, press).evictions
    assert (fingerprint(model), sorted(ALL_ATTENTION_FUNCTIONS), sorted(ALL_MASK_ATTENTION_FUNCTIONS)) == before
    assert model.config._attn_implementation == implementation
    assert torch.equal(model.generate(ids, **asked), generated)


def with_sinks() -> architectures.Model:
    """A GPT-OSS, which has attention sinks."""
    model = GptOssForCausalLM(GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1))
    model.set_attn_implementation("eager")
    return model


def with_an_argument() -> architectures.Model:
    """A Llama whose layer 1 passes sinks of each token to its attention function."""
    model = architectures.build("llama")
    attention = model.model.layers[1].self_attn
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "sinks": 30.0}), with_kwargs=True
    )
    return model


REFUSED: dict[str, tuple[Callable[[], architectures.Model], KnormPress, str]] = {
    "a layer out of range": (
        lambda: architectures.shared("llama"),
        KnormPress(0.5, skip_layers=(0, 3)),
        "skip_layers names layer 3, but the model has 3 layers",
    ),
    "layers without keys": (
        architectures.hybrid,
        KnormPress(0.5, skip_layers=(0,)),
        r"layers 1-2 \(linear attention, which caches no keys\); pass skip_layers=\(0, 1, 2\)",
    ),
    "an argument of the call": (
        with_an_argument,
        KnormPress(0.5, prune_after=2),
        r"layer 1 \(attention with sinks\); pass skip_layers=\(1,\), which leaves layers 0, 2 to compress",
    ),
}


@pytest.mark.parametrize(("build", "press", "sentence"), REFUSED.values(), ids=REFUSED)
def test_one_pass_refuses_what_an_attached_press_refuses(
    build: Callable[[], architectures.Model], press: KnormPress, sentence: str
) -> None:
    """Rule 12: one pass and stepwise are refused with the message of an attached press."""
    model = build()
    ids = torch.full((1, 8), 5)
    with pytest.raises(ValueError, match=sentence) as attached, torch.no_grad(), attach(press, model):
        model(ids)
    for method in ("onepass", "stepwise"):
        with pytest.raises(ValueError, match=sentence) as refused:
            perplexity(model, ids, press, 1, method)
        assert str(refused.value) == str(attached.value)


def test_one_pass_is_refused_on_a_model_that_carries_a_press() -> None:
    """One pass is refused on a model with an attached press."""
    model = architectures.shared("llama")
    with KnormPress(0.5)(model), pytest.raises(ValueError, match="already carries a press"):
        perplexity(model, architectures.tokens(1, 8), KnormPress(0.5))


def test_an_argument_of_a_skipped_layer_is_passed_on() -> None:
    """Arguments of skipped layers are passed on: with sinks, both methods equal the plain model."""
    model, ids = with_sinks(), torch.arange(1, 16)[None]
    onepass, stepwise = both(model, ids, KnormPress(0.5, prune_after=4, skip_layers=(0, 1)))
    assert_same(onepass, stepwise, tolerance=1e-4)
    torch.testing.assert_close(onepass.nll, perplexity(model, ids, method="plain").nll, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["onepass", "stepwise"])
@pytest.mark.parametrize("layer", range(architectures.LAYERS))
def test_a_layer_that_could_not_be_masked_is_refused(layer: int, method: Method) -> None:
    """A layer whose attention cannot be masked is refused."""
    model = architectures.build("llama")
    attention = model.model.layers[layer].self_attn

    def own_way(hidden_states: torch.Tensor, **given: Any) -> tuple[torch.Tensor, None]:
        if given.get(CACHE) is not None:
            states = hidden_states.reshape(*hidden_states.shape[:2], 6, 8)[:, :, :2].transpose(1, 2)
            given[CACHE].update(states, states, layer)
        return hidden_states, None

    attention.forward = own_way
    ids = architectures.tokens(1, 20)
    refusal = (
        rf"layer {layer} \(no module of its own that attends through .* interface\); pass skip_layers=\({layer},\),"
    )
    with pytest.raises(ValueError, match=refusal):
        perplexity(model, ids, KnormPress(0.5, prune_after=4), 1, method)
    assert perplexity(model, ids, KnormPress(0.5, prune_after=4, skip_layers=(layer,)), 1, method).evictions
    assert perplexity(model, ids, None, 1, method).scored_tokens == 19


def test_a_model_outside_the_interface_is_refused_with_and_without_a_press() -> None:
    """A model outside transformers' attention interface is refused, with a press and without."""
    model = BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2)).double()
    ids = architectures.tokens(1, 12)
    with pytest.raises(ValueError, match=r"BloomForCausalLM.* adds ALiBi biases by the slot .*method='stepwise' or"):
        perplexity(model, ids, KnormPress(0.5))
    with pytest.raises(
        ValueError, match=r"BloomForCausalLM.* does not go through .* interface: .*method='stepwise' or"
    ):
        perplexity(model, ids)
    assert perplexity(model, ids, method="stepwise").held == (12,)
    assert perplexity(model, ids, method="plain").scored_tokens == 11


@pytest.mark.parametrize("written", [0.1, np.float32(0.1), Decimal("0.10000000149011612")], ids=repr)
def test_equal_ratios_written_differently_are_distinguished(written: Any) -> None:
    """Rule 3: targets follow the decimal value as written, even after an equal press."""
    keys = torch.randn(1, 1, 100, 4)
    for ratio in (float(np.float32(0.1)), written):
        press = KnormPress(ratio, prune_after=0)
        held = int((replay(press, keys, [1] * 100) == NEVER).sum())
        assert held == press.target(seen=100, held=100)


def test_a_press_with_a_list_can_be_replayed() -> None:
    """Fields of a user's press need not be hashable."""

    @dataclass(frozen=True)
    class Listed(KnormPress):
        weights: list[float] = field(default_factory=list)

    assert perplexity(architectures.shared("llama"), architectures.tokens(1, 20), Listed(0.5, prune_after=4)).evictions


def test_a_press_that_needs_queries_gets_them_in_one_pass() -> None:
    """A press that needs queries receives them in one pass."""
    model, ids = architectures.shared("llama"), architectures.tokens(1, 20)
    press = QueryPress(0.5, prune_after=4)
    one, other = (perplexity(model, ids, press, method=method) for method in ("onepass", "stepwise"))
    assert one.evictions == other.evictions > 0
    torch.testing.assert_close(one.nll, other.nll, rtol=0, atol=1e-9)
