"""A guard over models that tests share: whoever changes one is found out."""

import zlib

import torch
from transformers import PreTrainedModel

_GUARDED: list[tuple[PreTrainedModel, str]] = []


def fingerprint(model: PreTrainedModel) -> str:
    """Weights, hooks, attributes and attention implementation of a model and all its modules, in one word."""
    parts: list[object] = []
    for name, tensor in model.state_dict().items():
        bits = tensor.cpu().contiguous().view(torch.uint8).numpy()
        parts += [name, tensor.dtype, tensor.device, zlib.crc32(bits)]
    configs = {}
    for name, module in model.named_modules():
        hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks")]
        parts += [name, hooks, module.training, sorted(vars(module))]
        if hasattr(module, "config"):
            configs[id(module.config)] = module.config
    parts += [(config._attn_implementation, config.to_dict()) for config in configs.values()]
    return repr(parts)


def guarded(model: PreTrainedModel) -> PreTrainedModel:
    """Watch over this model from now on."""
    _GUARDED.append((model, fingerprint(model)))
    return model


def changed() -> list[str]:
    """The kinds of guarded models that are not what they were."""
    return [type(model).__name__ for model, before in _GUARDED if fingerprint(model) != before]
