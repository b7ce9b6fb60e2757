"""Black-box audit: a cache's eviction history, from matching its entries with its inputs.

The cache's own record is not used. Each stored entry is searched for among the entries passed in, which gives the
history of every token, ``evicted_at``, and the first violation.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pressgauge.conformance.oracle import NEVER
from pressgauge.conformance.outcomes import Departure
from pressgauge.conformance.reading import Entries
from pressgauge.conformance.session import Trace

GONE = -1


@dataclass(frozen=True)
class Held:
    """Tokens of one layer's entries after one pass."""

    positions: Tensor
    """``[B, K, N]`` in the order of storage; -1 at padding slots."""
    ambiguous: int
    """Number of entries that match several tokens."""


class Audit:
    """Token-level analysis of a trace.

    Args:
        trace: run of a subject on a text without padded rows.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    @cached_property
    def held(self) -> list[list[Held]]:
        """Entries per pass and layer.

        Raises:
            Departure: at the first entry that was not passed in, or on a wrong dtype or shape.
        """
        trace = self.trace
        result: list[list[Held]] = []
        for number, one in enumerate(trace.passes):
            layers = []
            for layer in range(trace.layers):
                before = result[-1][layer].positions if result else None
                layers.append(self.match(layer, number, before))
            result.append(layers)
            assert len(one.held) >= trace.layers, "the harness cannot read all layers of this cache"
        return result

    def match(self, layer: int, number: int, before: Tensor | None) -> Held:
        """Tokens of a layer's entries after a pass; ``before`` has those after the pass before."""
        own_keys, own_values = self.trace.arrived(layer, number + 1)
        keys, values = self.checked(layer, number)
        same_key, same_value = _equal(keys, own_keys), _equal(values, own_values)
        both = same_key & same_value
        matches = both.sum(-1)
        padding = (keys == 0).all(-1) & (values == 0).all(-1) & (matches == 0)
        missing = torch.nonzero((matches == 0) & ~padding)
        if len(missing):
            self._explain(missing[0].tolist(), layer, number, same_key, same_value)
        positions = both.int().argmax(-1).masked_fill(padding, GONE)
        ambiguous = int((matches > 1).sum())
        if ambiguous:
            self._resolve(positions, both, before, self.trace.passes[number].start)
        return Held(positions, ambiguous)

    def checked(self, layer: int, number: int) -> Entries:
        """Entries of a layer after a pass.

        Raises:
            Departure: if their dtype or shape is wrong.
        """
        one = self.trace.passes[number]
        keys, values = one.held[layer]
        own_keys, own_values = self.trace.arrived(layer, number + 1)
        where = f"after pass {number} ({one.end} tokens seen), layer {layer}"
        for name, tensor, own in (("keys", keys, own_keys), ("values", values, own_values)):
            if tensor.dtype != own.dtype:
                raise Departure(f"{where} holds {name} in {tensor.dtype}, and was passed them in {own.dtype}")
        if keys.shape[:2] != own_keys.shape[:2] or keys.shape[:3] != values.shape[:3]:
            raise Departure(
                f"{where} holds keys {list(keys.shape)} and values {list(values.shape)}; both must start with "
                f"{list(own_keys.shape[:2])} and hold equally many entries"
            )
        return keys, values

    @staticmethod
    def _resolve(positions: Tensor, both: Tensor, before: Tensor | None, start: int) -> None:
        """Assign different tokens to equal entries: the earliest retained one not yet assigned."""
        rows, heads, _ = positions.shape
        for row in range(rows):
            for head in range(heads):
                there = set() if before is None else set(before[row, head].tolist())
                taken: set[int] = set()
                for place, position in enumerate(positions[row, head].tolist()):
                    if position == GONE:
                        continue
                    options = torch.nonzero(both[row, head, place])[:, 0].tolist()
                    free = [token for token in options if token not in taken] or options
                    alive = [token for token in free if token >= start or token in there] or free
                    positions[row, head, place] = alive[0]
                    taken.add(alive[0])

    def _explain(self, at: list[int], layer: int, number: int, same_key: Tensor, same_value: Tensor) -> None:
        row, head, place = at
        one = self.trace.passes[number]
        where = f"after pass {number} ({one.end} tokens seen), layer {layer}, row {row}, KV head {head}, entry {place}"
        tokens = [torch.nonzero(same[row, head, place])[:, 0].tolist() for same in (same_key, same_value)]
        if tokens[0] and tokens[1]:
            raise Departure(f"{where} pairs the key of token {tokens[0][0]} with the value of token {tokens[1][0]}")
        name, index = ("value", 1) if tokens[0] else ("key", 0)
        mine = one.held[layer][index][row, head, place]
        arrived = self.trace.arrived(layer, number + 1)[index][row, head]
        change = (arrived - mine).double().norm(dim=-1) / arrived.double().norm(dim=-1).clamp(min=1e-30)
        nearest = int(change.nan_to_num(torch.inf).argmin())
        raise Departure(
            f"{where} has a {name} that was never passed in; the nearest is that of token {nearest}, at a relative "
            f"distance of {float(change[nearest]):.2g}"
        )

    @cached_property
    def alive(self) -> list[Tensor]:
        """Whether a token was retained after a pass: per layer, ``[passes, B, K, T]`` bool.

        Raises:
            Departure: if a token is stored twice, or returns after its eviction.
        """
        trace = self.trace
        tokens = trace.ids.shape[1]
        layers = []
        for layer in range(trace.layers):
            states: list[Tensor] = []
            for number, one in enumerate(trace.passes):
                positions = self.held[number][layer].positions
                count = torch.zeros((*positions.shape[:2], tokens + 1), dtype=torch.int, device=positions.device)
                index = positions.long().masked_fill(positions < 0, tokens)
                count.scatter_add_(2, index, torch.ones_like(index, dtype=torch.int))
                count = count[..., :tokens]
                if len(twice := torch.nonzero(count > 1)):
                    row, head, token = twice[0].tolist()
                    raise Departure(
                        f"after pass {number} ({one.end} tokens seen), layer {layer}, row {row}, KV head {head} "
                        f"holds token {token} in {int(count[row, head, token])} entries"
                    )
                now = count.bool()
                if states:
                    old = states[-1].clone()
                    old[..., one.start : one.end] = True
                    if len(back := torch.nonzero(now & ~old)):
                        row, head, token = back[0].tolist()
                        raise Departure(
                            f"layer {layer}, row {row}, KV head {head} evicted token {token} before pass {number} and "
                            f"holds it again after {one.end} tokens"
                        )
                states.append(now)
            layers.append(torch.stack(states))
        return layers

    @cached_property
    def evicted_at(self) -> list[Tensor]:
        """Tokens seen by the end of the pass that evicted a token: per layer, ``[B, K, T]`` int32."""
        tables = []
        ends = torch.tensor([one.end for one in self.trace.passes])
        for states in self.alive:
            tokens = states.shape[-1]
            table = torch.full(states.shape[1:], NEVER, dtype=torch.int32, device=states.device)
            # From the last pass to the first, so that the earliest pass after which a token is missing wins.
            for number in reversed(range(len(ends))):
                fed = torch.arange(tokens, device=states.device) < ends[number]
                table = torch.where(fed & ~states[number], int(ends[number]), table)
            tables.append(table)
        return tables

    @property
    def ambiguous(self) -> int:
        """Number of times an entry matched several tokens."""
        return sum(layer.ambiguous for one in self.held for layer in one)


def _equal(held: Tensor, arrived: Tensor) -> Tensor:
    """Whether stored and passed-in vectors are equal, with NaN equal to NaN: ``[B, K, N, T]``."""
    if held.isnan().any() or arrived.isnan().any():
        marker = torch.finfo(arrived.dtype).max
        held, arrived = (
            held.nan_to_num(marker, torch.inf, -torch.inf),
            arrived.nan_to_num(marker, torch.inf, -torch.inf),
        )
    return (held[:, :, :, None] == arrived[:, :, None]).all(-1)
