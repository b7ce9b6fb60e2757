"""Guard over models shared by tests, which detects changes to them."""

import zlib

import torch
from torch import nn
from transformers import PreTrainedModel

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
"""Attributes in which a module keeps its hooks."""

Fingerprint = dict[str, object]
"""State of each part of a model, by the part's name."""

_GUARDED: dict[int, tuple[PreTrainedModel, Fingerprint]] = {}
_USED: set[int] = set()


def fingerprint(model: PreTrainedModel) -> Fingerprint:
    """Weights, buffers, hooks, attributes and attention implementation of a model's modules.

    Taken after every test, of the shared models it used, so it makes a single pass and keeps checksums of weights.
    """
    parts: Fingerprint = {}
    configs = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        parts[f"module {name}" if name else "the model"] = (
            frozenset(own),
            [len(own[hooks]) for hooks in HOOKS],
            module.training,
        )
        for key, tensor in (*own["_parameters"].items(), *own["_buffers"].items()):
            if tensor is not None:
                bits = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
                parts[f"weight {name}.{key}"] = (tensor.dtype, tensor.device, zlib.crc32(bits))
        if "config" in own:
            configs[id(own["config"])] = own["config"]
    for number, config in enumerate(configs.values()):
        parts[f"config {number}"] = (config._attn_implementation, repr(vars(config)))
    return parts


def difference(before: Fingerprint, after: Fingerprint) -> str:
    """Description of the first changed part; empty if none changed."""
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            what = "is new" if name not in before else "is gone" if name not in after else "has changed"
            return f"{name} {what}"
    return ""


def guarded(model: PreTrainedModel) -> PreTrainedModel:
    """Guard a model from now on. Must be called whenever a shared model is passed to a test."""
    if id(model) not in _GUARDED:
        _GUARDED[id(model)] = model, fingerprint(model)
    _USED.add(id(model))
    return model


def changed(*, everywhere: bool = False) -> list[str]:
    """Class names of guarded models that have changed.

    Args:
        everywhere: check all guarded models, not only those used since the last call.
    """
    asked = list(_GUARDED) if everywhere else list(_USED)
    _USED.clear()
    models = [_GUARDED[key] for key in asked]
    return [type(model).__name__ for model, before in models if fingerprint(model) != before]
