"""The correlation of key norms with attention, for any attention implementation."""

import math
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge.conformance import architectures
from pressgauge.conformance.versions import cache_of, using
from pressgauge.norm_attention import LATER, norm_attention


def ranks(values: list[float]) -> list[float]:
    """Ranks from 1; equal values have their mean rank."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation by its definition."""
    a, b = ranks(first), ranks(second)
    middle = (len(a) + 1) / 2
    covariance = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))


def rounded(number: float) -> float:
    """A number rounded to 10 significant bits, as scores of presses are; equal results are ties."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 2**10), exponent)


def from_probabilities(model: architectures.Model, ids: Tensor, later: int) -> list[list[float]]:
    """Correlations per layer and KV head, from attention probabilities and keys of an eager model."""
    with torch.no_grad():
        output = model(ids, **using(DynamicCache()), output_attentions=True)
    tokens = ids.shape[1]
    result = []
    for layer, probabilities in zip(cache_of(output).layers, output.attentions, strict=True):
        keys = layer.keys[0].tolist()
        group = probabilities.shape[1] // len(keys)
        table = []
        for head, entries in enumerate(keys):
            norms, received = [], []
            for key in range(tokens - later):
                norms.append(rounded(sum(x * x for x in entries[key]) ** 0.5))
                columns = probabilities[0, head * group : (head + 1) * group, key + 1 :, key]
                received.append(float(columns.double().mean()))
            table.append(spearman(norms, received))
        result.append(table)
    return result


def eager(architecture: str, **changes: Any) -> architectures.Model:
    """A model that returns its attention probabilities."""
    model = architectures.build(architecture, **changes)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("later", [1, LATER, 100])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("neox", {}), ("llama", {}), ("qwen3", {}), ("mistral", {"sliding_window": 40})],
    ids=["neox", "llama", "qwen3", "sliding"],
)
def test_it_is_the_rank_correlation_of_norms_and_attention_from_later_queries(
    architecture: str, changes: dict[str, Any], later: int
) -> None:
    """The rank correlation is over keys with enough later queries, averaged over query heads, in several blocks."""
    model = eager(architecture, **changes)
    ids = architectures.tokens(1, 150)
    found = norm_attention(model, ids, later=later)
    expected = torch.tensor(from_probabilities(model, ids, later), dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_attention_implementation_does_not_matter_and_is_unchanged() -> None:
    """sdpa and eager models give the same correlation, and are not changed."""
    ids = architectures.tokens(1, 80)
    found = norm_attention(architectures.shared("llama"), ids)
    torch.testing.assert_close(found, norm_attention(eager("llama"), ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [None, 40])
def test_sdpa_masks_are_respected(window: int | None) -> None:
    """A sliding window reaches sdpa as a boolean mask, and no mask means causal."""
    ids = architectures.tokens(1, 90)
    found = norm_attention(architectures.build("mistral", sliding_window=window), ids)
    expected = from_probabilities(eager("mistral", sliding_window=window), ids, LATER)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-4)


def test_norms_that_are_equal_up_to_rounding_have_no_correlation() -> None:
    """Keys of equal norm, as in Qwen3 with unit weights, have no correlation and give no warning."""
    model = architectures.build("qwen3")
    for name, weight in model.named_parameters():
        if "k_norm" in name:
            torch.nn.init.ones_(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = norm_attention(model, architectures.tokens(1, 80))
    assert found.shape == (architectures.LAYERS, 2)
    assert bool(found.isnan().all())


@pytest.mark.parametrize(("tokens", "defined"), [(LATER - 1, False), (LATER + 2, False), (LATER + 3, True)])
def test_fewer_than_three_keys_have_no_correlation(tokens: int, defined: bool) -> None:
    """Two keys have no correlation, since it would always be perfect."""
    found = norm_attention(architectures.shared("neox"), architectures.tokens(1, tokens))
    assert bool((~found.isnan()).all()) == defined


def test_half_precision_is_computed_in_float32() -> None:
    """bfloat16 probabilities are averaged in float32, to avoid ties."""
    dtypes: set[torch.dtype] = set()
    model = architectures.cast("llama", torch.bfloat16, torch.device("cpu"))
    module = sys.modules[type(model).__module__]
    own = module.eager_attention_forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        dtypes.update((args[1].dtype, args[2].dtype))
        return own(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", spy)
        found = norm_attention(model, architectures.tokens(1, 80))
    assert dtypes == {torch.float32}
    assert bool((~found.isnan()).all())


def test_attention_is_held_for_a_block_of_queries_at_a_time() -> None:
    """Attention of all queries of a long text is never in memory at once."""
    queries = []
    model = architectures.shared("llama")
    module = sys.modules[type(model).__module__]
    own = module.eager_attention_forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        queries.append(args[1].shape[2])
        return own(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", spy)
        norm_attention(model, architectures.tokens(1, 300))
    assert max(queries) <= 64
    assert sum(queries) == 300 * architectures.LAYERS


@pytest.mark.parametrize("rows", [0, 2])
def test_anything_but_one_text_is_refused(rows: int) -> None:
    """Batches of several rows are refused."""
    with pytest.raises(ValueError, match=r"input_ids must be one text, \[1, tokens\], got \[\d, 40\]"):
        norm_attention(architectures.shared("llama"), architectures.tokens(rows, 40))


def test_keys_without_later_queries_are_refused() -> None:
    """A key without later queries has no mean attention and is refused."""
    with pytest.raises(ValueError, match="later must be at least 1, got 0"):
        norm_attention(architectures.shared("llama"), architectures.tokens(1, 40), later=0)
