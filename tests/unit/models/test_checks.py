"""Files of a model that do not fit together are refused before its weights are loaded, and again with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pressgauge.conformance import architectures
from pressgauge.models import checks, load, load_parts, location

FOLDER = Path(location("reference"))
Damage = Callable[[Path], object]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the reference model's folder, to be damaged."""
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


def configured(**changes: Any) -> Damage:
    """Changes of config.json; None removes an entry."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return damage


def written(name: str, content: str | bytes) -> Damage:
    """A file of the folder with another content."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def vocabulary(change: Callable[[dict[str, int]], dict[str, int]]) -> Damage:
    """Changes of the tokenizer's vocabulary."""

    def damage(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"] = change(tokenizer["model"]["vocab"])
        tokenizer["added_tokens"] = []
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return damage


def weighed(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Changes of the weights."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


def sharded(folder: Path) -> None:
    """Two shards, of which the second is missing."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = dict(list(weights.items())[:15])
    save_file(half, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    places = {name: f"model-0000{1 if name in half else 2}-of-00002.safetensors" for name in weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def both(*damages: Damage) -> Damage:
    """Several changes."""
    return lambda folder: [damage(folder) for damage in damages]


MODELS: dict[str, tuple[Damage, str]] = {
    **{
        f"{name} {value!r}": (
            configured(**{name: value}),
            f"({name} in config.json must be a positive whole number, got {value!r})",
        )
        for name in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size", "vocab_size")
        for value in (0, -1, 2.5, "two", True)
    },
    "heads that do not divide": (
        configured(num_key_value_heads=3),
        "(num_attention_heads in config.json must be a multiple of num_key_value_heads, got 4 and 3)",
    ),
    "no heads": (configured(num_attention_heads=None), "by config.json)"),
    "no hidden size": (configured(hidden_size=None), "by config.json)"),
    "no model type": (configured(model_type=None), "Should have a `model_type` key"),
    "a hidden size of millions": (
        configured(hidden_size=4_000_000),
        "has the shape [149, 128] in the weights, and [149, 4000000] by config.json)",
    ),
    "another activation": (
        configured(hidden_act="nope"),
        "(hidden_act in config.json must be an activation of transformers, got 'nope')",
    ),
    "fewer layers": (configured(num_hidden_layers=2), "(config.json has 2 layers, and the weights have 3)"),
    "more layers": (configured(num_hidden_layers=4), "(config.json has 4 layers, and the weights have 3)"),
    "layers without end": (
        configured(num_hidden_layers=10**12),
        "(config.json has 1,000,000,000,000 layers, and the weights have 3)",
    ),
    "a list": (written("config.json", "[]"), "(config.json must have an object, got list)"),
    "null": (written("config.json", "null"), "(config.json must have an object, got NoneType)"),
    "garbage": (written("config.json", b"\xff\x00\x01"), "(config.json is not JSON: "),
    "an empty file": (written("config.json", ""), "(config.json is not JSON: "),
    "deep nesting": (written("config.json", '{"a":' * 100_000), "(config.json is not JSON: maximum recursion"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "another JSON as tokenizer": (
        written("tokenizer.json", '{"x":1}'),
        "(tokenizer.json must be written by the package tokenizers: it has no model)",
    ),
    "a tokenizer of garbage": (written("tokenizer.json", b"\x00\x01"), "(tokenizer.json is not JSON: "),
    "a tokenizer that is a list": (written("tokenizer.json", "[]"), "(tokenizer.json must have an object, got list)"),
    "a tokenizer of another kind": (written("tokenizer.json", '{"model": {"type": "Nope"}}'), "could not be loaded"),
    "an empty vocabulary": (vocabulary(lambda _: {}), "(its tokenizer has an empty vocabulary: take tokenizer.json"),
    "ids beyond the embedding": (
        vocabulary(lambda words: {word: place + 1000 for word, place in words.items()}),
        "(its tokenizer has token ids up to 1148, and config.json has a vocab_size of 149: take both from where",
    ),
    "one id beyond the embedding": (
        vocabulary(lambda words: {**words, "extra": 149}),
        "(its tokenizer has token ids up to 149, and config.json has a vocab_size of 149: take both from where",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "(weights are missing: it has no model.safetensors)",
    ),
    "weights of no bytes": (written("model.safetensors", b""), "could not be loaded"),
    "a missing shard": (sharded, "(weights are missing: it has no model-00002-of-00002.safetensors)"),
    "an index of garbage": (
        both(sharded, written("model.safetensors.index.json", "nope")),
        "(model.safetensors.index.json is not JSON: ",
    ),
    "an index without files": (
        both(sharded, written("model.safetensors.index.json", '{"weight_map": [1]}')),
        "(model.safetensors.index.json must have the file of each weight in weight_map, got [1])",
    ),
    "a weight of another shape": (
        weighed(lambda weights: weights.update({"model.norm.weight": torch.ones(64)})),
        "(model.norm.weight has the shape [64] in the weights, and [128] by config.json)",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), MODELS.values(), ids=MODELS)
def test_files_that_do_not_fit_are_refused_without_loading_weights(copy: Path, damage: Damage, sentence: str) -> None:
    """Each defect is refused in one line that names it, by the configuration and headers alone."""
    damage(copy)
    with pytest.raises(ValueError, match="could not be loaded: give reference or reference-neox, a folder") as refused:
        load_parts(str(copy))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_weight_is_refused_when_it_is_loaded(copy: Path) -> None:
    """A missing weight, which transformers would initialise at random, is named."""
    weighed(lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))(copy)
    with pytest.raises(ValueError, match=r"\(weights are missing: model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load(str(copy))


@pytest.mark.parametrize(
    ("loading", "sentence"),
    [
        ({"missing_keys": {"d", "c", "b", "a"}}, "weights are missing: a, b, c and 1 more"),
        ({"mismatched_keys": {("a", (1, 2), (3, 4))}}, r"a has the shape \[1, 2\] in the weights, and \[3, 4\] by"),
        ({"unexpected_keys": {"model.layers.9.mlp.up_proj.weight"}}, "has 3 layers, and the weights have 10"),
    ],
)
def test_what_transformers_says_of_loading_is_refused(loading: dict[str, Any], sentence: str) -> None:
    """Missing, mismatched and further layers' weights are refused as transformers reports them, for any source."""
    model, _ = load("reference")
    with pytest.raises(ValueError, match=sentence):
        checks.check_loaded(
            model, {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": set()} | loading
        )


@pytest.mark.parametrize("name", ["vision_tower.layers.9.mlp.weight", "lm_head.bias", "model.other.7.weight"])
def test_weights_of_other_parts_may_be_left_over(name: str) -> None:
    """Weights that are in no list of layers of the model are not of a layer that is missing."""
    model, _ = load("reference")
    checks.check_names(model, [name])


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_saved_models_fit_themselves(name: str, tmp_path: Path) -> None:
    """What transformers saves of any architecture is not refused."""
    model = architectures.build(name)
    model.save_pretrained(tmp_path)
    checks.check_config(checks.read_object(tmp_path / "config.json"))
    checks.check_files(tmp_path, model.config, trust_remote_code=False)
