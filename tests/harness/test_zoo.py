"""A sample of the zoo, and tests of the zoo: injected faults are found with the correct verdict."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache
from transformers.models.llama import modeling_llama

from pressgauge import KnormPress, PressedCache
from pressgauge.conformance.versions import CACHE
from pressgauge.models.support import Support
from support.zoo import examine, oracle, reasons, specimens
from support.zoo.examine import BAD, BY_CACHE, CRASH, FALSE, LENGTH, NOT_BUILT, PATTERNS, REFUSED, RIGHT, WRONG, Verdict
from tools.zoo.page import KINDS, page

SAMPLE: dict[str, tuple[str, str]] = {
    "llama": (RIGHT, "grouped queries"),
    "gpt2": (RIGHT, "learned positions"),
    "roberta": (RIGHT, "positions that begin behind the padding token's"),
    "gemma3_text": (RIGHT, "windows in some layers"),
    "gemma3": (RIGHT, "a wrapper around a text model, with images in mind"),
    "gemma3n_text, shared keys": (RIGHT, "layers that borrow keys"),
    "gemma4_text, shared keys": (RIGHT, "layers that borrow keys, as wide as those of a window or not"),
    "qwen3_next": (RIGHT, "layers without keys"),
    "gpt_neo": (REFUSED, "attention code of its own, with windows"),
    "bloom": (REFUSED, "ALiBi"),
    "deepseek_v3": (RIGHT, "latents that are expanded after the cache"),
    "gpt_oss": (RIGHT, "attention sinks"),
    "gemma2": (RIGHT, "a softcap"),
    "deepseek_v32": (REFUSED, "an indexer that selects keys"),
    "diffllama": (REFUSED, "values of several heads joined"),
    "doge": (REFUSED, "a learned mask"),
    "falcon": (BY_CACHE, "attention of its own"),
}
"""Representative architectures, with the expected verdict and the reason for their choice."""


@pytest.mark.parametrize("name", SAMPLE)
def test_a_press_is_correct_on_an_architecture_or_refused_for_a_true_reason(name: str) -> None:
    """A press gets the expected verdict on each architecture of the sample."""
    if name not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    verdict = examine.examine(name)
    assert verdict.kind == SAMPLE[name][0], verdict


def test_every_architecture_of_the_installed_release_is_covered() -> None:
    """The zoo covers transformers' mapping of causal models."""
    # A loaded checkpoint with its own code remains in the mapping for the rest of the process.
    own = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if kind.__module__.startswith("transformers.models.")]
    known = {kind.model_type for kind in own}
    # Some names share a configuration, as GPT-SW3 does with GPT-2.
    tried = {transformers.CONFIG_MAPPING[name].model_type for name in set(specimens.names()) - set(specimens.VARIANTS)}
    assert known == tried


def test_nearly_every_architecture_can_be_configured() -> None:
    """Tiny configurations can be built for nearly all architectures."""
    failing = []
    for name in specimens.names():
        try:
            specimens.configuration(name)
        except Exception as error:
            failing.append(f"{name}: {error}")
    assert len(failing) <= len(specimens.names()) // 15, failing


# Specimens


@pytest.mark.parametrize(
    ("kinds", "chosen"),
    [("aaaaabaaaaab", [0, 1, 5, 11]), ("aaaa", [0, 1, 2, 3]), ("ab", [0, 1]), ("abcdeabcde", [0, 1, 2, 3, 4])],
)
def test_a_shortened_list_has_layers_of_each_kind(kinds: str, chosen: list[int]) -> None:
    """A shortened list of layers keeps their order and has all kinds, in equal numbers if possible."""
    assert specimens.chosen_layers(list(kinds), specimens.LAYERS) == chosen


def test_all_lists_of_layers_are_shortened_alike() -> None:
    """All fields that list layers are shortened consistently, as for Gemma 3 and Qwen3-Next."""
    config: Any = specimens.configuration("gemma3_text")
    assert sorted(config.layer_types) == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert config.num_hidden_layers == len(config.layer_types) == specimens.LAYERS
    assert config.sliding_window == specimens.WINDOW


def test_nested_configurations_are_tiny() -> None:
    """Nested configurations are tiny, as for Gemma 3 with images."""
    config: Any = specimens.configuration("gemma3")
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 32
    assert config.image_token_id < specimens.VOCABULARY


