"""transformers' interfaces, in the cases that only one line of code decides."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressgauge.conformance import architectures
from pressgauge.models import interface

PLAIN = "measure it without a press and without a cache (press=None, method='plain')"


def said(sentence: str) -> str:
    """A pattern for the whole of a sentence."""
    return f"^{re.escape(sentence)}$"


class Decoder(nn.Module):
    """As much of a decoder as the interface looks at."""

    def forward(
        self, input_ids: Any, attention_mask: Any = None, cache: Any = None, past_key_values: Any = None
    ) -> Any:
        """Takes a cache under both names."""


class Nameless(nn.Module):
    """A decoder whose cache has an unknown name."""

    def forward(self, input_ids: Any, state: Any = None) -> Any:
        """Takes a state."""


class Model:
    """As much of a model: its decoder, and whether it decodes with a ``DynamicCache``."""

    def __init__(self, decoder: nn.Module) -> None:
        self.base_model = decoder

    def get_decoder(self) -> str:
        """No model, as where the output layer has that name."""
        return "the output layer"


class Particular(Model):
    """A model with a cache of its own."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class Lfm2Toy(Particular):
    """A model that says so and takes a ``DynamicCache`` all the same."""


def test_the_decoder_is_a_model() -> None:
    """Whatever else bears the name."""
    model = architectures.shared("llama")
    assert interface.decoder_of(model) is model.model
    decoder = Decoder()
    other: Any = Model(decoder)
    assert interface.decoder_of(other) is decoder
    other.get_decoder = lambda: model.model
    assert interface.decoder_of(other) is model.model


def test_the_cache_is_found_by_its_name_or_refused() -> None:
    """The newer of two names; a model without either and one with a cache of its own are refused in whole sentences."""
    model: Any = Model(Decoder())
    assert interface.cache_argument(model) == "cache"
    model = Lfm2Toy(Decoder())
    assert interface.cache_argument(model) == "cache"
    model = Particular(Decoder())
    with pytest.raises(
        ValueError, match=said(f"Particular ({interface.VERSION}) decodes with a cache of its own: {PLAIN}")
    ):
        interface.cache_argument(model)
    model = Model(Nameless())
    sentence = (
        "Model takes no key-value cache under a name that pressgauge knows (cache or past_key_values; "
        f"{interface.VERSION}): {PLAIN}"
    )
    with pytest.raises(ValueError, match=said(sentence)):
        interface.cache_argument(model)


def test_a_pass_is_given_what_it_needs_and_no_more() -> None:
    """Mask and positions only where there are some, and whether there is a cache in any case."""
    given: list[Any] = []

    def model(ids: Any, **kwargs: Any) -> Any:
        given.append((ids, kwargs))
        return SimpleNamespace(logits="logits")

    run: Any = model
    ids, mask, positions, cache = (torch.tensor([[number]]) for number in range(4))
    assert interface.feed(run, ids, {}) == "logits"
    interface.feed(run, ids, {"cache": cache}, mask)  # type: ignore[dict-item]
    interface.feed(run, ids, {}, position_ids=positions)
    assert given == [
        (ids, {"use_cache": False}),
        (ids, {"use_cache": True, "cache": cache, "attention_mask": mask}),
        (ids, {"use_cache": False, "position_ids": positions}),
    ]


def test_arguments_are_named_in_the_order_of_the_call() -> None:
    """Those given by name beside them."""
    decoder = Decoder()
    assert interface.parameters(decoder) == ("input_ids", "attention_mask", "cache", "past_key_values")
    assert interface.named(decoder, (1, 2), {"past_key_values": 3}) == {
        "input_ids": 1,
        "attention_mask": 2,
        "past_key_values": 3,
    }


def test_caches_are_taken_out_of_a_call_whatever_their_names() -> None:
    """Also those that are None, which are no caches."""
    cache, other = DynamicCache(), DynamicCache()
    given = {"input_ids": 1, "cache": None, "past_key_values": cache, "state": other}
    assert interface.pop_caches(given) == [cache, other]
    assert given == {"input_ids": 1}


def test_tokens_seen_are_those_of_the_longest_layer_with_keys() -> None:
    """None where no layer has any."""
    long, short = DynamicLayer(), DynamicLayer()
    for layer, length in ((short, 3), (long, 5)):
        layer.update(torch.zeros(1, 1, length, 2), torch.zeros(1, 1, length, 2))
    cache: Any = SimpleNamespace(layers=[object(), short, long])
    assert interface.tokens_seen(cache) == 5
    assert interface.tokens_seen(SimpleNamespace(layers=[object()])) is None  # type: ignore[arg-type]
    assert [interface.cached_layer(cache, index) for index in (1, 2, 3)] == [short, long, None]


def test_the_length_of_a_pass_is_a_number_or_that_of_its_positions() -> None:
    """As the releases of transformers give it."""
    assert interface.query_length(3) == 3
    assert interface.query_length(torch.arange(7)) == 7


