"""Rows of a cache whose layers of linear attention have no batch operations of their own."""

from typing import Any

import pytest
import torch

from pressgauge import H2OPress, KeyDiffPress, KnormPress, Press
from pressgauge.cache.layer import in_each_layer
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import cache_of, using


@torch.no_grad()
@pytest.mark.parametrize(
    ("operation", "rows"),
    [
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
    ],
    ids=["repeat", "select", "reorder"],
)
def test_rows_of_a_hybrid_continue_as_the_rows_they_were(operation: Any, rows: list[int]) -> None:
    """With the keys of its attention layers, and the states of the others."""
    model = architectures.shared("qwen3_next")
    ids = architectures.tokens(3, 16)
    press = KnormPress(0.5, prune_after=4, skip_layers=(architectures.LAYERS - 1,))
    logits = []
    for whole in (False, True):
        cache = press.cache(model.config, unpadded=True)
        chosen = torch.arange(3) if not whole else torch.tensor(rows)
        with press(model):
            model(ids[chosen][:, :12], **using(cache))
            if not whole:
                operation(cache)
                chosen = torch.tensor(rows)
            logits.append(
                torch.cat([model(ids[chosen][:, t : t + 1], **using(cache)).logits for t in range(12, 16)], 1)
            )
    torch.testing.assert_close(*logits, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("kind", [KnormPress, KeyDiffPress, H2OPress])
def test_an_unpadded_row_selected_from_a_padded_batch_has_no_padding_slots(kind: type[Press]) -> None:
    """Also where the padded row held more: under ``step`` with P = 12, 11 of 11 tokens stay, and 10 of 20."""
    model, press = architectures.shared("llama"), kind(0.5, prune_after=12, schedule="step")
    ids = architectures.tokens(2, 26)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    places = mask.cumsum(-1).sub(1).clamp(min=0)
    logits = []
    for rows in ([0, 1], [1]):
        with press(model):
            first = model(ids[rows][:, :20], attention_mask=mask[rows][:, :20], position_ids=places[rows][:, :20])
            cache = cache_of(first)
            assert cache.held == [11 if len(rows) == 2 else 10] * architectures.LAYERS
            if len(rows) == 2:
                cache.batch_select_indices(torch.tensor([1]))
            assert cache.held == [10] * architectures.LAYERS
            steps = [
                model(ids[1:, t : t + 1], position_ids=places[1:, t : t + 1], **using(cache)) for t in range(20, 26)
            ]
            logits.append(torch.cat([step.logits for step in steps], 1))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-9)


def test_a_layer_with_the_operation_is_asked_for_it() -> None:
    """And another is reordered."""
    calls: list[Any] = []

    class Asked:
        def select(self, argument: Any) -> None:
            calls.append(argument)

    class Reordered:
        def reorder_cache(self, rows: Any) -> None:
            calls.append(rows.tolist())

    in_each_layer([Asked(), Reordered(), Asked()], "select", "these", [2, 0])
    assert calls == ["these", [2, 0], "these"]
