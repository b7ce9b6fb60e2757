"""What a press refuses, in which words, and how exactly fixed scores have to be fixed."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pressgauge import KnormPress, Press
from pressgauge.conformance import architectures
from pressgauge.presses.base import check_fixed, check_press, rank_entries

STATES = torch.zeros(1, 2, 3, 4)


def said(sentence: str) -> str:
    """A pattern for the whole of a sentence."""
    return f"^{re.escape(sentence)}$"


@pytest.mark.parametrize(("name", "given"), [("keys", ([1.0], STATES)), ("values", (STATES, [1.0]))])
def test_compress_names_what_is_no_tensor_and_the_shape_that_it_has_to_have(name: str, given: tuple[Any, Any]) -> None:
    """The argument, the shape, what was given, and the way out."""
    shape = "[batch, KV heads, tokens, dimension]"
    with pytest.raises(
        TypeError, match=said(f"{name} must be a tensor {shape}, got [1.0]: make one with torch.tensor")
    ):
        KnormPress(0.5).compress(*given)


def test_a_press_is_resolved_on_the_model_that_it_is_given() -> None:
    """The layers that it cannot prune become numbers; nothing else of it changes."""
    model = architectures.hybrid()
    press = KnormPress(0.5, sinks=3, skip_layers="unprunable")
    resolved = press.resolved(model)
    assert resolved.skip_layers == architectures.LINEAR
    assert (resolved.keep_ratio, resolved.sinks) == (0.5, 3)
    with pytest.raises(TypeError, match=r"^model must be a transformers model, got 3: "):
        press.resolved(3)  # type: ignore[arg-type]


def test_what_is_no_press_is_named() -> None:
    """None stands for no press."""
    check_press(None)
    check_press(KnormPress(0.5))
    sentence = "press must be a press such as KnormPress(0.5), or None for no press, got 3"
    with pytest.raises(TypeError, match=said(sentence)):
        check_press(3)


@dataclass(frozen=True)
class Scripted(Press):
    """A press that says its scores are fixed, and remembers what it was asked."""

    scores: Callable[[Tensor], Tensor] = torch.Tensor.double
    asked: tuple[list[Any], ...] = ([],)
    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: object = None) -> Tensor:
        self.asked[0].append((positions.tolist(), layer))
        return self.scores(positions)


def check(before: list[list[list[float]]], after: Callable[[Tensor], Tensor], positions: Any = None) -> None:
    """``check_fixed`` of scores that were ``before``, in float32, and that are ``after`` of positions now."""
    scores = torch.tensor(before)
    entries = scores.shape[-1]
    positions = torch.arange(entries).expand(scores.shape) if positions is None else torch.tensor(positions)
    press = Scripted(0.5, scores=after, asked=([],))
    check_fixed(press, scores, torch.zeros(*scores.shape, 1), positions, 7)


def test_fixed_scores_may_differ_in_the_lower_half_of_their_bits() -> None:
    """12 of float32's 24 bits have to agree, relative to the largest score of the head itself."""
    before, near, far = [[[1.0] * 6, [64.0] * 6]], 2**-12, 2**-11

    def scores(*heads: float) -> Callable[[Tensor], Tensor]:
        return lambda positions: torch.tensor(heads)[None, :, None].expand(positions.shape)

    check(before, scores(1 + near, 64 + 64 * near))
    for after in (scores(1 + far, 64), scores(1, 64 + 64 * far), scores(1 - far, 64)):
        with pytest.raises(ValueError, match="declares fixed_scores = True"):
            check(before, after)


@pytest.mark.parametrize(
    ("changed", "among", "position"), [((0, 0, 1), 3, 1), ((0, 1, 2), 3, 2), ((1, 0, 0), 3, 0), ((1, 1, 3), 1, 3)]
)
def test_a_score_that_changed_is_named(changed: tuple[int, int, int], among: int, position: int) -> None:
    """By its position, what it was and what it is, and among how many entries: the first half, or the middle alone."""
    before = torch.ones(2, 2, 6)

    def after(positions: Tensor) -> Tensor:
        start = 0 if positions.shape[-1] == 3 else 3
        scores = torch.ones(2, 2, 6)
        scores[changed] = 1.5
        return scores[..., start : start + positions.shape[-1]]

    sentence = (
        f"Scripted declares fixed_scores = True, but in layer 7 the score of the entry at position {position} was 1 "
        f"among 6 entries and then 1.5 among {among}: set fixed_scores = False in the class"
    )
    with pytest.raises(ValueError, match=said(sentence)):
        check(before.tolist(), after)