@pytest.mark.parametrize(
    ("training", "flag", "found"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_gradient_checkpointing_is_that_of_a_model_in_training(training: bool, flag: bool, found: bool) -> None:
    """In some module of it."""
    decoder: Any = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).train(training)
    assert not interface.checkpoints_gradients(decoder)
    decoder[1].gradient_checkpointing = flag
    assert interface.checkpoints_gradients(decoder) is found


def _assisted_decoding(depth: int) -> bool:
    """Under the name of the function by which transformers takes candidate tokens back."""
    return interface.in_assisted_decoding() if not depth else _between(depth)


def _between(depth: int) -> bool:
    return interface.in_assisted_decoding() if depth == 1 else _between(depth - 1)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_assisted_decoding_is_seen_on_the_call_stack(depth: int) -> None:
    """However many calls lie between, and not in calls that are over."""
    assert not interface.in_assisted_decoding()
    assert _assisted_decoding(depth)
    assert not interface.in_assisted_decoding()


class Positions(Decoder):
    """A decoder that takes positions."""

    def forward(self, input_ids: Any, position_ids: Any = None) -> Any:  # type: ignore[override]
        """Takes positions."""


class Embeddings(nn.Module):
    """Embeddings that make positions of the tokens, as those of RoBERTa."""

    def create_position_ids_from_input_ids(self) -> None:
        """Never called."""


def test_positions_are_taken_where_they_are_an_argument_that_is_used() -> None:
    """Not where there is none, and not where some module makes its own."""
    assert interface.takes_positions(Positions())
    assert not interface.takes_positions(Decoder())
    decoder = Positions()
    decoder.embeddings = Embeddings()
    assert not interface.takes_positions(decoder)


def test_layers_are_numbered_by_their_modules() -> None:
    """By those whose number is a whole one."""
    decoder = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    decoder[0].layer_idx, decoder[2].layer_idx = 4, None  # type: ignore[assignment]
    assert interface.layer_indices(decoder) == {id(decoder[0]): 4}


def test_scores_are_scaled_as_the_call_says_or_by_the_root_of_the_dimension() -> None:
    """A scale of 0 is one."""
    key = torch.zeros(1, 1, 3, 16)
    assert interface.scaling(key, {}) == interface.scaling(key, {"scaling": None}) == 0.25
    assert interface.scaling(key, {"scaling": 0.5}) == 0.5
    assert interface.scaling(key, {"scaling": 0.0}) == 0.0
    assert type(interface.scaling(key, {"scaling": 1})) is float


def test_other_caches_have_layers_with_keys() -> None:
    """What stores keys is a cache layer, of whatever class; anything else stores none."""
    model = architectures.shared("llama")
    static: Any = StaticCache(config=model.config, max_cache_len=8)
    assert all(map(interface.caches_keys, static.layers))
    assert all(map(interface.selects_keys, static.layers))
    assert not interface.caches_keys(object())
    assert not interface.selects_keys(DynamicLayer())


def test_attention_is_routed_by_module_and_as_it_was_afterwards() -> None:
    """Of two models with one table, each by its own function; the table has its own entry again when both are done."""
    one, two = architectures.build("llama"), architectures.build("llama")
    for model in (one, two):
        model.set_attn_implementation("eager")
    ids = architectures.tokens(1, 5)
    calls: list[str] = []

    def route(name: str) -> Any:
        def attend(own: Any, module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return own(module, query, *args, **kwargs)

        return attend

    own = interface.eager_attention(one.model.layers[0].self_attn)
    expected = one(ids).logits
    with interface.routed(one.model, route("one")):
        assert interface.carries_a_press(one.model)
        assert not interface.carries_a_press(two.model)
        with interface.routed(two.model, route("two")):
            assert torch.equal(one(ids).logits, expected)
            two(ids)
        two(ids)
        assert interface.eager_attention(one.model.layers[0].self_attn) is own
        assert torch.equal(one(ids).logits, expected)
    assert calls == ["one"] * 3 + ["two"] * 3 + ["one"] * 3
    assert not interface.carries_a_press(one.model)
    assert not interface._ROUTES
    assert not interface._SWITCHES
    assert interface._namespace(type(one.model.layers[0].self_attn))["eager_attention_forward"] is own
    one(ids)
    assert len(calls) == 9


def test_attention_is_as_it_was_after_an_error() -> None:
    """In the table of all models, too."""
    model = architectures.build("llama")
    assert model.config._attn_implementation == "sdpa"
    table = ALL_ATTENTION_FUNCTIONS._global_mapping
    own: Any = table["sdpa"]

    def fail() -> None:
        with interface.routed(model.model, own):
            assert table["sdpa"] is not own
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert table["sdpa"] is own
    assert not interface._ROUTES
    assert not interface._SWITCHES


def module_with(names: dict[str, Any]) -> nn.Module:
    """A module whose code looks names up among these."""
    exec("def forward(self):\n    pass", names)
    return type("Module", (nn.Module,), {"forward": names["forward"]})()  # type: ignore[no-any-return]


def test_attention_is_routed_in_a_models_own_table_too() -> None:
    """Where it has the implementation; under ``eager`` in the modules that have such a function."""
    own, other = {"sdpa": len}, {"flash": len}
    eager: dict[str, Any] = {"eager_attention_forward": len}
    decoder = nn.Sequential(
        module_with({"ALL_ATTENTION_FUNCTIONS": SimpleNamespace(_local_mapping=own)}),
        module_with({"ALL_ATTENTION_FUNCTIONS": SimpleNamespace(_local_mapping=other)}),
        module_with(eager),
        module_with({}),
        type("Built", (nn.Module,), {"forward": len})(),  # a function without names of its own
    )
    tables = [(id(table), name) for table, name in interface._tables(decoder, "sdpa").values()]
    assert sorted(tables) == sorted([(id(ALL_ATTENTION_FUNCTIONS._global_mapping), "sdpa"), (id(own), "sdpa")])
    tables = [(id(table), name) for table, name in interface._tables(decoder, "eager").values()]
    assert tables == [(id(eager), "eager_attention_forward")]


def test_attention_that_is_routed_twice_is_given_back_twice() -> None:
    """In any order."""
    model = architectures.build("llama")
    table = ALL_ATTENTION_FUNCTIONS._global_mapping
    own: Any = table["sdpa"]
    with interface.routed(model.model, own), interface.routed(model.model, own):
        assert table["sdpa"] is not own
    assert table["sdpa"] is own
    assert not interface._ROUTES
    assert not interface._SWITCHES
