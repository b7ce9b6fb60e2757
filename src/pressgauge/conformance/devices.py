"""The device that models under test are on. What a law looks at is on the CPU."""

import torch

_CHOSEN = [torch.device("cpu")]


def choose(device: torch.device) -> None:
    """Put models that are made from now on there; they need float64."""
    _CHOSEN[0] = device


def chosen() -> torch.device:
    """Where models under test are."""
    return _CHOSEN[0]
