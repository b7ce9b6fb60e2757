"""NLL on other devices than the CPU."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pressgauge.likelihood import _score
from support.accelerator import accelerator

LOGITS = torch.randn(2, 70, 11, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(11, (2, 70), generator=torch.Generator().manual_seed(1))


def test_logits_are_scored_where_they_are() -> None:
    """On an accelerator NLL and hits equal those of the CPU, and the results are on the CPU."""
    expected = _score(LOGITS, TARGETS)
    with accelerator() as device:
        found = _score(LOGITS.to(device), TARGETS.to(device))
        elsewhere = _score(LOGITS.to(device), TARGETS)
    for result in (found, elsewhere):
        assert all(tensor.device.type == "cpu" for tensor in result)
        assert all(map(torch.equal, result, expected))


class OnApple:
    """Logits that state Apple's device, and note where they are copied to."""

    device = SimpleNamespace(type="mps")

    def __init__(self, logits: Tensor, copied: list[torch.device]) -> None:
        self.logits, self.dtype, self.copied = logits, logits.dtype, copied

    def __getitem__(self, index: Any) -> "OnApple":
        return OnApple(self.logits[index], self.copied)

    def to(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        self.copied.append(device)
        return self.logits.to(device, dtype)


def test_apples_devices_score_on_the_cpu() -> None:
    """They have no float64, so that each block of logits is copied."""
    copied: list[torch.device] = []
    logits: Any = OnApple(LOGITS, copied)
    assert all(map(torch.equal, _score(logits, TARGETS), _score(LOGITS, TARGETS)))
    assert copied == [torch.device("cpu")] * 4
