"""Attention under ``evicted_at`` in blocks equals dense attention under the same mask, in less memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.ours import SUBJECTS
from pressgauge import KnormPress, perplexity, replay
from pressgauge.conformance import architectures
from pressgauge.conformance.strategies import options
from pressgauge.conformance.subjects import Subject
from pressgauge.history import NEVER, visible
from pressgauge.onepass import _attend, attend
from pressgauge.rules import pass_lengths

SCALE = 0.4


def dense(query: Tensor, key: Tensor, value: Tensor, evicted_at: Tensor) -> Tensor:
    """The oracle: a softmax over all keys in float64, per head."""
    sees = visible(evicted_at, 0, query.shape[2])
    group = query.shape[1] // key.shape[1]
    rows = []
    for row in range(query.shape[0]):
        heads = []
        for head in range(query.shape[1]):
            mine = row, head // group
            scores = (query[row, head].double() @ key[mine].double().T) * SCALE
            heads.append(scores.masked_fill(~sees[mine], -torch.inf).softmax(dim=-1) @ value[mine].double())
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
    """Normal numbers, large enough for non-uniform attention."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype=dtype, device=device)


@dataclass(frozen=True)
class Case:
    """A press's history of some keys, and the sizes of queries and values."""

    keys: Tensor
    evicted_at: Tensor
    group: int
    dimension: int
    block: int

    def states(self, dtype: torch.dtype, device: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Query ``[B, H, T, D]``, key ``[B, K, T, D]`` and value ``[B, K, T, D']``."""
        rows, heads, length, size = self.keys.shape
        query = random(rows, heads * self.group, length, size, seed=1, dtype=dtype, device=device)
        value = random(rows, heads, length, self.dimension, seed=2, dtype=dtype, device=device)
        return query, self.keys.to(dtype=dtype, device=device), value


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Histories of a real press on random keys; blocks of one query, of a few, and more than there are."""
    subject: Subject = draw(st.sampled_from(SUBJECTS))
    length = draw(st.integers(2, 40))
    rows, heads, size = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    keys = random(rows, heads, length, size, seed=draw(st.integers(0, 2**16)))
    prompt = draw(st.integers(1, length))
    table = replay(subject(**draw(options(subject.schedule))), keys, pass_lengths(length, prompt))
    return Case(
        keys,
        table,
        group=draw(st.integers(1, 3)),
        dimension=draw(st.sampled_from([size, size + 2])),  # the other one has no fused kernel
        block=draw(st.sampled_from([1, 3, 7, 256])),
    )


def whole(evicted_at: Sequence[int], block: int = 4) -> Case:
    """One head with this history, read by two query heads."""
    length = len(evicted_at)
    return Case(random(1, 1, length, 3), torch.tensor([[list(evicted_at)]], dtype=torch.int32), 2, 3, block)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.06)], ids=str
)
@given(case=cases())
@example(case=whole([NEVER] * 9))
@example(case=whole([9] * 9))
@example(case=whole([*range(1, 9), NEVER]))  # every pass evicts all but its own token
@example(case=whole([8] * 8 + [NEVER]))
@example(case=whole([5] * 4 + [NEVER] * 6))
@example(case=whole([3, 6, 7, 8, *[NEVER] * 8]))  # gone in a block's last query, at its end, and in the next one
def test_attention_in_blocks_is_dense_attention_under_the_same_mask(
    case: Case, dtype: torch.dtype, tolerance: float, device: torch.device
) -> None:
    """Query t of each head attends to the keys of its KV head with ``j <= t < evicted_at[j]``, in every dtype."""
    query, key, value = case.states(dtype, device)
    output = attend(query, key, value, case.evicted_at, SCALE, block=case.block)
    assert (output.shape, output.dtype) == ((*query.shape[:3], case.dimension), dtype)
    expected = dense(query, key, value, case.evicted_at.to(device))
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_the_explicit_path_is_the_fused_one(masked: bool, dtype: torch.dtype, tolerance: float) -> None:
    """The explicit path, used for values wider than keys, equals the fused kernel."""
    query, key = random(2, 3, 10, 4, dtype=dtype), random(2, 3, 17, 4, seed=1, dtype=dtype)
    value = random(2, 3, 17, 4, seed=2, dtype=dtype)
    bias = None
    if masked:
        bias = torch.zeros(2, 3, 10, 17, dtype=dtype)
        bias[random(2, 3, 10, 17, seed=3) > 1] = -torch.inf
    fused, fused_total = _attend(query, key, value, SCALE, bias)
    longer = torch.nn.functional.pad(value, (0, 1), value=7.0)
    explicit, total = _attend(query, key, longer, SCALE, bias)
    torch.testing.assert_close(explicit[..., :4], fused, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(explicit[..., 4], torch.full_like(fused[..., 0], 7), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(total, fused_total, rtol=tolerance, atol=tolerance)


# Memory

LONG = 2048


class Largest(TorchDispatchMode):
    """Records the largest storage of any operation's result, and the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.operation = "none"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, Tensor):
                elements = part.untyped_storage().nbytes() // part.element_size()
                if elements > self.elements:
                    self.elements, self.operation = elements, str(func)
        return result


@pytest.mark.parametrize("dimension", [4, 5], ids=["fused", "explicit"])
def test_attention_allocates_no_tensor_of_all_queries_and_keys(dimension: int) -> None:
    """For 2,048 queries of two heads, the largest tensor is a block of queries by its keys."""
    query, key, value = random(1, 2, LONG, 4), random(1, 1, LONG, 4, seed=1), random(1, 1, LONG, dimension, seed=2)
    table = replay(KnormPress(0.25, prune_after=64), key, pass_lengths(LONG, 100))
    with Largest() as largest:
        output = attend(query, key, value, table, SCALE)
    assert output.shape == (1, 2, LONG, dimension)
    # 256 queries of two heads; a quarter of the text is held at its end, and 256 keys are new.
    assert largest.elements <= 2 * 256 * (LONG // 4 + 256), largest.operation
    with Largest() as largest:
        dense(query, key, value, table)
    assert largest.elements >= LONG * LONG, "the bound is to be one that can be broken"


@pytest.mark.parametrize("lengths", [[LONG], [LONG, LONG // 2]], ids=["alone", "padded"])
def test_perplexity_in_one_pass_allocates_no_tensor_of_all_queries_and_keys(lengths: list[int]) -> None:
    """Measuring a text of 2,048 tokens allocates no such tensor, unlike a plain padded forward pass."""
    model = architectures.build("llama", num_hidden_layers=1, max_position_embeddings=LONG)
    ids, mask = architectures.padded(lengths)
    with Largest() as largest:
        result = perplexity(model, ids, KnormPress(0.25, prune_after=64), 100, attention_mask=mask)
    assert result.affected_tokens > LONG // 2
    assert largest.elements < LONG * LONG, largest.operation
    if len(lengths) > 1:
        with Largest() as largest:
            perplexity(model, ids, None, 100, "plain", attention_mask=mask)
        assert largest.elements >= LONG * LONG, "the bound is to be one that can be broken"
