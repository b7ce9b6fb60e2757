"""Ties stay ties under noise, wherever a processor's sums put it: noise is injected, nothing is left to the machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge import KnormPress
from pressgauge.presses import ranking
from pressgauge.texts import load_text
from regression.noise import NOISE, Fates, States, fates, moved_places, noisy, states_of

MOST = 1 / 1024
"""The share of scores that noise may move into another cell: ``NOISE`` over 2 ** -10, the smallest width that a cell of
10 bits has, relative to the scores in it. No score moves by more than ``NOISE`` of its size, and where the edge lies is
random, so that this many is an upper bound of what is expected."""
DRAWS = 1000
REPLAYS = 32
PRESS = KnormPress(0.5, prune_after=64)
CASES = ["reference", "reference-neox", "wikitext-2/test.txt", "books/shakespeare.txt"]


@pytest.fixture(scope="module", params=CASES)
def first(request: pytest.FixtureRequest) -> States:
    """The first layer of a trained model, where every repeated word is a tie, on two texts of 400 tokens."""
    if request.param.startswith("reference"):
        load: Callable[..., tuple[Any, Any]] = request.getfixturevalue("reference")
        model, tokenizer = load(request.param, dtype="float64")
        text = "reference"
    else:
        folder: Path = request.getfixturevalue("shared_folder")
        load = request.getfixturevalue("tinystories")
        model, tokenizer = load("float64")
        text = str(folder / "data" / request.param)
    states = states_of(model, load_text(text, tokenizer, samples=2, tokens=400))
    return States(states.queries[:1], states.keys[:1], states.scale)


def norms(states: States) -> Tensor:
    """The scores of KnormPress, in float64."""
    return PRESS.score(states.keys[0], positions=torch.empty(0), layer=0)


def shares(one: Fates) -> float:
    """The share of the first layer's entries that noise evicts at another time."""
    return one.differ[0] / one.entries[0]


def test_noise_moves_every_number_by_so_much() -> None:
    """Up or down, and in different directions for different seeds."""
    states = torch.randn((3, 1000), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = [noisy(states, torch.Generator().manual_seed(seed)) / states - 1 for seed in (0, 1)]
    for one in moved:
        torch.testing.assert_close(one.abs(), torch.full_like(one, NOISE), rtol=1e-6, atol=0)
        assert 0.4 < float((one > 0).double().mean()) < 0.6
    assert not torch.equal(*moved)


def test_noise_leaves_scores_in_their_cells(first: States) -> None:
    """Rule 4: of real scores, noise moves no larger share into another cell than its size allows for."""
    assert moved_places(norms(first), DRAWS, torch.Generator().manual_seed(0)) <= MOST


@pytest.mark.parametrize("bits", [16, 23])
def test_more_bits_leave_scores_to_the_noise(first: States, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above is shown to fail for a press that rounds to 16 bits, and for one that hardly rounds."""
    monkeypatch.setattr(ranking, "_SIGNIFICANT_BITS", bits)
    assert moved_places(norms(first), DRAWS, torch.Generator().manual_seed(0)) > 4 * MOST


def test_noise_settles_no_ties(first: States) -> None:
    """Rule 4: what is evicted in a first layer, where every repeated word is a tie, and when, is the same with noise,
    for all but as few entries as leave their cells. With 16 bits, and hardly rounded, it is not."""
    bits = ranking._SIGNIFICANT_BITS
    kept, more, all_of_them = (shares(fates(PRESS, first, torch.float32, n, REPLAYS)) for n in (bits, 16, 23))
    assert kept <= MOST < 2 * MOST < more < all_of_them
