"""The fixture ``golden``."""

import pytest
import torch

from regression.golden import Golden
from regression.provenance import command


@pytest.fixture
def golden(request: pytest.FixtureRequest, device: torch.device) -> Golden:
    """Baselines of the chosen device."""
    return Golden(request, device, command(device))
