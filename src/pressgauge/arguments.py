"""Shared validation of arguments.

Each error message is one sentence with the value, the rule and the way out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

_LONGEST = 60
"""Maximum number of characters of a value quoted in a message."""


def described(value: object) -> str:
    """A short description of a value of the wrong type, for error messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def check_model(model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a transformers model, which may be wrapped."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model must be a transformers model, got {described(model)}: load one with from_pretrained, or with "
            "pressgauge.models.load, which gives the model and its tokenizer"
        )


def check_config(config: object) -> None:
    """Raise ``TypeError`` unless ``config`` is a transformers configuration."""
    if not isinstance(config, PretrainedConfig):
        raise TypeError(f"config must be a transformers configuration, got {described(config)}: give model.config")


def check_tensor(name: str, value: object, shape: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor; ``shape`` is only named in the message."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {described(value)}: make one with torch.tensor")


def strange_id(ids: Tensor, config: PretrainedConfig) -> tuple[int, int] | None:
    """A token id without an embedding, such as that of an added token, and the size of the model's vocabulary.

    None if all have one, or the configuration does not state the size.
    """
    size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    low, high = int(ids.min()), int(ids.max())
    return None if size is None or 0 <= low <= high < size else (low if low < 0 else high, size)


def check_ids(input_ids: object, least: int, config: PretrainedConfig) -> None:
    """Check that ``input_ids`` is a batch ``[B, T]`` of at least ``least`` token ids of a model per row.

    Raises:
        TypeError: if it is not a tensor of int64 or int32.
        ValueError: if it is not 2-D, is empty, has fewer tokens, or has an id without an embedding.
    """
    check_tensor("input_ids", input_ids, "[batch, tokens]")
    assert isinstance(input_ids, Tensor)
    if input_ids.dim() != 2 or not input_ids.shape[0] or input_ids.shape[1] < least:
        raise ValueError(
            f"input_ids must be [batch, tokens] with at least {_NUMBERS[least]}, got {list(input_ids.shape)}"
        )
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"input_ids must be token ids, int64 or int32, got {described(input_ids)}: convert them with .long()"
        )
    if strange := strange_id(input_ids, config):
        found, size = strange
        raise ValueError(
            f"input_ids must be token ids from 0 to {size - 1}, the model's vocabulary, got {found}: use the model's "
            "own tokenizer"
        )


_NUMBERS = {1: "one of each", 2: "two tokens"}


def context_of(config: PretrainedConfig) -> int | None:
    """Context length of a model in tokens; None if unlimited, as with ALiBi or no positions."""
    text: Any = config.get_text_config(decoder=True)
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1 or getattr(text, "alibi", False):
        return None
    # With YaRN, some configurations give the limit before extension, others after it.
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(limit, int(original * factor)) if original and factor else limit


def check_context(config: PretrainedConfig, tokens: int, name: str) -> None:
    """Raise ``ValueError`` if ``tokens``, given by argument ``name``, exceed a model's context."""
    limit = context_of(config)
    if limit is not None and tokens > limit:
        raise ValueError(f"{name} must fit the model's context of {limit} tokens, got {tokens}: give fewer")
