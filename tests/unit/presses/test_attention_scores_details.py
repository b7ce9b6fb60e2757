"""What attention state remembers, and for how long."""

import torch

from pressgauge.presses.attention_scores import Attention, LastQueries


def observe(votes: LastQueries, *lengths: int) -> None:
    """Passes of these lengths, of 1 row, 2 query heads and 4 dimensions in float64."""
    for length in lengths:
        states = torch.ones(1, 2, length, 4, dtype=torch.float64)
        votes.observe(Attention(states, states, None, 1.0))


def test_queries_that_left_the_window_are_not_remembered() -> None:
    """At any time no more than the window and the rest of the pass that its oldest query came in."""
    query = 2 * 4 * 8
    for most, lengths, remembered in ((2, (1, 1, 1), 2), (2, (1,), 1), (3, (2, 2), 4), (3, (2, 1, 2), 3), (2, (5,), 2)):
        votes = LastQueries(most)
        observe(votes, *lengths)
        assert votes.nbytes == remembered * query
        assert votes.queries.shape[2] == min(most, sum(lengths))
        assert votes.nbytes == min(most, sum(lengths)) * query
