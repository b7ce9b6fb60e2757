"""Support of models, in the cases that only one line of code decides, and the words of each refusal."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import transformers
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pressgauge import KnormPress
from pressgauge.conformance import architectures
from pressgauge.models import interface, support
from pressgauge.models.support import Support
from pressgauge.models.windows import owners, windows
from pressgauge.rules import Window
from support.zoo import specimens

TOY = Support("Toy", 6, None, {1: "one reason", 2: "one reason", 4: "another"})
ALONE = "no press supports this model: measure it without a press (press=None, method='stepwise' or 'plain')"
STEPWISE = "measure it without a press (press=None, method='stepwise' or 'plain')"
PLAIN = "measure it without a press and without a cache (press=None, method='plain')"
NAME = f"Toy ({interface.VERSION})"


def said(sentence: str) -> str:
    """A pattern for the whole of a sentence."""
    return f"^{re.escape(sentence)}$"


@pytest.mark.parametrize(
    ("reasons", "skipped", "rest"),
    [
        (
            TOY.reasons,
            (),
            "layers 1-2 (one reason); layer 4 (another); pass skip_layers=(1, 2, 4) or skip_layers='unprunable', "
            "which leaves layers 0, 3, 5 to compress",
        ),
        (
            TOY.reasons,
            (2, 3),
            "layer 1 (one reason); layer 4 (another); pass skip_layers=(1, 2, 3, 4) or skip_layers='unprunable', "
            "which leaves layers 0, 5 to compress",
        ),
        (
            {5: "a third", 0: "a third", 1: "one reason"},
            (4,),
            "layers 0, 5 (a third); layer 1 (one reason); pass skip_layers=(0, 1, 4, 5), which leaves layers 2-3 to "
            "compress",
        ),
        (
            dict.fromkeys(range(1, 6), "all"),
            (0,),
            f"layers 1-5 (all); that leaves no layer to compress, so {ALONE}",
        ),
        (
            dict.fromkeys(range(5), "all"),
            (),
            "layers 0-4 (all); pass skip_layers=(0, 1, 2, 3, 4), which leaves layer 5 to compress",
        ),
    ],
)
def test_a_refusal_names_layers_reasons_and_the_way_out(
    reasons: dict[int, str], skipped: tuple[int, ...], rest: str
) -> None:
    """Layers of one reason stand together, and the word for all of them is offered where it would do."""
    assert str(TOY.refusal(reasons, skipped)) == f"{NAME}: a press does not support {rest}"


def test_skipped_layers_are_resolved_or_refused() -> None:
    """By number, by the word for all of them, and not where a layer is missing or the model has none to compress."""
    press = KnormPress(0.5)
    assert TOY.resolve(replace(press, skip_layers="unprunable")).skip_layers == (1, 2, 4)
    for layers in ((1, 2, 4), (0, 1, 2, 4, 5)):
        assert TOY.resolve(replace(press, skip_layers=layers)).skip_layers == layers
    assert replace(TOY, reasons={}).resolve(replace(press, skip_layers="unprunable")).skip_layers == ()
    with pytest.raises(ValueError, match=said(str(TOY.refusal(TOY.reasons, (1, 5))))):
        TOY.resolve(replace(press, skip_layers=(1, 5)))
    with pytest.raises(ValueError, match=said("skip_layers names layer 6, but the model has 6 layers, 0 to 5")):
        TOY.resolve(replace(press, skip_layers=(0, 6, 7)))
    none = replace(TOY, reasons=dict.fromkeys(range(6), "all"))
    refusal = f"{NAME}: a press does not support layers 0-5 (all); that leaves no layer to compress, so {ALONE}"
    with pytest.raises(ValueError, match=said(refusal)):
        none.resolve(replace(press, skip_layers="unprunable"))
    with pytest.raises(ValueError, match=said(f"{NAME} is strange")):
        replace(TOY, whole="is strange").resolve(press)


def test_layer_indices_lie_within_the_model() -> None:
    """From the first to the last."""
    TOY.check_index(0)
    TOY.check_index(5)
    for index in (-1, 6):
        sentence = (
            f"{NAME} attends by modules whose layer_idx is {index}, outside 0 to 5, and which layer they serve cannot "
            f"be told: {ALONE}"
        )
        with pytest.raises(ValueError, match=said(sentence)):
            TOY.check_index(index)


def test_a_pass_leaves_the_number_of_cache_layers_alone() -> None:
    """More of them are as unknown as fewer."""
    TOY.check_added(6, 6)
    for after in (5, 7):
        sentence = (
            f"{NAME} was given a cache of 6 layers and made it one of {after}, and which of its layers they serve "
            f"cannot be told: {ALONE}"
        )
        with pytest.raises(ValueError, match=said(sentence)):
            TOY.check_added(6, after)


class Config:
    """As much of a configuration as the support of a model depends on."""

    is_encoder_decoder = False
    model_type = "toy"

    def __init__(self, **changes: Any) -> None:
        vars(self).update({"num_hidden_layers": 2, **changes})

    def get_text_config(self, decoder: bool) -> "Config":
        """Itself."""
        assert decoder is True
        return self


class Kind:
    """As much of a model class."""

    def forward(self, input_ids: Any, cache: Any = None) -> None:
        """With a cache."""

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True


class Outside(Kind):
    """One that attends in a way of its own."""

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return False


class Cacheless(Kind):
    """One without a cache."""

    def forward(self, input_ids: Any) -> None:  # type: ignore[override]
        """Without a cache."""


class Particular(Kind):
    """One with a cache of its own."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class States:
    """A layer of states, without keys."""


