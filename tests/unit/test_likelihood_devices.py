"""NLL on other devices than the CPU."""

import torch

from pressgauge.likelihood import score
from support.accelerator import accelerator, noted

LOGITS = torch.randn(2, 70, 11, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(11, (2, 70), generator=torch.Generator().manual_seed(1))


def test_logits_are_scored_where_they_are() -> None:
    """On an accelerator NLL and hits equal those of the CPU, and the results are on the CPU."""
    expected = score(LOGITS, TARGETS)
    with accelerator() as device:
        found = score(LOGITS.to(device), TARGETS.to(device))
        elsewhere = score(LOGITS.to(device), TARGETS)
    for result in (found, elsewhere):
        assert all(tensor.device.type == "cpu" for tensor in result)
        assert all(map(torch.equal, result, expected))


def test_apples_devices_score_on_the_cpu() -> None:
    """They have no float64, so that the logits are copied, 64 tokens at a time; others score on their own device."""
    expected = score(LOGITS, TARGETS)
    for apple in (True, False):
        with noted(LOGITS, apple=apple) as (logits, where, copied):
            assert all(map(torch.equal, score(logits, TARGETS), expected))
        assert copied == [(64, where), (6, copied[0][1])] * 2
