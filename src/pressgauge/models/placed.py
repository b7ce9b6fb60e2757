"""Models on several devices: layers placed by accelerate, also in main memory and on disk, or shared by processes."""

from collections.abc import Iterator, Mapping
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

DeviceMap = str | Mapping[str, Any]
"""Device of each module, by its name; or ``auto``, by the memory that is free."""

_FOLDERS = "_pressgauge_offload"


def placing(device_map: DeviceMap) -> tuple[dict[str, Any], TemporaryDirectory[str]]:
    """Arguments of ``from_pretrained`` for a device map, and the folder for weights that are on disk."""
    folder = TemporaryDirectory(prefix="pressgauge-offload-", ignore_cleanup_errors=True)
    given = device_map if isinstance(device_map, str) else dict(device_map)
    return {"device_map": given, "offload_folder": folder.name}, folder


def own(model: PreTrainedModel, folder: TemporaryDirectory[str]) -> None:
    """Delete the folder of a model's weights with the model."""
    object.__setattr__(model, _FOLDERS, folder)


def input_device(model: PreTrainedModel) -> torch.device:
    """Device of a model's input, also if its first weights are in main memory or on disk between passes."""
    if model.device.type != "meta":
        return model.device
    devices = [torch.device(at) for at in getattr(model, "hf_device_map", {}).values() if at != "disk"]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def where(model: PreTrainedModel, device: torch.device) -> str:
    """Device of a model, or all of its devices with a device map."""
    found = getattr(model, "hf_device_map", None)
    if not found:
        return str(device)
    return ", ".join(dict.fromkeys(f"cuda:{at}" if isinstance(at, int) else str(at) for at in found.values()))


def weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers by name, in its order; those that are on disk, or that processes share, one by one."""
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, DTensor):
            yield name, weight.full_tensor()
            continue
        if weight.device.type != "meta":
            yield name, weight
            continue
        from accelerate.utils import align_module_device

        module, _, own_name = name.rpartition(".")
        with align_module_device(model.get_submodule(module), torch.device("cpu")):
            yield name, getattr(model.get_submodule(module), own_name)
