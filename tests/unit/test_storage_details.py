"""Storage against lists of entries."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge.storage import Storage, taken, writable


def filled(rows: int, heads: int, slots: int, used: int) -> Storage:
    """Keys of 3 numbers and positions, all different; the slots behind ``used`` hold what is nobody's."""
    storage = Storage(
        keys=torch.arange(rows * heads * slots * 3).view(rows, heads, slots, 3).double(),
        positions=torch.arange(rows * heads * slots).view(rows, heads, slots),
    )
    storage.used = used
    return storage


def entries(storage: Storage, name: str) -> Any:
    """What is held, per row and head."""
    return storage.held(name).tolist()


@pytest.mark.parametrize("chosen", [[4], [0], [1], [0, 4], [3, 4], [0, 1], [1, 2, 4], [0, 1, 2, 3, 4]])
def test_refilling_leaves_each_head_its_other_entries(chosen: list[int]) -> None:
    """In any order, the same for all tensors; what lay in other slots is not moved."""
    storage = filled(2, 2, 7, 5)
    before = {name: entries(storage, name) for name in storage}
    other = [4 - slot for slot in reversed(chosen)]
    slots = torch.tensor([[chosen, other], [other, chosen]])
    storage.refill(slots)
    assert storage.used == 5 - len(chosen)
    for row, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        gone = slots[row, head].tolist()
        pairs = list(zip(before["keys"][row][head], before["positions"][row][head], strict=True))
        left = [pair for slot, pair in enumerate(pairs) if slot not in gone]
        found = list(zip(entries(storage, "keys")[row][head], entries(storage, "positions")[row][head], strict=True))
        assert sorted(found, key=lambda pair: pair[1]) == left
        for slot in range(storage.used):
            assert slot in gone or found[slot] == pairs[slot]


def test_entries_are_taken_in_the_order_of_the_index() -> None:
    """From each head its own, out of storage that may be a view; what is known already is not taken again."""
    index = torch.tensor([[[4, 0], [1, 1]], [[2, 3], [0, 4]]])
    storage = filled(2, 2, 7, 5)
    keys, positions = storage["keys"].tolist(), storage["positions"].tolist()
    expected = [[[keys[r][h][i] for i in index[r, h]] for h in range(2)] for r in range(2)]
    assert taken(storage["keys"], index).tolist() == expected
    assert taken(storage["keys"].mT.contiguous().mT, index).tolist() == expected
    assert taken(storage["keys"][:, :, :5], index).tolist() == expected
    storage.take(index)
    assert storage.used == 2
    assert storage["keys"].tolist() == expected
    assert storage["positions"].tolist() == [
        [[positions[r][h][i] for i in index[r, h]] for h in range(2)] for r in range(2)
    ]
    known = torch.zeros(2, 2, 1, 3)
    storage.take(torch.ones(2, 2, 1, dtype=torch.long), keys=known)
    assert storage["keys"] is known
    assert storage["positions"].shape == (2, 2, 1)


@pytest.mark.parametrize(
    ("slots", "room", "size"), [(7, 9, 7), (8, 9, 9), (8, 8, 8), (10, 9, 10), (5, 9, 7), (8, 3, 8)]
)
def test_storage_grows_where_it_has_to(slots: int, room: int, size: int) -> None:
    """To the room that is asked for, or to what is needed if that is more; entries stay."""
    storage = filled(2, 2, 7, 5)
    before = {name: (tensor, entries(storage, name)) for name, tensor in storage.items()}
    storage.reserve(slots, room)
    for name, (tensor, held) in before.items():
        assert storage[name].shape == (2, 2, size, *tensor.shape[3:])
        assert storage[name].dtype == tensor.dtype
        assert (storage[name] is tensor) is (size == 7)
        assert entries(storage, name) == held


@pytest.mark.parametrize(("room", "size"), [(8, 7), (7, 7), (6, 5), (5, 5), (0, 5)])
def test_storage_shrinks_to_what_is_held_where_there_is_more_room(room: int, size: int) -> None:
    """And frees the rest; entries stay, and are not copied where nothing is freed."""
    storage = filled(2, 2, 7, 5)
    if room == 7:
        storage.used = 7
    before, tensors = {name: entries(storage, name) for name in storage}, dict(storage)
    storage.trim(room)
    assert {name: entries(storage, name) for name in storage} == before
    assert [storage[name] is tensors[name] for name in storage] == [size == 7] * 2
    assert [storage[name].shape[2] for name in storage] == [size, size]
    assert storage.nbytes("keys") == 2 * 2 * size * 3 * 8
    assert storage.nbytes("positions", "keys", "ranks") == 2 * 2 * size * 4 * 8


def test_entries_are_put_where_they_are_to_be() -> None:
    """From a slot on, as many as there are."""
    storage = filled(1, 1, 7, 5)
    storage.put("positions", 3, torch.tensor([[[70, 71]]]))
    assert storage["positions"].tolist() == [[[0, 1, 2, 70, 71, 5, 6]]]


def test_slots_without_an_entry_are_zeroed() -> None:
    """Keys and values of them, and neither positions nor what lies behind."""
    storage = filled(1, 2, 4, 3)
    storage["values"] = storage["keys"] + 1
    empty = torch.tensor([[[True, False, False], [False, False, True]]])
    storage.zero(empty)
    for name, offset in (("keys", 0), ("values", 1)):
        expected = (torch.arange(24).view(1, 2, 4, 3) + offset).double()
        expected[0, 0, 0] = expected[0, 1, 2] = 0
        assert torch.equal(storage[name], expected)
    assert torch.equal(storage["positions"], torch.arange(8).view(1, 2, 4))
    bare = Storage(positions=torch.zeros(1, 2, 4))
    bare.used = 3
    bare.zero(empty)


def test_rows_change_places() -> None:
    """In all tensors, and with all their heads."""
    storage = filled(3, 2, 4, 3)
    before = {name: tensor.clone() for name, tensor in storage.items()}
    storage.select(torch.tensor([2, 0, 0]))
    for name, tensor in before.items():
        assert torch.equal(storage[name], torch.stack([tensor[2], tensor[0], tensor[0]]))
    assert storage.used == 3


def test_what_inference_mode_made_is_copied_to_be_written_to() -> None:
    """Outside it only; other tensors are left alone."""
    with torch.inference_mode():
        made = torch.zeros(1, 1, 2, 3)
        assert writable(made) is made
    plain = torch.zeros(1, 1, 2, 3)
    assert writable(plain) is plain
    copied: Tensor = writable(made)
    assert copied is not made
    assert not copied.is_inference()
    storage = Storage(keys=made, values=plain)
    storage.used = 2
    storage.reserve(2, 2)
    assert storage["values"] is plain
    assert not storage["keys"].is_inference()
    assert storage["keys"].tolist() == made.tolist()
