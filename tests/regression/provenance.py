"""Provenance of baselines, and their folders."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from pressgauge.bench.provenance import versions

BASELINES = Path(__file__).parents[2] / "baselines"


def folder(device: torch.device) -> Path:
    """Folder of a device's baselines: ``cpu``, ``mps``, or ``cuda/`` and the architecture."""
    if device.type != "cuda":
        return BASELINES / device.type
    major, minor = torch.cuda.get_device_capability(device)
    return BASELINES / "cuda" / f"sm_{major}{minor}"


def processor(device: torch.device) -> str:
    """Model name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, str | int]:
    """Description of the machine that a time depends on."""
    return {"processor": processor(device), "cores": os.cpu_count() or 1, "threads": torch.get_num_threads()}


def command(device: torch.device) -> str:
    """Command that records the baselines of a device."""
    return "nox -s baselines" + ("" if device.type == "cpu" else f" -- --device {device.type}")


def provenance(device: torch.device, dtype: str, by: str) -> dict[str, str | int]:
    """Versions, machine, dtype, date and the command that records."""
    return {
        **versions(),
        **machine(device),
        "dtype": dtype,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": by,
    }


def series() -> str:
    """Releases of torch and transformers, which identify baselines of costs: ``torch-2.13.0-transformers-5.23.0``.

    Build labels, such as ``+cpu``, are removed.
    """
    found = versions()
    return "-".join(f"{name}-{found[name].partition('+')[0]}" for name in ("torch", "transformers"))
