"""Ranking, where the cache relies on it."""

import pytest
import torch

from pressgauge.presses.ranking import lowest


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_lowest_ranked_entries_are_named_in_ascending_order(count: int) -> None:
    """As sorting each head's ranks in Python names them."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.stack([torch.randperm(7, generator=generator) for _ in range(6)]).view(2, 3, 7)
    expected = [[sorted(sorted(range(7), key=head.__getitem__)[:count]) for head in row] for row in ranks.tolist()]
    assert lowest(ranks, count).tolist() == expected
