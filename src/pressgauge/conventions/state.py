"""State of a model, and of the functions that all models share, to find out what a compressor changed."""

import copy
import sys
import zlib
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
"""Attributes in which a module keeps its hooks."""

Fingerprint = dict[str, object]
"""State of each part of a model, by the part's name."""


def fingerprint(model: PreTrainedModel) -> Fingerprint:
    """Weights, buffers, hooks, attributes and attention implementation of a model's modules.

    It makes a single pass and keeps checksums of weights.
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
                bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
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


Functions = dict[str, dict[str, object]]
"""Functions of classes and modules, by the name of the class or module and their own."""

_SHARED = (
    "transformers.cache_utils",
    "transformers.generation.utils",
    "transformers.masking_utils",
    "transformers.modeling_rope_utils",
    "transformers.modeling_utils",
    "transformers.integrations.sdpa_attention",
    "torch.nn.functional",
    "torch.nn.modules.module",
)
"""Modules whose functions all models share; those of the models themselves are added."""


def functions() -> Functions:
    """Functions that models of a process share: of transformers' classes and modules, and of ``torch.nn``."""
    found: Functions = {}
    for name, module in list(sys.modules.items()):
        if name in _SHARED or (name.startswith("transformers.models.") and ".modeling_" in name):
            found[name] = _callables(module)
            for kind in list(vars(module).values()):
                if isinstance(kind, type) and kind.__module__ == name:
                    found[f"{name}.{kind.__qualname__}"] = _callables(kind)
    return found


def _callables(owner: ModuleType | type) -> dict[str, object]:
    kinds = (property, classmethod, staticmethod)
    return {name: value for name, value in vars(owner).items() if callable(value) or isinstance(value, kinds)}


ORIGINAL = functions()
"""Functions at the import of this module, before compressors are."""


def replaced(before: Functions) -> str:
    """Description of the first function that was replaced, added or removed since; empty if there is none."""
    now = functions()
    for owner, own in before.items():
        current = now.get(owner, {})
        for name in {**own, **current}:
            if own.get(name) is not current.get(name):
                by = _source(current.get(name))
                # transformers adds functions of its own on first use.
                if name not in own and by is not None and by.partition(".")[0] in ("torch", "transformers"):
                    continue
                return f"{owner}.{name} {'was removed' if by is None else f'is now that of {by}'}"
    return ""


def _source(value: Any) -> str | None:
    """Module that a function comes from, whatever it calls itself; None if there is none."""
    if value is None:
        return None
    value = getattr(value, "__func__", getattr(value, "fget", None)) or value
    names = getattr(value, "__globals__", {})
    return str(names.get("__name__") or getattr(value, "__module__", None) or type(value).__name__)


class Snapshot:
    """A model as it is, to put it back after a compressor.

    Args:
        model: the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._fingerprint, self._functions = fingerprint(model), functions()
        modules = list(model.modules())
        self._classes = [(module, type(module)) for module in modules]
        self._attributes = [
            (module, {name: (value, _content(value)) for name, value in vars(module).items()}) for module in modules
        ]
        configs = {id(config): config for module in modules if (config := vars(module).get("config")) is not None}
        self._configs = [(config, copy.deepcopy(vars(config))) for config in configs.values()]

    def difference(self) -> str:
        """Description of the first part that has changed since; empty if none has."""
        for module, kind in self._classes:
            if type(module) is not kind:
                return f"a {kind.__name__} is now a {type(module).__name__}"
        return difference(self._fingerprint, fingerprint(self._model)) or replaced(self._functions)

    def restore(self) -> None:
        """Undo changes to attributes, hooks, submodules, classes and configurations, but not to weights in place and
        to functions that all models share."""
        for module, kind in self._classes:
            module.__class__ = kind
        for module, own in self._attributes:
            vars(module).clear()
            for name, (value, content) in own.items():
                if content is not None:
                    # The same object, since handles of hooks refer to it.
                    value.clear()
                    value.update(content)
                vars(module)[name] = value
        for config, settings in self._configs:
            vars(config).clear()
            vars(config).update(copy.deepcopy(settings))


def _content(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict | set) else None
