"""KL divergence and agreement: special cases of logits, what is held, and refusals."""

import importlib
import math
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from pressgauge import KnormPress, Uncompressed, perplexity
from pressgauge import divergence as distance
from pressgauge.conformance import architectures
from pressgauge.divergence import Held, divergence, top1
from pressgauge.likelihood import Method
from pressgauge.onepass import OnePass

PRESS = KnormPress(0.5, prune_after=4)
likelihood: Any = importlib.import_module("pressgauge.likelihood")


def between(reference: list[float], own: list[float], dtype: torch.dtype = torch.float64) -> tuple[float, bool]:
    """Divergence and agreement of the distributions of one token."""
    theirs, mine = (torch.tensor([[logits]], dtype=dtype) for logits in (reference, own))
    kl, agrees = divergence(mine, theirs, top1(theirs))
    return float(kl), bool(agrees)


def test_the_divergence_of_two_coins_is_that_of_the_textbook() -> None:
    """KL(p || q) = sum of p log(p / q), in nats, from p of the reference."""
    fair, biased = [0.0, 0.0], [math.log(3), 0.0]
    assert between(fair, biased)[0] == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert between(biased, fair)[0] == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


@given(
    st.lists(st.tuples(st.floats(-40, 40, width=16), st.floats(-40, 40, width=16)), min_size=2, max_size=9),
    st.sampled_from([torch.float64, torch.float32, torch.float16]),
)
def test_a_divergence_is_that_of_torch_and_never_negative(
    logits: list[tuple[float, float]], dtype: torch.dtype
) -> None:
    """Whatever the logits; of equal logits the first is the prediction."""
    theirs, mine = ([pair[side] for pair in logits] for side in (0, 1))
    found, agrees = between(theirs, mine, dtype)
    known = (Categorical(logits=torch.tensor(side, dtype=torch.float64)) for side in (theirs, mine))
    assert found == pytest.approx(float(kl_divergence(*known)), abs=1e-12 if dtype == torch.float64 else 2e-5)
    assert found >= 0
    assert agrees is (theirs.index(max(theirs)) == mine.index(max(mine)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("reference", "own", "kl"),
    [
        ([0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf], 0.0),
        ([0.0, 0.0, -math.inf], [0.0, 0.0, 0.0], math.log(1.5)),
        ([0.0, 0.0, 0.0], [0.0, 0.0, -math.inf], math.inf),
        ([0.0, -800.0], [0.0, -math.inf], math.inf),
        ([0.0, -800.0], [0.0, 0.0], math.log(2)),
        ([0.0, 0.0], [0.0, math.nan], math.nan),
        ([0.0, math.nan], [0.0, 0.0], math.nan),
        ([0.0, -math.inf], [0.0, math.nan], math.nan),
        ([0.0, 0.0], [0.0, math.inf], math.nan),
    ],
)
def test_impossible_tokens_and_nan_have_the_divergence_of_the_definition(
    reference: list[float], own: list[float], kl: float, dtype: torch.dtype
) -> None:
    """An impossible token of the reference adds nothing; one of the other run makes it infinite; NaN stays NaN."""
    assert between(reference, own, dtype)[0] == pytest.approx(kl, rel=1e-6, nan_ok=True)


def test_impossible_tokens_and_nan_change_the_divergence_of_no_other_token() -> None:
    """Side by side, distributions have the divergences that each has alone."""
    mine = torch.tensor([[[0.0, -math.inf], [0.0, math.nan], [0.0, 0.0], [math.log(3), 0.0], [-math.inf, 0.0]]])
    theirs = torch.tensor([[[0.0, 0.0]] * 4 + [[-math.inf, 0.0]]])
    kl, _ = divergence(mine, theirs, top1(theirs))
    assert kl[0].tolist() == pytest.approx([math.inf, math.nan, 0, math.log(4 / 3) / 2, 0], nan_ok=True)


@pytest.mark.parametrize(("block", "tokens"), [(33, [3, 3, 1]), (43, [3, 3, 1]), (5, [1] * 7), (77, [7])])
def test_no_more_logits_are_compared_at_a_time_than_a_block(
    block: int, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a single token may be more. Each token is compared once."""
    monkeypatch.setattr(distance, "_BLOCK", block)
    real, compared = distance._kl, []

    def counted(*given: Tensor) -> Tensor:
        compared.append(len(given[0]))
        return real(*given)

    monkeypatch.setattr(distance, "_kl", counted)
    logits = torch.zeros(2, 7, 11)
    divergence(logits, logits, top1(logits))
    assert compared == tokens * 2


def test_tokens_are_compared_in_blocks_and_rows_without_mixing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 tokens of two rows have the divergences that each has alone."""
    monkeypatch.setattr(distance, "_BLOCK", 64 * 11)
    generator = torch.Generator().manual_seed(0)
    theirs, mine = (torch.randn(2, 150, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    kl, agrees = divergence(mine, theirs, top1(theirs))
    known = kl_divergence(Categorical(logits=theirs), Categorical(logits=mine))
    torch.testing.assert_close(kl, known, rtol=0, atol=1e-12)
    assert torch.equal(agrees, theirs.argmax(-1) == mine.argmax(-1))


def passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The press of each pass over a text, from now on."""
    seen: list[Any] = []
    real = OnePass.logits

    def counted(self: OnePass, model: Any, ids: Tensor) -> Tensor:
        seen.append(self.press)
        return real(self, model, ids)

    monkeypatch.setattr(OnePass, "logits", counted)
    return seen


def test_what_is_not_held_is_computed_again_with_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for logits, or for some of them, results are bit-identical, for one pass more per group."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([12, 9, 12, 12])
    monkeypatch.setattr(likelihood, "_MOST_LOGITS", 2 * 12 * architectures.VOCABULARY)
    one = 11 * architectures.VOCABULARY * 8
    results: list[Any] = []
    counts = []
    for most_bytes in (1 << 30, 3 * one, 0):
        against = Uncompressed(model, ids, 3, attention_mask=mask, most_bytes=most_bytes)
        assert perplexity(model, ids, None, 3, against=against, attention_mask=mask).kl_divergence == 0
        seen = passes(monkeypatch)
        results.append(perplexity(model, ids, PRESS, 3, against=against, attention_mask=mask))
        counts.append(seen.count(None))
        monkeypatch.undo()
        monkeypatch.setattr(likelihood, "_MOST_LOGITS", 2 * 12 * architectures.VOCABULARY)
    assert counts == [0, 1, 3]
    for result in results[1:]:
        assert torch.equal(result.kl.nan_to_num(-1), results[0].kl.nan_to_num(-1))
        assert torch.equal(result.agrees, results[0].agrees)
    against = Uncompressed(model, ids, 3, attention_mask=mask, most_bytes=0)
    sentence = (
        "the uncompressed logits are more than most_bytes=0, and only those of whole passes are computed again: use "
        "method='onepass', fewer tokens, or a larger most_bytes"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        perplexity(model, ids, PRESS, 3, "stepwise", against=against, attention_mask=mask)


@pytest.mark.parametrize("most_bytes", [96, 119])
def test_no_more_bytes_are_held_than_allowed(most_bytes: int) -> None:
    """Logits are held while they fit, and are copies."""
    held = Held(most_bytes, lambda rows, columns: torch.full((1, 3, 2), 7.0))
    logits = torch.zeros(1, 3, 2)
    for row in range(5):
        held.reference([row], slice(0, 3), logits)
    assert held.nbytes == 96
    held.open = False
    logits += 1
    found = [float(held.reference([row], slice(0, 3), logits)[0].max()) for row in range(5)]
    assert found == [0, 0, 0, 0, 7]


@st.composite
def noted(draw: st.DrawFn) -> tuple[list[tuple[list[int], slice]], list[int], slice, list[int]]:
    """Pieces of rows, each from its own column on; rows and a range of columns to read; each row's first column."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    order, firsts, pieces = draw(st.permutations(range(rows))), [0] * rows, []
    while order:
        count = draw(st.integers(1, len(order)))
        group, order = order[:count], order[count:]
        ends = sorted(draw(st.sets(st.integers(0, columns), min_size=1, max_size=3)) | {columns})
        pieces += [(group, slice(start, end)) for start, end in pairwise(ends)]
        for row in group:
            firsts[row] = ends[0]
    start = draw(st.integers(0, columns - 1))
    asked = draw(st.lists(st.integers(0, rows - 1), min_size=1, unique=True))
    return draw(st.permutations(pieces)), asked, slice(start, draw(st.integers(start + 1, columns))), firsts


@given(noted())
def test_held_logits_are_read_in_any_pieces(
    drawn: tuple[list[tuple[list[int], slice]], list[int], slice, list[int]],
) -> None:
    """Whatever the rows and columns in which they were noted, in any order."""
    pieces, rows, columns, firsts = drawn
    logits = torch.randn(len(firsts), 6, 3, generator=torch.Generator().manual_seed(0))
    held = Held(1 << 20, lambda rows, columns: torch.zeros(0))
    for group, part in pieces:
        held.reference(group, part, logits[group, part])
    held.open = False
    found, top = held.reference(rows, columns, logits[rows, columns] + 1)
    for place, row in enumerate(rows):
        first = max(columns.start, firsts[row])
        assert torch.equal(found[place, first - columns.start :], logits[row, first : columns.stop])
        assert torch.equal(top[place, first - columns.start :], logits[row, first : columns.stop].argmax(dim=-1))


@pytest.mark.parametrize("most_bytes", [1 << 30, 0])
def test_one_plain_pass_is_at_no_distance(most_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It evicts nothing. It is compared in the pieces of one pass, so that these may be computed again."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 12)
    seen = passes(monkeypatch)
    against = Uncompressed(model, ids, 3, most_bytes=most_bytes)
    result = perplexity(model, ids, PRESS, 3, "plain", against=against)
    assert seen == [None] * (1 if most_bytes else 2)
    assert result.kl is not None
    assert result.kl.tolist() == [pytest.approx([0] * 9, abs=1e-12)] * 2
    assert result.agreement == 1


@pytest.mark.parametrize("press", [None, PRESS])
@pytest.mark.parametrize("method", get_args(Method))
def test_the_uncompressed_run_is_one_pass_whichever_run_is_first(
    method: Method, press: KnormPress | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run is compared with one pass without a press, and with nothing else."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 12)
    seen = passes(monkeypatch)
    against = Uncompressed(model, ids, 3)
    result = perplexity(model, ids, press, 3, method, against=against)
    assert seen == ([None, press] if press and method == "onepass" else [None])
    assert against.result is not None
    assert (against.result is result) is (press is None and method == "onepass")
    assert torch.equal(against.result.nll, perplexity(model, ids, None, 3).nll)


def test_the_uncompressed_run_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first run without a press, or before the first comparison."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 12)
    seen = passes(monkeypatch)
    against = Uncompressed(model, ids)
    first = perplexity(model, ids, None, against=against)
    assert against.result is first
    perplexity(model, ids, PRESS, against=against)
    assert seen == [None, PRESS]
    seen.clear()
    other = Uncompressed(model, ids)
    perplexity(model, ids, PRESS, 1, "stepwise", against=other)
    perplexity(model, ids, PRESS, against=other)
    assert seen == [None, PRESS]


def test_a_run_that_failed_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error in the uncompressed run, the next comparison runs it again."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 12)
    against = Uncompressed(model, ids)
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "_affected", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            perplexity(model, ids, PRESS, against=against)
    expected = perplexity(model, ids, PRESS, against=Uncompressed(model, ids)).kl
    found = perplexity(model, ids, PRESS, against=against).kl
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_runs_on_another_text_or_model_are_refused() -> None:
    """Distributions can be compared on the same tokens under the same model only."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 12)
    against = Uncompressed(model, ids, 3)
    for other, text, prompt, mask in (
        (architectures.build("llama"), ids, 3, None),
        (model, ids.flip(0), 3, None),
        (model, ids[:, 1:], 3, None),
        (model, ids, 2, None),
        (model, ids, 3, torch.ones_like(ids).index_fill(1, torch.tensor([0]), 0)),
    ):
        sentence = (
            "against must be the uncompressed run of the same model, input_ids, attention_mask and prompt, and is one "
            "of others"
        )
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            perplexity(other, text, PRESS, prompt, against=against, attention_mask=mask)


def test_without_a_comparison_there_are_no_distances() -> None:
    """A run that is compared with none has none."""
    result = perplexity(architectures.shared("llama"), architectures.tokens(1, 12), PRESS)
    assert (result.kl, result.agrees, result.kl_divergence, result.agreement) == (None,) * 4
