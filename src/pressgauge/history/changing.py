"""Replay of evictions with changing scores, pass by pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pressgauge.history.held import Held
from pressgauge.history.likeness import Likeness, compares
from pressgauge.history.record import History
from pressgauge.history.voting import Voting, follows
from pressgauge.presses.base import Press, rank_entries, score_entries
from pressgauge.presses.ranking import choose, last_choice, spare
from pressgauge.rules import Balance
from pressgauge.softmax import Softmax
from pressgauge.storage import heavy


def replay_changing(
    press: Press,
    keys: Tensor,
    layer: int,
    cuts: Sequence[Balance],
    padding: Sequence[int],
    queries: Tensor | None,
    scale: float,
    softmax: Softmax,
) -> Tensor:
    """Replay evictions with changing scores, each over the entries retained at the time.

    Args:
        press, keys, layer, padding, queries, scale: as in ``replay``.
        cuts: counts after each pass that evicts.
        softmax: softmax of the layer.

    Returns:
        ``evicted_at``: ``[B, K, T]`` int32.
    """
    keys = keys.detach()
    history = History(keys.shape[0], keys.shape[1], keys.device)
    held = Held(keys, padding)
    voting = None
    likeness = Likeness(held) if compares(press, keys) else None
    if press.needs_queries:
        assert queries is not None
        state = press.votes()
        voting = Voting(state, queries.detach(), held, scale, softmax, follows=follows(press, state))
    followers = [one for one in (voting, likeness) if one is not None]
    released = 0
    alone: list[Tensor] = []
    ends: list[int] = []
    """Positions of entries evicted alone, per pass, and the columns fed by its end."""
    for cut in cuts:
        known = held.known
        held.add(cut.columns)
        keep = cut.held[0]
        newest = press.protected(keep)
        # Protected entries are in the first and the last slots, unless some were evicted when they were not protected.
        single = not held.padded and bool(followers) and held.used - held.holes - keep == 1
        single = single and cut.columns - newest >= released
        released = max(released, cut.columns - newest)
        candidates = slice(press.sinks, held.used - newest)
        # Compacting moves the attention weights of all entries, which is expensive for a single eviction.
        slots = None
        if single and likeness is not None:
            slots = likeness.followed(candidates)
        elif single and voting is not None:
            slots = voting.followed(press, known, candidates)
        votes, kept = None if voting is None else voting.votes, None
        if voting is not None and slots is None:
            voting.observe(known, single)
        if single and slots is None:
            scores = score_entries(press, held.keys, held.positions, layer, votes)
            slots = last_choice(scores[..., candidates], held.empty[..., candidates]) + press.sinks
        if slots is not None:
            alone.append(heavy(held.drop(slots)))
            ends.append(cut.columns)
            for follower in followers:
                follower.drop(slots)
            if held.holes > keep // 4:
                kept = held.empty.long().argsort(dim=-1, stable=True)[..., :keep]
                stays = held.positions.gather(2, kept)
        else:
            positions = held.positions
            ranks = spare(press, rank_entries(press, held.keys, positions, layer, votes), positions, cut)
            kept, stays, gone = choose(ranks, positions, cut.held, ordered=not held.padded and not held.holes)
            # Holes rank last, and are not evictions.
            history.record(gone[..., : gone.shape[2] - held.holes], cut.padding, cut.columns)
        if kept is not None:
            held.keep(kept, stays)
            for follower in followers:
                follower.keep(kept)
    if alone:
        history.record(torch.stack(alone, dim=-1).unflatten(0, keys.shape[:2]), padding, ends)
    return history.evicted_at(keys.shape[2], padding)
