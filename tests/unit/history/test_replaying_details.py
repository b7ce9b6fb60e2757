"""What ``replay`` refuses, and in which words."""

import re
from typing import Any

import pytest
import torch

from pressgauge import H2OPress, KeyDiffPress, KnormPress, Press, SnapKVPress, TOVAPress, replay
from support.accelerator import accelerator

KEYS = torch.zeros(2, 1, 6, 4)
WORDS: list[tuple[type[Exception], dict[str, Any], str]] = [
    (
        TypeError,
        {"press": None},
        "press must be a press such as KnormPress(0.5), got None: without one nothing is evicted",
    ),
    (TypeError, {"press": 3}, "press must be a press such as KnormPress(0.5), or None for no press, got 3"),
    (
        TypeError,
        {"keys": 3},
        "keys must be a tensor [batch, KV heads, tokens, dimension], got 3: make one with torch.tensor",
    ),
    (ValueError, {"keys": KEYS[0]}, "keys must be [batch, KV heads, tokens, dimension], got [1, 6, 4]"),
    (TypeError, {"passes": "33"}, "passes must be a list of whole numbers, got '33'"),
    (TypeError, {"passes": 6}, "passes must be a list of whole numbers, got 6"),
    (TypeError, {"passes": [3, 3.0]}, "a number in passes must be a whole number, got 3.0"),
    (
        ValueError,
        {"passes": [3, 2]},
        "passes must be positive and add up to the 6 tokens of keys, got 2 passes of 5 tokens",
    ),
    (
        ValueError,
        {"passes": [6, 0]},
        "passes must be positive and add up to the 6 tokens of keys, got 2 passes of 6 tokens",
    ),
    (TypeError, {"padding": 0}, "padding must be a list of whole numbers, got 0"),
    (ValueError, {"padding": [0]}, "padding must give each of the 2 rows a number from 0 to 6, got [0]"),
    (ValueError, {"padding": [0, 7]}, "padding must give each of the 2 rows a number from 0 to 6, got [0, 7]"),
    (ValueError, {"padding": [-1, 0]}, "padding must give each of the 2 rows a number from 0 to 6, got [-1, 0]"),
    (ValueError, {"press": H2OPress(0.5)}, "H2OPress needs queries: pass those of all 6 tokens"),
    (
        TypeError,
        {"queries": 3},
        "queries must be a tensor [batch, heads, tokens, dimension], got 3: make one with torch.tensor",
    ),
    (
        ValueError,
        {"queries": KEYS[:, :, :5]},
        "queries must be [2, heads, 6, dimension] like keys, got [2, 1, 5, 4]",
    ),
    (ValueError, {"queries": KEYS[:1]}, "queries must be [2, heads, 6, dimension] like keys, got [1, 1, 6, 4]"),
    (ValueError, {"queries": KEYS[0]}, "queries must be [2, heads, 6, dimension] like keys, got [1, 6, 4]"),
    (ValueError, {"layer": -1}, "layer must be at least 0, got -1"),
    (TypeError, {"layer": 1.5}, "layer must be a whole number, got 1.5"),
]


@pytest.mark.parametrize(("kind", "changes", "words"), WORDS, ids=[words for _, _, words in WORDS])
def test_what_cannot_be_replayed_is_refused(kind: type[Exception], changes: dict[str, Any], words: str) -> None:
    """In one sentence, with the argument, the rule and what was given."""
    given: dict[str, Any] = {"press": KnormPress(0.5, prune_after=2), "keys": KEYS, "passes": [3, 3], **changes}
    with pytest.raises(kind, match=f"^{re.escape(words)}$"):
        replay(**given)


def test_rows_of_padding_only_and_columns_of_all_are_replayed() -> None:
    """The bounds of what may be given."""
    press = KnormPress(0.5, prune_after=2)
    table = replay(press, KEYS, [5, 1], padding=[0, 6])
    assert table[1].tolist() == [[0] * 6]
    assert (table[0] == torch.iinfo(torch.int32).max).sum() == 3


PRESSES: list[Press] = [
    KnormPress(0.5, prune_after=2, recent=1),
    KnormPress(0.5, prune_after=20),
    KnormPress(0.5, prune_after=2, skip_layers=(0,)),
    KeyDiffPress(0.5, prune_after=2, recent=2),
    H2OPress(0.5, prune_after=2),
    SnapKVPress(0.5, prune_after=2, recent=2),
    TOVAPress(0.5, prune_after=2),
]


@pytest.mark.parametrize("padding", [[0, 0], [0, 3]], ids=["whole rows", "padding"])
@pytest.mark.parametrize("press", PRESSES, ids=lambda press: f"{type(press).__name__}-{press.prune_after}")
def test_a_replay_runs_on_the_device_of_its_keys(press: Press, padding: list[int]) -> None:
    """Its table is there, and equals that of the CPU."""
    generator = torch.Generator().manual_seed(0)
    keys, queries = (torch.randn(2, heads, 12, 4, generator=generator) for heads in (2, 4))
    expected = replay(press, keys, [5, 1, 1, 3, 1, 1], padding=padding, queries=queries)
    with accelerator() as device:
        keys, queries = keys.to(device), queries.to(device)
        table = replay(press, keys, [5, 1, 1, 3, 1, 1], padding=padding, queries=queries)
        assert table.device == device
        assert table.cpu().equal(expected)


@pytest.mark.parametrize("press", [KnormPress, KeyDiffPress])
def test_a_replay_has_the_prompt_that_it_is_given(press: type[Press]) -> None:
    """A press that evicts after the prompt does so at its end, in whatever pass that is."""
    keys = torch.randn(1, 1, 8, 4, generator=torch.Generator().manual_seed(0))
    for prompt, end in ((None, 3), (3, 3), (5, 6), (6, 6)):
        table = replay(press(0.5, prune_after=1, schedule="prefill"), keys, [3, 3, 1, 1], prompt_length=prompt)
        assert set(table.flatten().tolist()) == {end, torch.iinfo(torch.int32).max}


def test_products_are_scaled_by_the_root_of_the_dimension() -> None:
    """Unless another scaling factor is given, under which other entries are evicted here."""
    generator = torch.Generator().manual_seed(0)
    keys, queries = (4 * torch.randn(1, 2, 40, 9, generator=generator) for _ in range(2))
    own, same, *others = (
        replay(H2OPress(0.4, prune_after=2), keys, [30, *[1] * 10], queries=queries, scale=scale)
        for scale in (None, 1 / 3, 9**-1.5, 3.0, -4.5)
    )
    assert own.equal(same)
    assert not any(own.equal(other) for other in others)
