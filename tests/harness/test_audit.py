"""The audit reconstructs histories and describes violations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.ours import SUBJECTS
from pressgauge.conformance.audit import Audit
from pressgauge.conformance.oracle import NEVER
from pressgauge.conformance.outcomes import Departure
from pressgauge.conformance.scripted import scripted
from pressgauge.conformance.session import Pass, Trace
from pressgauge.conformance.strategies import HEADS
from pressgauge.conformance.versions import cache_of

KEYS = torch.arange(1.0, 13).view(1, 1, 6, 2)
VALUES = -KEYS


def traced(held: list[tuple[Tensor, Tensor]], lengths: list[int], keys: Tensor = KEYS) -> Audit:
    """Audit of one layer that was passed ``keys`` in passes of these lengths, and held ``states`` after them."""
    model: Any = None
    trace = Trace(SUBJECTS[0], {}, model, torch.zeros(1, sum(lengths), dtype=torch.long))
    start = 0
    for length, (own_keys, own_values) in zip(lengths, held, strict=True):
        new = slice(start, start + length)
        arrived = {0: (keys[:, :, new], -keys[:, :, new])}
        trace.passes.append(Pass(start, length, torch.zeros(1, length, 1), arrived, [(own_keys, own_values)], None))
        start += length
    return Audit(trace)


def of(*tokens: int, keys: Tensor = KEYS) -> tuple[Tensor, Tensor]:
    """Entries of these tokens, in this order."""
    index = list(tokens)
    return keys[:, :, index], -keys[:, :, index]


def test_the_history_follows_from_the_held_entries() -> None:
    """The audit derives the eviction history from held entries in any order of storage."""
    audit = traced([of(0, 1, 2, 3), of(4, 3, 0), of(0, 4)], [4, 1, 1])
    assert audit.evicted_at[0].tolist() == [[[NEVER, 5, 5, 6, NEVER, 6]]]
    assert audit.held[1][0].positions.tolist() == [[[4, 3, 0]]]


@pytest.mark.parametrize(
    ("held", "finding"),
    [
        (
            (KEYS[:, :, [0, 1]], -KEYS[:, :, [1, 0]]),
            "after pass 0 (6 tokens seen), layer 0, row 0, KV head 0, entry 0 pairs the key of token 0 with the value "
            "of token 1",
        ),
        (
            (KEYS[:, :, [0, 1]] * 1.01, -KEYS[:, :, [0, 1]]),
            "after pass 0 (6 tokens seen), layer 0, row 0, KV head 0, entry 0 has a key that was never passed in; the "
            "nearest is that of token 0, at a relative distance of 0.01",
        ),
        (
            (KEYS[:, :, [2, 2]], -KEYS[:, :, [2, 2]]),
            "after pass 0 (6 tokens seen), layer 0, row 0, KV head 0 holds token 2 in 2 entries",
        ),
        (
            (KEYS[:, :, [0]].float(), -KEYS[:, :, [0]].double()),
            "after pass 0 (6 tokens seen), layer 0 holds values in torch.float64, and was passed them in torch.float32",
        ),
    ],
    ids=["alignment", "altered", "twice", "dtype"],
)
def test_violations_are_described(held: tuple[Tensor, Tensor], finding: str) -> None:
    """A violation is described with its pass, layer, row, head and entry."""
    with pytest.raises(Departure) as departure:
        assert traced([held], [6]).alive
    assert str(departure.value) == finding


def test_returning_entries_are_reported() -> None:
    """An entry that returns after its eviction is reported."""
    with pytest.raises(Departure, match="layer 0, row 0, KV head 0 evicted token 1 before pass 2 and holds it again"):
        assert traced([of(0, 1, 2, 3), of(0, 4), of(0, 1)], [4, 1, 1]).alive


def test_equal_entries_are_ambiguous_and_the_earlier_counts_as_held() -> None:
    """Of tokens with equal entries, the earlier counts as held, and the entry as ambiguous."""
    keys = KEYS.clone()
    keys[:, :, 3] = keys[:, :, 1]
    audit = traced([of(0, 1, 2, keys=keys)], [6], keys)
    assert audit.evicted_at[0].tolist() == [[[NEVER, NEVER, NEVER, 6, 6, 6]]]
    assert audit.ambiguous == 1
    assert traced([of(1, 3, keys=keys)], [6], keys).evicted_at[0].tolist() == [[[6, NEVER, 6, NEVER, 6, 6]]]


@pytest.mark.parametrize(
    ("dtype", "tokens"),
    [(torch.float64, 9), (torch.float32, 9), (torch.float16, 9), (torch.bfloat16, 9), (torch.float64, 300)],
    ids=str,
)
def test_a_scripted_model_caches_the_given_keys(dtype: torch.dtype, tokens: int) -> None:
    """A scripted model passes exactly the given keys to its cache, with values that identify tokens."""
    keys = torch.randn(2, HEADS, tokens, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    model, ids = scripted(keys)
    with torch.no_grad():
        cache = cache_of(model(ids))
    for layer in cache.layers:
        assert torch.equal(layer.keys, keys)
        values = layer.values.transpose(1, 2).reshape(2, tokens, -1)
        assert len({tuple(value) for row in values.tolist() for value in row}) == 2 * tokens
