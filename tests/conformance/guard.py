"""A guard over models that tests share: whoever changes one is found out."""

import zlib

import torch
from transformers import PreTrainedModel

Fingerprint = dict[str, str]
"""What there is to know of each part of a model, by the part's name."""

_GUARDED: list[tuple[PreTrainedModel, Fingerprint]] = []


def fingerprint(model: PreTrainedModel) -> Fingerprint:
    """Weights, hooks, attributes and attention implementation of a model and all its modules."""
    parts: dict[str, object] = {}
    for name, tensor in model.state_dict().items():
        bits = tensor.cpu().contiguous().view(torch.uint8).numpy()
        parts[f"weight {name}"] = (tensor.dtype, tensor.device, zlib.crc32(bits))
    configs = {}
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks")]
        parts[f"module {name}"] = (hooks, module.training, sorted(vars(module)))
        if hasattr(module, "config"):
            configs[id(module.config)] = module.config
    for number, config in enumerate(configs.values()):
        parts[f"config {number}"] = (config._attn_implementation, config.to_dict())
    return {name: repr(part) for name, part in parts.items()}


def difference(before: Fingerprint, after: Fingerprint) -> str:
    """The first part that is not what it was, in words; nothing if all are."""
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            what = "is new" if name not in before else "is gone" if name not in after else "has changed"
            return f"{name} {what}"
    return ""


def guarded(model: PreTrainedModel) -> PreTrainedModel:
    """Watch over this model from now on."""
    _GUARDED.append((model, fingerprint(model)))
    return model


def changed() -> list[str]:
    """The kinds of guarded models that are not what they were."""
    return [type(model).__name__ for model, before in _GUARDED if fingerprint(model) != before]
