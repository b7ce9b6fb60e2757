"""The record of evictions, beyond what a cache makes of it."""

import torch

from pressgauge.history import NEVER, History, first_evictions
from support.accelerator import accelerator


def filled(device: torch.device) -> History:
    """Two rows of two heads, with evictions in two passes; the second row has 3 columns of padding."""
    history = History(2, 2, device)
    history.record(torch.tensor([[[0, 2], [1, 3]], [[0, -1], [1, -1]]], device=device), [0, 3], 6)
    history.record(torch.tensor([[[70], [5]], [[3], [67]]], device=device), [0, 3], 80)
    return history


def table(history: History, columns: int) -> torch.Tensor:
    return history.evicted_at(columns, [0, 3]).cpu()


def test_evictions_are_recorded_by_column() -> None:
    """Each column of a head has the length of the text at the end of the pass that evicted it, and padding has 0."""
    found = filled(torch.device("cpu")).evicted_at(82, [0, 3])
    assert found.dtype == torch.int32
    expected = torch.full((2, 2, 82), NEVER, dtype=torch.int32)
    expected[1, :, :3] = 0
    for row, head, column, seen in ((0, 0, 0, 6), (0, 0, 2, 6), (0, 1, 1, 6), (0, 1, 3, 6), (1, 0, 3, 6), (1, 1, 4, 6)):
        expected[row, head, column] = seen
    for row, head, column in ((0, 0, 70), (0, 1, 5), (1, 0, 6), (1, 1, 70)):
        expected[row, head, column] = 80
    assert found.equal(expected)


def test_a_history_is_on_its_device() -> None:
    """Recorded, read and reordered there, it equals that of the CPU."""
    own = filled(torch.device("cpu"))
    with accelerator() as device:
        away = filled(device)
        assert away.evicted_at(82, [0, 3]).device == device
        for columns in (3, 82, 200):
            assert table(away, columns).equal(table(own, columns))
        for history in (away, own):
            history.select(torch.tensor([1, 0]))
        assert table(away, 82).equal(table(own, 82))


def test_the_first_eviction_of_a_row_is_that_of_any_layer_and_head() -> None:
    """Padding is no eviction, whether tables are on the CPU or not."""
    one = torch.tensor([[[0, 7, NEVER], [0, 9, 8]], [[NEVER, 5, 6], [9, 9, NEVER]], [[0, NEVER, NEVER]] * 2])
    other = torch.tensor([[[0, 6, NEVER]], [[7, 7, 7]], [[0, 0, NEVER]]])
    assert first_evictions([one, other]).tolist() == [6, 5, NEVER]
    assert first_evictions([one]).tolist() == [7, 5, NEVER]
    with accelerator() as device:
        away = first_evictions(table.to(device) for table in (other, one))
    assert away.device.type == "cpu"
    assert away.tolist() == [6, 5, NEVER]


def test_evictions_of_several_passes_are_recorded_at_once() -> None:
    """As one by one."""
    one, other = (History(1, 2, torch.device("cpu")) for _ in range(2))
    positions, ends = torch.tensor([[[4, 0, 70], [1, 5, 2]]]), [6, 8, 90]
    one.record(positions, [0], ends)
    for place, end in enumerate(ends):
        other.record(positions[..., place : place + 1], [0], end)
    assert one.evicted_at(100, [0]).equal(other.evicted_at(100, [0]))
