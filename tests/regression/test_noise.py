"""Ties remain ties under injected noise, independently of the machine."""

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
"""Upper bound of the expected share of scores that noise moves to another cell: ``NOISE`` over 2 ** -10, the smallest
relative width of a cell with 10 bits. No score changes by more than ``NOISE`` of its size, and the position of the edge
is random."""
DRAWS = 1000
REPLAYS = 32
PRESS = KnormPress(0.5, prune_after=64)
CASES = ["reference", "reference-neox", "wikitext-2/test.txt", "books/shakespeare.txt"]


@pytest.fixture(scope="module", params=CASES)
def first(request: pytest.FixtureRequest) -> States:
    """First layer of a trained model, where every repeated word is a tie, on two texts of 400 tokens."""
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
    """Scores of KnormPress in float64."""
    return PRESS.score(states.keys[0], positions=torch.empty(0), layer=0)


def shares(one: Fates) -> float:
    """Share of the first layer's entries that noise evicts at another time."""
    return one.differ[0] / one.entries[0]


def test_noise_changes_every_number_by_its_size() -> None:
    """Noise changes every number by ``NOISE`` of itself, up or down, and differs between seeds."""
    states = torch.randn((3, 1000), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = [noisy(states, torch.Generator().manual_seed(seed)) / states - 1 for seed in (0, 1)]
    for one in moved:
        torch.testing.assert_close(one.abs(), torch.full_like(one, NOISE), rtol=1e-6, atol=0)
        assert 0.4 < float((one > 0).double().mean()) < 0.6
    assert not torch.equal(*moved)


def test_noise_leaves_scores_in_their_cells(first: States) -> None:
    """Rule 4: noise moves at most the expected share of real scores to another cell."""
    assert moved_places(norms(first), DRAWS, torch.Generator().manual_seed(0)) <= MOST


@pytest.mark.parametrize("bits", [16, 23])
def test_more_bits_are_sensitive_to_noise(first: States, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails for a press that rounds to 16 bits, and for one that hardly rounds."""
    monkeypatch.setattr(ranking, "_SIGNIFICANT_BITS", bits)
    assert moved_places(norms(first), DRAWS, torch.Generator().manual_seed(0)) > 4 * MOST


def test_noise_breaks_no_ties(first: States) -> None:
    """Rule 4: in a first layer with many ties, noise changes evictions only of entries that change cells; with 16 bits,
    or hardly any rounding, it changes more."""
    bits = ranking._SIGNIFICANT_BITS
    kept, more, all_of_them = (shares(fates(PRESS, first, torch.float32, n, REPLAYS)) for n in (bits, 16, 23))
    assert kept <= MOST < 2 * MOST < more < all_of_them
