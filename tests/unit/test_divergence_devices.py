"""Divergence on other devices than the CPU."""

import pytest
import torch

from pressgauge import divergence as distance
from pressgauge.divergence import Held, divergence, top1
from support.accelerator import accelerator, noted

LOGITS, REFERENCE = torch.randn(2, 2, 70, 11, generator=torch.Generator().manual_seed(0))
TOP = top1(REFERENCE)


def test_distributions_are_compared_where_they_are() -> None:
    """On an accelerator, with the reference there or on the CPU, results equal those of the CPU, and are on the CPU."""
    expected = divergence(LOGITS, REFERENCE, TOP)
    with accelerator() as device:
        found = divergence(LOGITS.to(device), REFERENCE.to(device), TOP)
        elsewhere = divergence(LOGITS.to(device), REFERENCE, TOP)
    for result in (found, elsewhere):
        assert all(tensor.device.type == "cpu" for tensor in result)
        assert all(map(torch.equal, result, expected))


def test_apples_devices_compare_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no float64, so that the logits are copied, a block at a time; others compare on their own device."""
    monkeypatch.setattr(distance, "_BLOCK", 64 * 11)
    expected = divergence(LOGITS, REFERENCE, TOP)
    for apple in (True, False):
        with noted(LOGITS, apple=apple) as (logits, where, copied):
            assert all(map(torch.equal, divergence(logits, REFERENCE, TOP), expected))
        assert copied == [(64, where), (6, where)] * 2


def test_logits_of_an_accelerator_are_held_in_the_main_memory() -> None:
    """Those of the same piece are returned from there, those of others on the accelerator; predictions are on the
    CPU."""
    held = Held(1 << 30, lambda rows, columns: LOGITS)
    with accelerator() as device:
        held.reference([0, 1], slice(0, 70), REFERENCE.to(device))
        held.open = False
        whole, top = held.reference([0, 1], slice(0, 70), LOGITS.to(device))
        part, part_top = held.reference([1], slice(5, 9), LOGITS[1:, 5:9].to(device))
        assert (whole.device.type, part.device) == ("cpu", device)
        assert torch.equal(part.cpu(), REFERENCE[1:, 5:9])
    assert torch.equal(whole, REFERENCE)
    assert (top.device.type, part_top.device.type) == ("cpu", "cpu")
    assert torch.equal(top, TOP)
    assert torch.equal(part_top, TOP[1:, 5:9])
