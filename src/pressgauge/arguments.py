"""Checks of arguments before any work, shared by all that take them: each raises one sentence with the value, the rule
and the way out."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

_LONGEST = 60
"""Characters of a value that a sentence quotes."""


def described(value: object) -> str:
    """A value of the wrong kind, in a few words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def check_model(model: object) -> None:
    """Raise a ``TypeError`` unless this is a model of transformers, which may be wrapped."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model must be a transformers model, got {described(model)}: load one with from_pretrained, or with "
            "pressgauge.models.load, which gives the model and its tokenizer"
        )


def check_config(config: object) -> None:
    """Raise a ``TypeError`` unless this is a configuration of transformers."""
    if not isinstance(config, PretrainedConfig):
        raise TypeError(f"config must be a transformers configuration, got {described(config)}: give model.config")


def check_tensor(name: str, value: object, shape: str) -> None:
    """Raise a ``TypeError`` unless this is a tensor, which is to be of this shape."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {described(value)}: make one with torch.tensor")


def check_ids(input_ids: object, least: int) -> None:
    """Raise a ``TypeError`` or ``ValueError`` unless this is a batch of token ids, with ``least`` tokens or more."""
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


_NUMBERS = {1: "one of each", 2: "two tokens"}


def context_of(config: PretrainedConfig) -> int | None:
    """The tokens that a model was made for, None if it has no limit, as with ALiBi or without any positions."""
    text: Any = config.get_text_config(decoder=True)
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1 or getattr(text, "alibi", False):
        return None
    # Under YaRN some configurations have the limit before the stretching there, others that after it.
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(limit, int(original * factor)) if original and factor else limit


def check_context(config: PretrainedConfig, tokens: int, name: str) -> None:
    """Raise a ``ValueError`` if ``tokens`` tokens, which ``name`` gives, are more than a model was made for."""
    limit = context_of(config)
    if limit is not None and tokens > limit:
        raise ValueError(f"{name} must fit the model's context of {limit} tokens, got {tokens}: give fewer")
