"""A guard over models that tests share: whoever changes one is found out."""

import hashlib

import torch
from transformers import PreTrainedModel

_GUARDED: list[tuple[PreTrainedModel, str]] = []


def fingerprint(model: PreTrainedModel) -> str:
    """Weights, hooks, attributes and attention implementation of a model and all its modules, in one word."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tensor.device}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks")]
        digest.update(f"{name} {hooks} {module.training} {sorted(vars(module))}".encode())
        if hasattr(module, "config"):
            digest.update(f"{module.config._attn_implementation} {module.config.to_dict()}".encode())
    return digest.hexdigest()


def guarded(model: PreTrainedModel) -> PreTrainedModel:
    """Watch over this model from now on."""
    _GUARDED.append((model, fingerprint(model)))
    return model


def changed() -> list[str]:
    """The kinds of guarded models that are not what they were."""
    return [type(model).__name__ for model, before in _GUARDED if fingerprint(model) != before]
