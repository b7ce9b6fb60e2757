"""The fixture ``golden``."""

import pytest
import torch

from regression.golden import Golden


@pytest.fixture
def golden(request: pytest.FixtureRequest, device: torch.device) -> Golden:
    """The baselines of the device that was asked for."""
    return Golden(request, device)