class Another(DynamicSlidingWindowLayer):
    """A window with states besides keys."""


def of(kind: Any, layers: Any, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Support:
    """The support of a model of such a class with such cache layers."""
    monkeypatch.setattr(interface, "model_class", lambda given: kind if isinstance(given, Config) else Config)
    return support.of_config(Config(**config), layers)  # type: ignore[arg-type]


SLOTS = "adds ALiBi biases by the slot of an entry, not its position"


@pytest.mark.parametrize(
    ("kind", "config", "whole"),
    [
        (Kind, {}, None),
        (None, {}, None),
        (Kind, {"is_encoder_decoder": True}, f"is an encoder-decoder, whose cache a press cannot serve: {ALONE}"),
        (Cacheless, {}, f"keeps no key-value cache, so there is nothing to compress: {PLAIN}"),
        (Particular, {}, f"decodes with a cache of its own: {PLAIN}"),
        (Kind, {"alibi": True}, f"{SLOTS}: {STEPWISE}"),
        (Kind, {"model_type": "bloom"}, f"{SLOTS}: {STEPWISE}"),
        (None, {"model_type": "mpt"}, f"{SLOTS}: {STEPWISE}"),
        (Kind, {"model_type": "diffllama"}, f"joins the values of several heads that lie in one slot: {STEPWISE}"),
        (
            Outside,
            {},
            "is not known to attend through transformers' interface, and may take the slot of an entry for its "
            f"position: {STEPWISE}",
        ),
        (
            Outside,
            {"model_type": "gptj"},
            f"makes masks of as many columns as it has seen tokens, whatever its cache holds: {STEPWISE}",
        ),
    ],
)
def test_what_keeps_a_press_from_a_whole_model(
    kind: Any, config: dict[str, Any], whole: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reason each, with the way out."""
    found = of(kind, [DynamicLayer(), DynamicLayer()], monkeypatch, **config)
    assert found == Support("Config" if kind is None else kind.__name__, 2, whole, {}, False)


def test_a_plain_cache_serves_models_whose_masks_are_those_of_their_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one mask for all layers, of which none may be left out, unless none is left."""
    monkeypatch.setattr(sys.modules[__name__], "create_causal_mask", None, raising=False)
    layers = [DynamicLayer(), DynamicLayer()]
    assert of(Outside, layers, monkeypatch, model_type="gptj") == Support("Outside", 2, None, {}, by_cache=True)
    assert of(Kind, layers, monkeypatch, model_type="jetmoe") == Support("Kind", 2, None, {}, by_cache=True)
    assert not of(Kind, layers, monkeypatch, model_type="gptj").by_cache
    local: dict[str, Any] = {"model_type": "gptj", "window_size": 5}
    reason = "local attention of 5 slots, whatever their positions"
    found = of(Outside, layers, monkeypatch, attention_layers=["global", "local"], **local)
    whole = f"has one mask for all layers, and some have {reason}: {STEPWISE}"
    assert found == Support("Outside", 2, whole, {1: reason})
    found = of(Outside, layers, monkeypatch, attention_layers=["local", "local"], **local)
    assert (found.whole, found.reasons) == (None, {0: reason, 1: reason})


def test_a_model_that_caches_no_keys_at_all_has_nothing_to_compress(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer with keys among others is enough."""
    found = of(Kind, [States(), States()], monkeypatch)
    assert found.whole == f"has no layer that caches keys, so there is nothing to compress: {STEPWISE}"
    assert of(Kind, [States(), DynamicLayer()], monkeypatch).whole is None


@pytest.mark.parametrize(
    ("layer", "config", "reason"),
    [
        (DynamicLayer(), {}, None),
        (States(), {}, "no attention, which caches no keys"),
        (States(), {"layer_types": ["linear_attention", None]}, "linear attention, which caches no keys"),
        (Another(sliding_window=8), {}, "sliding attention"),
        (Another(sliding_window=8), {"sliding_window": 8}, "sliding attention of 8"),
        (Another(sliding_window=8), {"attention_chunk_size": 9}, "sliding attention of 9"),
        (
            Another(sliding_window=8),
            {"sliding_window": 7, "layer_types": ["chunked_attention", None]},
            "chunked attention of 7",
        ),
        (DynamicSlidingWindowLayer(sliding_window=8), {"sliding_window": 8}, None),
        (
            DynamicLayer(),
            {"attention_layers": ["local", "global"], "window_size": 5},
            "local attention of 5 slots, whatever their positions",
        ),
        (DynamicLayer(), {"kv_sharing_modes": ["store", "reuse"], "layer_types": ["full_attention"] * 2}, None),
    ],
)
def test_what_keeps_a_press_from_a_layer(
    layer: Any, config: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reason each, of the layer that has it."""
    found = of(Kind, [layer, DynamicLayer()], monkeypatch, **config)
    assert found.reasons.get(0) == reason
    assert 1 not in found.reasons
    assert found.selecting is isinstance(layer, States | Another)


def test_a_layer_that_the_cache_lacks_has_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache may have fewer layers than the model."""
    found = of(Kind, [DynamicLayer()], monkeypatch, num_hidden_layers=3, layer_types=["full_attention", "mamba", None])
    assert found.reasons == {1: "mamba, which caches no keys", 2: "no attention, which caches no keys"}


FULL, LOCAL = "full_attention", "sliding_attention"


STORE, REUSE = SimpleNamespace(value="store"), SimpleNamespace(value="reuse")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"layer_types": [FULL] * 4}, {}),
        ({"layer_types": [FULL] * 4, "num_kv_shared_layers": None}, {}),
        ({"layer_types": [FULL] * 4, "num_kv_shared_layers": 0}, {}),
        ({"layer_types": [FULL] * 4, "num_kv_shared_layers": 1}, {3: 2}),
        ({"layer_types": [LOCAL, FULL, FULL, LOCAL, FULL], "num_kv_shared_layers": 2}, {3: 0, 4: 2}),
        ({"layer_types": [FULL, LOCAL, LOCAL, FULL], "num_kv_shared_layers": 1}, {3: 0}),
        ({"layer_types": [LOCAL, LOCAL, FULL], "num_kv_shared_layers": 1}, {}),
        ({"kv_sharing_modes": [None, None]}, {}),
        ({"kv_sharing_modes": ["store", "store"]}, {}),
        ({"layer_types": [FULL] * 4, "kv_sharing_modes": [None, "store", "reuse", None]}, {2: 1}),
        ({"kv_sharing_modes": [STORE, STORE]}, {}),
        ({"layer_types": [FULL, LOCAL, LOCAL, FULL], "kv_sharing_modes": [STORE, STORE, REUSE, REUSE]}, {2: 1, 3: 0}),
    ],
)
def test_which_layers_read_the_keys_of_which(text: dict[str, Any], expected: dict[int, int]) -> None:
    """The last layer of the same type that stores its keys for others; as each release of transformers says it."""
    layers = len(text.get("layer_types", text.get("kv_sharing_modes", ())))
    assert owners(cast(Any, Config(num_hidden_layers=layers, **text))) == expected


@pytest.mark.parametrize(
    ("text", "chunked"),
    [
        ({"sliding_window": 8}, False),
        ({"attention_chunk_size": 8}, True),
        ({"layer_types": ["sliding_attention", FULL]}, False),
        ({"sliding_window": 8, "layer_types": ["chunked_attention", FULL]}, True),
    ],
)
def test_windows_are_those_of_the_cache(text: dict[str, Any], chunked: bool) -> None:
    """Chunks are those of layers that say so, or of models without a sliding window."""
    layers = [DynamicSlidingWindowLayer(sliding_window=8), DynamicLayer()]
    assert windows(cast(Any, Config(num_hidden_layers=2, **text)), layers) == {0: Window(8, chunked)}


SHARING = Support("model", 5, None, {}, owners={3: 1, 4: 2})


def test_a_layer_that_reads_the_keys_of_another_is_skipped_with_it() -> None:
    """Skipping the owner alone is enough; the reader alone cannot be skipped."""
    assert SHARING.resolve(KnormPress(0.5, skip_layers=(1,))).skip_layers == (1,)
    assert SHARING.evicting((1,)) == [0, 2, 4]
    assert SHARING.resolve(KnormPress(0.5, skip_layers=(2, 4))).skip_layers == (2, 4)
    with pytest.raises(ValueError, match=r"^skip_layers names layer 4, which reads the keys and values of layer 2, "):
        SHARING.resolve(KnormPress(0.5, skip_layers=(4,)))


def test_a_way_out_names_the_layers_that_share_keys() -> None:
    """Those with an unsupported one, whether it reads or is read."""
    for layer in (1, 3):
        found = replace(SHARING, reasons={layer: "a reason"})
        assert found.resolve(KnormPress(0.5, skip_layers="unprunable")).skip_layers == (1, 3)
        with pytest.raises(
            ValueError, match=r"pass skip_layers=\(1, 3\) or skip_layers='unprunable', which leaves lay"
        ):
            found.resolve(KnormPress(0.5))


def test_attached_a_model_is_looked_at_by_its_modules() -> None:
    """Sinks and softcaps are looked at in a pass."""
    model = architectures.build("llama")
    name, plain = type(model).__name__, support.of_model(model)
    assert plain == Support(name, architectures.LAYERS, None, {})
    interface.decoder_of(model).layers[1].self_attn.sinks = 1
    model.config.attn_logit_softcapping = 50.0
    assert support.of_model(model) == plain


def test_attention_outside_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a press and by one pass, in the same words."""
    model = architectures.build("llama")
    support.refuse_outside(model)
    monkeypatch.setattr(interface, "goes_through_interface", lambda kind: kind is not type(interface.decoder_of(model)))
    outside = f"does not go through transformers' attention interface: {STEPWISE}"
    assert support.of_model(model).whole == outside
    with pytest.raises(ValueError, match=said(f"LlamaForCausalLM ({interface.VERSION}) {outside}")):
        support.refuse_outside(model)


def test_an_attached_model_is_called_by_its_own_class() -> None:
    """Whatever class its configuration stands for."""
    model = architectures.build("llama")
    model.__class__ = type("Named", (type(model),), {})
    assert support.of_model(model).name == "Named"


@pytest.mark.parametrize("name", ["inkling_text", "inkling2_text"])
def test_biases_by_the_distance_of_slots_are_refused(name: str) -> None:
    """A cache with evicted entries would shift relative biases, so a plain cache and an attached press are refused."""
    if name not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model = specimens.build(name)
    press = KnormPress(0.5, prune_after=3)
    with pytest.raises(ValueError, match="adds biases by the slot of an entry, not its position: measure it without"):
        press.cache(model.config)
    with pytest.raises(ValueError, match="adds biases by the slot"):
        press.resolved(model)
