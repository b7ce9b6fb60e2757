"""Parts of one pass, in the cases that only one line of code decides."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pressgauge import KnormPress, perplexity
from pressgauge.conformance import architectures
from pressgauge.history import NEVER
from pressgauge.models import support
from pressgauge.onepass import OnePass, _attend, beyond
from pressgauge.onepass_cache import Noting, OnePassCache
from pressgauge.proof import Problems


def window(tokens: int, size: int) -> torch.Tensor:
    """``[1, 1, T, T]`` bool: each token sees itself and those before it, ``size`` in all."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(1 - size)
    return seen[None, None]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_mask_is_within_a_window_where_it_hides_all_that_lies_behind(dtype: torch.dtype, share: float) -> None:
    """A number to be added hides from half of the least one on, since some models add two masks to each other."""
    for size, inside in ((3, True), (4, True), (5, False)):
        mask = window(9, size)
        if dtype != torch.bool:
            least = torch.finfo(dtype).min * share
            mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, least)
        assert beyond(mask, 4) is not inside
    assert beyond(None, 4)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_is_merged_is_computed_in_float32(masked: bool) -> None:
    """In half precision too, where values have another size than keys; to its rounding, as in float64."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 5, n, d, generator=generator, dtype=torch.float64).bfloat16()
        for n, d in ((3, 4), (40, 4), (40, 5))
    )
    bias = torch.zeros(1, 5, 3, 40, dtype=torch.bfloat16)
    if masked:
        bias[..., 7:] = -torch.inf
    output, total = _attend(query, key, value, 0.5, bias if masked else None)
    assert output.dtype == total.dtype == torch.float32
    scores = query.double() @ key.double().mT * 0.5 + bias.double()
    torch.testing.assert_close(output.double(), scores.softmax(dim=-1) @ value.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(total.double(), scores.logsumexp(dim=-1), rtol=0, atol=1e-5)


def noting(tokens: int) -> Noting:
    """A layer that was passed ``tokens`` tokens; none for 0."""
    layer = Noting()
    if tokens:
        layer.update(torch.ones(1, 1, tokens, 2), torch.ones(1, 1, tokens, 2))
    return layer


def test_a_replayed_cache_tells_what_each_layer_would_hold() -> None:
    """From the table of evictions, else from what the layer was passed, and within its window less the query's own
    token; unknown for a layer that was passed nothing. There may be more layers than windows."""
    cache = OnePassCache()
    plain = DynamicLayer()
    plain.update(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    cache.layers = [noting(5), noting(5), noting(0), plain]
    cache.evicted_at = {0: torch.tensor([[[NEVER, 3, NEVER, NEVER, 4]]])}
    cache.padding, cache.windows = 0, {}
    assert cache.held([None, 4, 4]) == [3, 3, None, 5]
    assert cache.held([None, 4, None, 9]) == [3, 3, None, 5]


def test_rows_are_affected_from_the_first_eviction_in_any_layer() -> None:
    """One index a row, counted without the padding columns; the number of tokens if nothing is evicted."""
    cache = OnePassCache()
    cache.padding, cache.evicted_at = 1, {}
    assert cache.affected_from(4) is None
    one = torch.tensor([[[0, 4, NEVER, NEVER, NEVER]], [[0, NEVER, NEVER, NEVER, NEVER]]])
    two = torch.tensor([[[0, NEVER, 3, NEVER, NEVER]], [[0, NEVER, NEVER, NEVER, NEVER]]])
    cache.evicted_at = {0: one, 1: two}
    assert cache.affected_from(4) == [2, 4]


def test_numbers_above_half_of_the_least_one_do_not_hide() -> None:
    """Since some models add two masks to each other, half of it is the limit."""
    mask = torch.zeros(1, 1, 9, 9).masked_fill(~window(9, 3), torch.finfo(torch.float32).min * 0.4)
    assert beyond(mask, 4)


def test_modules_of_no_layer_attend_as_they_do() -> None:
    """With their own mask and arguments."""
    onepass = OnePass(None, support.of_config(architectures.shared("llama").config), 1)
    calls: list[Any] = []
    given = [torch.ones(1, 1, 2, 2) for _ in range(4)]
    onepass._attend(lambda *args, **kwargs: calls.append((args, kwargs)), nn.Module(), *given, scaling=3.0)  # type: ignore[arg-type]
    ((args, kwargs),) = calls
    assert all(one is other for one, other in zip(args[1:], given, strict=True))
    assert kwargs == {"scaling": 3.0}


def test_a_layer_of_another_kind_attends_as_it_does_and_is_reported() -> None:
    """Its cache notes nothing, so that nothing can be replayed."""
    model = architectures.shared("llama")
    onepass = OnePass(KnormPress(0.5, 4, skip_layers=()), support.of_config(model.config), 1)
    module = model.model.layers[0].self_attn
    onepass._layers, onepass._tokens = {id(module): 0}, 2
    onepass._cache = OnePassCache()
    onepass._cache.layers = [DynamicSlidingWindowLayer(sliding_window=4)]
    onepass._problems = Problems(onepass.support, model.model, ())
    calls: list[Any] = []
    given = [torch.ones(1, 1, 2, 2) for _ in range(4)]

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return given[0], None

    onepass._attend(own, module, *given)
    assert list(onepass._problems.reasons) == [0]
    assert all(args[4] is given[3] for args in calls)


@pytest.mark.parametrize("skipped", [(), (0, 1, 2)])
def test_a_layer_that_evicts_nothing_attends_under_its_own_mask(skipped: tuple[int, ...]) -> None:
    """Eager attention without a mask would see later tokens."""
    model, ids = architectures.attending_by("eager"), architectures.tokens(1, 9)
    plain = perplexity(model, ids, None, 4, method="plain")
    press = KnormPress(0.5, prune_after=9 if not skipped else 2, skip_layers=skipped)
    torch.testing.assert_close(perplexity(model, ids, press, 4).nll, plain.nll)


def test_each_mask_of_layers_with_windows_is_checked() -> None:
    """A second layer may attend beyond a window that the first one keeps to."""
    model = architectures.shared("llama")
    onepass = OnePass(None, support.of_config(model.config), 1)
    modules = [layer.self_attn for layer in model.model.layers[:2]]
    onepass._layers = {id(module): index for index, module in enumerate(modules)}
    onepass._cache = OnePassCache()
    onepass._cache.layers = [DynamicSlidingWindowLayer(sliding_window=4) for _ in modules]
    states = torch.ones(1, 1, 9, 2)

    def own(*args: Any, **kwargs: Any) -> Any:
        return states, None

    onepass._attend(own, modules[0], states, states, states, window(9, 4))
    with pytest.raises(ValueError, match="layer 1 attends beyond the window of 4 tokens"):
        onepass._attend(own, modules[1], states, states, states, window(9, 6))
