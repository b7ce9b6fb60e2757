"""Checks of a model's files before it is measured: configuration, tokenizer, and shapes of the weights."""

import copy
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

COUNTS = (
    *("num_attention_heads", "n_head", "num_key_value_heads", "num_hidden_layers", "n_layer"),
    *("hidden_size", "n_embd", "head_dim", "intermediate_size", "vocab_size"),
)
"""Numbers of a configuration that are positive and whole where they are given, one for all layers or one for each."""
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
INDEX = "model.safetensors.index.json"
MOST_LAYERS = 1000
"""Layers above which no model is built to look at its shapes."""
SHOWN = 3
"""Names shown in an error, of any number."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if it has none.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must have an object, got {type(content).__name__}")
    return content


def check_tokenizer_file(path: Path) -> None:
    """Raise ``ValueError`` if a tokenizer.json has no model of a tokenizer."""
    if path.is_file() and not isinstance(read_object(path).get("model"), dict):
        raise ValueError(f"{path.name} must be written by the package tokenizers: it has no model")


def check_config(given: dict[str, Any]) -> None:
    """Raise ``ValueError`` if the content of a config.json cannot be that of a model.

    transformers would fail with errors of its calculations, such as a division by zero, or not before the weights.
    """
    for name in COUNTS:
        value = given.get(name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int) or one < 1):
                raise ValueError(f"{name} in config.json must be a positive whole number, got {one!r}")
    heads, groups = given.get("num_attention_heads"), given.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ValueError(
            f"num_attention_heads in config.json must be a multiple of num_key_value_heads, got {heads} and {groups}"
        )
    for name in ACTIVATIONS:
        if isinstance(given.get(name), str) and given[name] not in ACT2FN:
            raise ValueError(f"{name} in config.json must be an activation of transformers, got {given[name]!r}")
    if isinstance(given.get("text_config"), dict):
        check_config(given["text_config"])


def check_tokenizer(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``ValueError`` if a tokenizer has no tokens, or tokens without an embedding.

    Tokens that were added to a tokenizer may have none: they are found where a text has them.
    """
    vocabulary = tokenizer.get_vocab()
    added = set(tokenizer.get_added_vocab())
    own = [place for token, place in vocabulary.items() if token not in added]
    if not own:
        raise ValueError("its tokenizer has an empty vocabulary: take tokenizer.json from where the weights are from")
    size = config.get_text_config(decoder=True).vocab_size
    if max(own) >= size:
        raise ValueError(
            f"its tokenizer has token ids up to {max(own)}, and config.json has a vocab_size of {size}: take both from "
            "where the weights are from"
        )


def check_files(folder: Path, config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Raise ``ValueError`` if the safetensors files of a folder do not fit a configuration, by their headers.

    Raises:
        SafetensorError: if a file is damaged.
    """
    found = shapes(folder)
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    there = 1 + max((int(number) for name in found for number in re.findall(r"\.(\d+)\.", name)), default=-1)
    if layers > max(there, MOST_LAYERS):
        # Such a model cannot even be built without weights.
        raise _layers(layers, there)
    if getattr(config, "quantization_config", None) is not None:
        # Packed weights have shapes of their own.
        return
    if type(config) not in AutoModelForCausalLM._model_mapping and not trust_remote_code:
        # Loading finds out whether it is one of them by another name.
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    check_names(model, found, all_of_them=True)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    check_shapes((name, shape, expected[name]) for name, shape in found.items() if expected.get(name, shape) != shape)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a folder's safetensors files, by name.

    Raises:
        ValueError: if there are none, or files that the index lists are missing.
        SafetensorError: if a file is damaged.
    """
    names = ["model.safetensors"]
    if (folder / INDEX).is_file() and not (folder / names[0]).is_file():
        files = read_object(folder / INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{INDEX} must have the file of each weight in weight_map, got {str(files)[:40]}")
        names = sorted(set(files.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"weights are missing: it has no {_some(missing)}")
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        # An error of its own for a file without permission; safetensors says that there is none.
        (folder / name).open("rb").close()
        with safe_open(folder / name, framework="pt") as file:
            found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no dict
    return found


def check_loaded(model: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless a model has all its weights, in their shapes, and all its layers.

    Args:
        model: the model.
        loading: what transformers says of its loading.
    """
    if loading["missing_keys"]:
        # transformers initialises them at random, which would invalidate every measurement.
        raise ValueError(f"weights are missing: {_some(loading['missing_keys'])}")
    check_shapes((name, tuple(there), tuple(here)) for name, there, here in loading["mismatched_keys"])
    check_names(model, loading["unexpected_keys"])


def check_shapes(differences: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> None:
    """Raise ``ValueError`` if there are weights of other shapes: name, shape in the file, and shape by config.json."""
    for name, there, here in sorted(differences):
        raise ValueError(f"{name} has the shape {list(there)} in the weights, and {list(here)} by config.json")


def check_names(model: PreTrainedModel, names: Iterable[str], *, all_of_them: bool = False) -> None:
    """Raise ``ValueError`` if weights belong to layers that a model does not have.

    Weights of other parts may be left over, such as those of a vision tower.

    Args:
        model: the model.
        names: names of weights.
        all_of_them: whether these are all weights, so that the model may not have further layers, either.
    """
    lists = {name: len(part) for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    counts: dict[str, int] = {}
    for name in names:
        place = re.match(r"(.+?)\.(\d+)\.", name)
        if place is not None and not any(pattern.search(name) for pattern in ignored):
            own = next((one for one in lists if one == place[1] or one.endswith(f".{place[1]}")), "")
            counts[own] = max(counts.get(own, 0), int(place[2]) + 1)
    for own, count in counts.items():
        if own and (count > lists[own] or (all_of_them and count < lists[own])):
            raise _layers(lists[own], count)


def _layers(here: int, there: int) -> ValueError:
    return ValueError(f"config.json has {here:,} layers, and the weights have {there:,}")


def _some(names: Iterable[str]) -> str:
    """Names in order, the first few of many."""
    ordered = sorted(names)
    rest = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