def test_specimens_are_random_and_reproducible() -> None:
    """Two builds have equal random weights, and there are no special tokens."""
    one, other = (specimens.build("llama").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert float(one["model.layers.0.input_layernorm.weight"].std()) > 0.01, "no noise on a weight that begins as 1"
    drawn = specimens.tokens(3, 400)
    assert (int(drawn.min()), int(drawn.max())) == (3, specimens.SPECIAL - 1)


def test_a_failed_build_gives_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid configuration and a model that is not tiny give their reasons."""
    monkeypatch.setitem(specimens.CHANGES, "llama", {"num_attention_heads": 5})
    assert examine.examine("llama").kind == NOT_BUILT
    monkeypatch.setitem(specimens.CHANGES, "llama", {"vocab_size": 1_000_000})
    verdict = examine.examine("llama")
    assert (verdict.kind, "parameters, which is not tiny" in verdict.detail) == (NOT_BUILT, True)


# The oracle


@cache
def model(name: str) -> Any:
    """A specimen. Read-only."""
    return specimens.build(name)


def nothing_evicted(built: Any) -> list[Tensor]:
    """Tables without evictions."""
    count = built.config.get_text_config(decoder=True).num_hidden_layers
    return [torch.full((1, 2, LENGTH), torch.iinfo(torch.int32).max, dtype=torch.int32) for _ in range(count)]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("passes", PATTERNS, ids=["prompt", "chunks", "single"])
def test_the_oracle_is_the_stock_model_where_nothing_is_evicted(name: str, passes: Sequence[int]) -> None:
    """Without evictions, the oracle is bit-identical to the stock model in eager attention, and one pass agrees."""
    built = model(name)
    ids = specimens.tokens(1, LENGTH)
    found = oracle.expected(built, ids, passes, nothing_evicted(built))
    stock, _ = oracle.decode(built, ids, passes)
    with torch.no_grad():
        whole = built(ids, use_cache=False).logits
    assert (found - stock).abs().max() < 1e-5
    assert (found - whole).abs().max() < 1e-5


def one_eviction(layer: int, head: int, token: int, time: int) -> list[Tensor]:
    """Tables with one eviction."""
    tables = nothing_evicted(model("llama"))
    tables[layer][0, head, token] = time
    return tables


def test_the_oracle_masks_evicted_entries_only_after_the_eviction() -> None:
    """Logits of the oracle change after an eviction and not before."""
    ids = specimens.tokens(1, LENGTH)
    whole = oracle.expected(model("llama"), ids, PATTERNS[0], nothing_evicted(model("llama")))
    for layer, head in ((0, 0), (3, 1)):
        found = oracle.expected(model("llama"), ids, PATTERNS[0], one_eviction(layer, head, 5, 20))
        change = (found - whole).abs().amax(dim=-1)[0]
        assert float(change[:20].max()) == 0
        assert float(change[20:].min()) > 1e-6


def test_the_oracle_equals_explicit_attention() -> None:
    """The output of one Llama layer equals attention computed from its projections."""
    built = model("llama")
    ids = specimens.tokens(1, LENGTH)
    tables = one_eviction(0, 1, 7, 9)
    seen: dict[str, Tensor] = {}
    layer = built.model.layers[0].self_attn
    handle = layer.o_proj.register_forward_pre_hook(lambda module, args: seen.update(attended=args[0]))
    inputs = layer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        oracle.expected(built, ids, [LENGTH], tables)
    finally:
        handle.remove()
        inputs.remove()
    hidden = seen["hidden_states"][0]
    cos, sin = (part[0] for part in seen["position_embeddings"])
    with torch.no_grad():
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, 8)).transpose(0, 1)
            for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
    query, key = (part * cos + torch.cat([-part[..., 4:], part[..., :4]], dim=-1) * sin for part in (query, key))
    for head in range(4):
        scores = key[head // 2] @ query[head, -1] / 8**0.5
        if head // 2 == 1:
            scores[7] = -torch.inf
        expected = scores.softmax(dim=0) @ value[head // 2]
        assert (expected - seen["attended"][0, -1, 8 * head : 8 * head + 8]).abs().max() < 1e-6


def test_the_oracle_reports_unsupported_attention() -> None:
    """The oracle reports attention that it cannot mask, as in GPT-Neo, whose modules have no ``layer_idx``."""
    tables = nothing_evicted(model("gpt_neo"))
    tables[2][0, 0, 5] = 20
    with pytest.raises(oracle.Unreachable, match=re.escape("layers [2]")):
        oracle.expected(model("gpt_neo"), specimens.tokens(1, LENGTH), PATTERNS[0], tables)


def test_the_oracle_masks_attention_of_a_models_own_code() -> None:
    """Logits change after an eviction and not before, in XGLM, which checks the shape of its mask; nothing is left."""
    built, ids = model("xglm"), specimens.tokens(1, LENGTH)
    tables = [table[:, :1] for table in nothing_evicted(built)]
    whole = oracle.expected(built, ids, PATTERNS[0], tables)
    tables[1][0, 0, 5] = 20
    change = (oracle.expected(built, ids, PATTERNS[0], tables) - whole).abs().amax(dim=-1)[0]
    assert float(change[:20].max()) == 0
    assert float(change[20:].min()) > 1e-6
    assert torch.equal(oracle.decode(built, ids, PATTERNS[0])[0], whole)


# Injected faults


def later(name: str, monkeypatch: pytest.MonkeyPatch, amount: int) -> Verdict:
    """Verdict with every reported eviction shifted by a number of tokens."""
    true: Any = PressedCache.evicted_at

    def told(cache: PressedCache) -> list[Tensor]:
        tables: list[Tensor] = true.fget(cache)
        return [torch.where(table < LENGTH, table + amount, table) for table in tables]

    monkeypatch.setattr(PressedCache, "evicted_at", property(told))
    return examine.examine(name)


def test_evictions_reported_late_are_silently_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evictions reported one token late are silently wrong, and unshifted ones are correct.

    Where a plain cache is the way out of a refusal, they make the refusal false.
    """
    verdict = later("llama", monkeypatch, 1)
    assert (verdict.kind, verdict.detail[:8]) == (WRONG, "attached"), verdict
    monkeypatch.undo()
    assert later("llama", monkeypatch, 0).kind == RIGHT
    monkeypatch.undo()
    verdict = later("falcon", monkeypatch, 1)
    assert (verdict.kind, verdict.detail[:11]) == (FALSE, "plain cache"), verdict


def test_evictions_that_attention_ignores_are_silently_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correct counts and tables with the logits of the stock model are silently wrong."""
    true = examine._Specimen.attached

    def ignoring(self: Any, press: KnormPress, passes: Sequence[int]) -> tuple[Tensor, PressedCache]:
        _, kept = true(self, press, passes)
        logits, _ = oracle.decode(self.model, self.ids, passes, DynamicCache(config=self.model.config))
        return logits, kept

    monkeypatch.setattr(examine._Specimen, "attached", ignoring)
    verdict = examine.examine("llama")
    assert (verdict.kind, "oracle" in verdict.detail) == (WRONG, True), verdict


def test_a_refusal_that_names_too_few_layers_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that names too few layers to skip is false."""
    true = Support.refusal

    def short(self: Support, reasons: dict[int, str], skipped: Sequence[int] = ()) -> ValueError:
        first = dict(list(reasons.items())[:1])
        return true(self, first, ())

    monkeypatch.setattr(Support, "refusal", short)
    if "qwen3_next" not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no layers without keys")
    assert examine.examine("qwen3_next").kind in BAD


def test_a_refusal_with_a_failing_way_out_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that suggests a failing measurement without a press is false."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("neither")

    monkeypatch.setitem(broken.__globals__, "__name__", "pressgauge.planted")
    monkeypatch.setattr(examine, "perplexity", broken)
    monkeypatch.setattr(examine._Specimen, "baseline", lambda self: None)
    verdict = examine.examine("git")
    assert (verdict.kind, "neither stepwise nor plain works" in verdict.detail) == (FALSE, True), verdict


def test_other_errors_are_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors from outside pressgauge are crashes, even a ValueError."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("of somebody else")

    monkeypatch.setattr(PressedCache, "held_rows", broken)
    assert examine.examine("llama").kind == CRASH


# The reasons of refusals

TRUE: list[tuple[str, str]] = [
    ("gemma3_text", "a press does not support layers 0-1 (sliding attention of 8)"),
    ("qwen3_next", "a press does not support layers 0-1 (linear attention, which caches no keys)"),
    (
        "gemma2",
        "a press does not support layers 0, 2 (sliding attention of 8); layers 1, 3 (attention with softcap 50.0)",
    ),
    ("gpt_oss", "a press does not support layers 1, 3 (attention with sinks)"),
    ("deepseek_v3", "a press does not support layer 2 (keys cached as [1, 12, 12] and attended to as [4, 12, 12])"),
    ("deepseek_v32", "a press does not support layers 0-3 (indexed attention)"),
    ("diffllama", "joins the values of several heads that lie in one slot"),
    ("doge", "a press does not support layer 0 (a mask of its own, [1, 4, 12, 12] where [rows, 1, 12, 12] is causal)"),
    ("doge", "makes masks of its own from all values that lie in the cache"),
    ("dory", "adds layers to the cache that it is given"),
    ("bloom", "adds ALiBi biases by the slot of an entry, not its position"),
    ("roformer", "does not go through transformers' attention interface"),
    ("gpt_neo", "has one mask for all layers, and some have local attention of 8 slots, whatever their positions"),
    ("jetmoe", "attends by query heads that read KV heads in turns, which a press takes for neighbours"),
    *([("roformer", "makes masks of as many columns as it has seen tokens")] if CACHE != "cache" else []),
]


@pytest.mark.parametrize(("name", "sentence"), TRUE, ids=[f"{name}-{sentence[:12]}" for name, sentence in TRUE])
def test_reasons_are_true_for_their_model_and_false_for_llama(name: str, sentence: str) -> None:
    """Each kind of reason is true for a model that has it, and false for Llama."""
    if name not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    ids = specimens.tokens(1, LENGTH)
    assert reasons.unfounded(model(name), ids, f"Its name: {sentence}; pass skip_layers=") is None
    assert reasons.unfounded(model("llama"), ids, f"Its name: {sentence}; pass skip_layers=") is not None


def test_a_reason_must_hold_for_the_named_layer() -> None:
    """A reason is false for layers that it does not apply to, or that do not exist."""
    ids = specimens.tokens(1, LENGTH)
    for layers, found in (("layers 1-2", "layer 2 has no sliding attention of 8"), ("layer 4", "no layer 4")):
        said = reasons.unfounded(
            model("gemma3_text"), ids, f"a press does not support {layers} (sliding attention of 8)"
        )
        assert said is not None
        assert found in said


def test_an_unchecked_reason_is_false() -> None:
    """A reason without a check is false, so every new refusal needs a check."""
    ids = specimens.tokens(1, LENGTH)
    assert reasons.unfounded(model("llama"), ids, "has a bad day") == "nobody checks this reason"
    said = reasons.unfounded(model("llama"), ids, "a press does not support layer 1 (tiredness)")
    assert said == "nobody checks whether a layer has tiredness"


def test_checking_facts_changes_nothing() -> None:
    """Checking facts leaves functions of the model and of transformers' caches unchanged."""
    names = vars(modeling_llama)
    before = (names["eager_attention_forward"], DynamicCache.update, model("llama").config._attn_implementation)
    reasons.facts(model("llama"), specimens.tokens(1, LENGTH))
    after = (names["eager_attention_forward"], DynamicCache.update, model("llama").config._attn_implementation)
    assert before == after


# The page


def test_the_page_has_a_row_for_each_architecture_and_counts_them() -> None:
    """The page has a row for each architecture and their counts, with Markdown escaped."""
    version = transformers.__version__
    found = {
        "b": Verdict(REFUSED, f"B (transformers {version}): a | b * c_d"),
        "a": Verdict(RIGHT, "A: skip these", (0, 2)),
        "c": Verdict(RIGHT),
    }
    lines = page(found).splitlines()
    assert lines[-3:] == [
        "| a | right | 0, 2 | A: skip these |",
        r"| b | refused |  | B: a \| b \* c\_d |",
        "| c | right |  |  |",
    ]
    counts = {cells[1].strip(): cells[2].strip() for line in lines if len(cells := line.split("|")) == 5}
    assert {kind: counts[kind] for kind in KINDS} == {**dict.fromkeys(KINDS, "0"), RIGHT: "2", REFUSED: "1"}
    assert f"transformers {version} and torch" in lines[2]
