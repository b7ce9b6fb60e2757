"""Device of the models under test. The laws themselves check tensors on the CPU."""

import torch

_CHOSEN = [torch.device("cpu")]


def choose(device: torch.device) -> None:
    """Set the device of models created from now on; it must support float64."""
    _CHOSEN[0] = device


def chosen() -> torch.device:
    """Device of models under test."""
    return _CHOSEN[0]