def test_scores_of_padding_slots_may_be_anything() -> None:
    """They neither have to be fixed nor do they widen what the others may change by."""
    positions = [[[-1, -1, 0, 1]]]
    check([[[1e9, 5.0, 1.0, 1.0]]], lambda positions: torch.ones(positions.shape), positions)
    with pytest.raises(ValueError, match="the entry at position 0 was 2 "):
        check([[[1e9, 5.0, 2.0, 1.0]]], lambda positions: torch.ones(positions.shape), positions)


def test_the_first_token_widens_what_scores_may_change_by() -> None:
    """The largest score of a head counts wherever it is, as at position 0."""
    check([[[4096.0, 1.0, 1.0, 1.0]]], lambda positions: torch.where(positions == 0, 4096.0, 1.75))


def test_scores_of_another_shape_are_refused() -> None:
    """With the shape that they must have and the one that they have."""
    positions = torch.arange(4).expand(2, 3, 4)
    press = Scripted(0.5, scores=lambda positions: positions[..., :1])
    rule = "[batch, KV heads, entries] with one score per key, got"
    with pytest.raises(ValueError, match=said(f"the scores of Scripted must be [2, 3, 4], {rule} [2, 3, 1]")):
        rank_entries(press, torch.zeros(2, 3, 4, 1), positions, 0)
    nothing: Any = lambda positions: 0.5  # noqa: E731
    with pytest.raises(TypeError, match=re.escape(f"the scores of Scripted must be a tensor {rule} 0.5")):
        rank_entries(Scripted(0.5, scores=nothing), torch.zeros(2, 3, 4, 1), positions, 0)


def test_a_score_that_was_no_number_must_not_become_one() -> None:
    """Nor the other way round."""
    ones, nans = torch.ones, lambda shape: torch.full(shape, math.nan)
    for before, after in ((math.nan, ones), (1.0, nans)):
        with pytest.raises(ValueError, match="the entry at position 0 was "):
            check([[[before] * 4]], lambda positions, after=after: after(positions.shape))  # type: ignore[misc]
    check([[[math.nan] * 4]], lambda positions: nans(positions.shape))


@pytest.mark.parametrize(("steps", "refused"), [(4, False), (5, True)])
def test_narrow_scores_may_differ_in_their_last_two_bits(steps: int, refused: bool) -> None:
    """In bfloat16, by 4 steps of the largest score."""
    press = Scripted(0.5, scores=lambda positions: torch.full(positions.shape, 1 + steps / 128).bfloat16(), asked=([],))
    given = press, torch.ones(1, 1, 4).bfloat16(), torch.zeros(1, 1, 4, 1), torch.arange(4)[None, None], 7
    if not refused:
        check_fixed(*given)
        return
    with pytest.raises(ValueError, match="the entry at position 0 was 1 "):
        check_fixed(*given)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_infinite_scores_do_not_widen_what_others_may_change_by(odd: float) -> None:
    """Neither does a NaN; both have to be the same again."""
    small = 2.0**-10

    def after(positions: Tensor) -> Tensor:
        return torch.where(positions == 0, odd, small)

    check([[[odd, small, small, small]]], after)
    with pytest.raises(ValueError, match="the entry at position 1 was "):
        check([[[odd, small * 1.125, small, small]]], after)
    with pytest.raises(ValueError, match="the entry at position 1 was "):
        check([[[1.0, small * 1.125, small, small]]], lambda positions: after(positions), [[[-1, 1, 2, 3]]])


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        (1, [[0], [0]]),
        (2, [[0], [1]]),
        (3, [[0], [1]]),
        (4, [[0, 1], [2]]),
        (129, [list(range(64)), [64]]),
        (200, [list(range(64)), [100]]),
    ],
)
def test_scores_are_asked_for_again_of_the_first_entries_and_of_the_middle_one(
    entries: int, parts: list[list[int]]
) -> None:
    """Of half of them, or of the first 64 if that is fewer."""
    press = Scripted(0.5, asked=([],))
    positions = torch.arange(entries)[None, None]
    check_fixed(press, positions.double(), torch.zeros(1, 1, entries, 1), positions, 5)
    assert press.asked[0] == [([[part]], 5) for part in parts]
