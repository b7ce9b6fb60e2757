"""The laws of measuring: properties of a perplexity, a time or a size, whatever code computes it.

Each law is a function without arguments, so that ``mutants/measuring.py`` can run it on broken measuring code.
"""

import copy
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from pressgauge import KnormPress, Perplexity, Press, Uncompressed, generate, perplexity, timing
from pressgauge.bench.plan import Plan
from pressgauge.bench.row import Row, Source, make_row
from pressgauge.bench.sweep import prepare, run_sweep
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import CACHE
from pressgauge.formats import DASH
from pressgauge.likelihood import Method
from pressgauge.models import load
from pressgauge.onepass import OnePass
from pressgauge.reference.language import document
from pressgauge.report import page as report
from pressgauge.timing import Ratio, Timing, measure_timing

METHODS: tuple[Method, ...] = ("onepass", "stepwise", "plain")
COMPRESSED: tuple[Method, ...] = ("onepass", "stepwise")
"""Methods with a press at work."""
PRESS = KnormPress(0.5, prune_after=4)
STATES = 12
ERROR_RATE = 1e-6
"""Probability that the law of the exact entropy fails for a correct perplexity function."""

# Models and texts


@cache
def chain() -> tuple[tuple[float, ...], ...]:
    """Transition probabilities of a Markov chain, from each state to each next one."""
    draw = random.Random(3).random
    weights = [[0.01 + draw() ** 3 for _ in range(STATES)] for _ in range(STATES)]
    return tuple(tuple(weight / math.fsum(row) for weight in row) for row in weights)


def walk(length: int, seed: int = 0) -> list[int]:
    """A text sampled from the chain."""
    draw, text = random.Random(seed), [0]
    while len(text) < length:
        text += draw.choices(range(STATES), chain()[text[-1]])
    return text


def exact(text: Sequence[int]) -> list[float]:
    """NLL of all tokens of a walk except the first."""
    return [-math.log(chain()[before][token]) for before, token in pairwise(text)]


@cache
def chain_model(dtype: torch.dtype = torch.float64) -> Any:
    """A Llama with the distribution of the chain: its attention runs, and adds nothing to the embeddings.

    Embeddings are unit vectors, which a norm scales to length 4 in 16 dimensions.
    """
    config = LlamaConfig(
        vocab_size=STATES,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        model.get_input_embeddings().weight.copy_(torch.eye(STATES, 16))
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[:, :STATES] = torch.tensor(chain(), dtype=torch.float64).log().T / 4
    return model.to(dtype).eval()


@cache
def reference(dtype: str = "float32") -> Any:
    """The trained Llama of the reference language."""
    return load("reference", dtype=dtype)[0]


def padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """A batch of texts, padded on the left, and its mask."""
    columns = max(map(len, texts))
    ids = torch.tensor([[0] * (columns - len(text)) + list(text) for text in texts])
    mask = torch.tensor([[0] * (columns - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def alike(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether shapes and NaN agree, and values up to a tolerance."""
    return one.shape == other.shape and one.allclose(other.to(one.dtype), rtol=0, atol=tolerance, equal_nan=True)


def made_of(nll: Tensor) -> Perplexity:
    """A result with these NLL, NaN at tokens that are not scored."""
    none = torch.zeros_like(nll, dtype=torch.bool)
    return Perplexity(nll, ~nll.isnan(), none, none, 0, (), 0, False, ())


def row_of(press: Press, result: Perplexity, base: Perplexity, times: Timing | None = None) -> Row:
    """The row of a result."""
    source = Source("model", "text", "float64", "cpu", 1, 9, 1, "text", "weights", 9)
    return make_row("knorm", press, source, result, make_row("knorm", press, source, base), times)


def swept(press: Press, models: tuple[str, ...] = ("reference",)) -> tuple[tuple[Row, ...], Tensor]:
    """Rows of a sweep over two texts of 40 tokens, uncompressed and pressed alternately; and the texts."""
    plan = Plan(
        presses={"knorm": (replace(press, keep_ratio=1.0), press)},
        models=models,
        texts=("reference",),
        samples=2,
        tokens=40,
        prompt=1,
        device=torch.device("cpu"),
        dtype="float64",
    )
    samples = prepare(plan)
    return run_sweep(plan, samples).rows, samples["reference", "reference"]


# What is measured


def test_a_press_is_measured_with_its_compressed_cache() -> None:
    """Rule 14: one pass has the NLL of token-by-token decoding with the compressed cache, in float64, and differs from
    an uncompressed pass exactly at affected tokens."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 24)
    press = KnormPress(0.5, prune_after=8)
    onepass, stepwise, plain = (perplexity(model, ids, press, 1, method) for method in ("onepass", "stepwise", "plain"))
    assert alike(onepass.nll, stepwise.nll)
    assert onepass.evictions == stepwise.evictions > 0
    # The ninth token's pass is the first to evict, and scores the tenth token before that.
    moved = (onepass.nll - plain.nll).abs() > 1e-6
    assert moved.tolist() == [[False] * 9 + [True] * 14] * 2


def test_a_row_with_the_name_of_a_press_was_measured_under_it() -> None:
    """A row has the numbers of decoding with its press and ratio, which differ from the uncompressed ones."""
    press = KnormPress(0.5, prune_after=16)
    (whole, pressed), ids = swept(press)
    expected = perplexity(reference("float64"), ids, press, 1, "stepwise")
    assert (pressed.press, pressed.keep_ratio) == ("knorm", 0.5)
    assert pressed.ppl == pytest.approx(expected.ppl, rel=1e-9)
    assert (pressed.evictions, pressed.affected_tokens) == (expected.evictions, expected.affected_tokens)
    assert abs(pressed.ppl / whole.ppl - 1) > 0.01


def test_every_arm_and_every_method_scores_the_same_tokens() -> None:
    """Rule 11: every method and arm scores the tokens after the prompt that have a predecessor, in padded rows too."""
    ids, mask = padded([walk(14), walk(8, seed=1), walk(3, seed=2)])
    for prompt in (1, 8):
        expected = [[bool(mask[row, i - 1]) for i in range(prompt, 14)] for row in range(3)]
        for method in METHODS:
            for press in (None, KnormPress(1, prune_after=4), PRESS):
                result = perplexity(chain_model(), ids, press, prompt, method, attention_mask=mask)
                assert result.scored.tolist() == expected
                assert torch.equal(~result.nll.isnan(), result.scored)
                assert result.scored_tokens == sum(map(sum, expected))


def test_the_uncompressed_arm_does_not_depend_on_earlier_measurements() -> None:
    """An uncompressed result after a press is bit-identical to one before it."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 16)
    for method in METHODS:
        before = perplexity(model, ids, None, 1, method)
        perplexity(model, ids, PRESS, 1, method)
        after = perplexity(model, ids, None, 1, method)
        assert torch.equal(after.nll, before.nll)
        assert after.held == before.held


# Perplexity is right


def test_nll_is_exact_for_a_model_whose_distribution_is_known() -> None:
    """A model that is a Markov chain scores each token by its transition probability, by every method, for every
    prompt, and under a press."""
    texts = [walk(14), walk(14, seed=1)]
    for prompt in (1, 6):
        expected = torch.tensor([exact(text)[prompt - 1 :] for text in texts], dtype=torch.float64)
        for method in METHODS:
            for press in (None, PRESS):
                result = perplexity(chain_model(), torch.tensor(texts), press, prompt, method)
                assert alike(result.nll, expected, 1e-12)
                assert (result.affected_tokens > 0) is (press is not None and method != "plain")


def test_no_perplexity_is_below_the_exact_entropy_by_more_than_sampling_error() -> None:
    """A perplexity is not below the exact entropy by more than sampling error.

    A predictor gives a text some probability q. If the text was drawn with probability p, the mean of q / p is at most
    1. By Markov's inequality, log q - log p exceeds log 1/a with probability at most a: here one in a million, for each
    of the four measurements.
    """
    measurements: tuple[tuple[Press | None, Method, int], ...] = (
        (None, "plain", 256),
        (None, "onepass", 256),
        (KnormPress(0.5, prune_after=64), "onepass", 256),
        (KnormPress(0.5, prune_after=16), "stepwise", 40),
    )
    for press, method, length in measurements:
        texts = [document(seed, length) for seed in range(100, 106)]
        ids = torch.tensor([text.tokens for text in texts])
        result = perplexity(reference(), ids, press, 1, method)
        entropy = math.fsum(nll for text in texts for nll in text.nll[1:])
        assert entropy - float(result.nll.sum()) < math.log(1 / ERROR_RATE)


def test_ppl_does_not_depend_on_how_the_same_nll_are_partitioned() -> None:
    """Perplexity is the exponential of the mean over all scored tokens, not a mean of perplexities of rows, chunks or
    texts."""
    draw = random.Random(4)
    nll = [draw.expovariate(0.5) for _ in range(24)]
    expected = math.exp(math.fsum(nll) / 24)
    for lengths in ([24], [12, 12], [1] * 24, [20, 3, 1], [5, 6, 13]):
        assert sum(lengths) == 24
        rest = iter(nll)
        rows = [[math.nan] * (max(lengths) - length) + [next(rest) for _ in range(length)] for length in lengths]
        assert made_of(torch.tensor(rows, dtype=torch.float64)).ppl == pytest.approx(expected, rel=1e-12)


def test_nll_does_not_depend_on_the_batch() -> None:
    """A text has the same NLL alone, with others and padded, and all texts together the same perplexity."""
    model = architectures.shared("llama")
    press = KnormPress(0.5, prune_after=4)
    texts = [architectures.tokens(1, length, seed=length)[0].tolist() for length in (12, 6, 9)]
    for method in COMPRESSED:
        parts = [perplexity(model, torch.tensor([text]), press, 1, method) for text in texts]
        whole = math.fsum(float(part.nll.sum()) for part in parts) / sum(part.scored_tokens for part in parts)
        ids, mask = padded(texts)
        result = perplexity(model, ids, press, 1, method, attention_mask=mask)
        for row, part in enumerate(parts):
            assert alike(result.nll[row][result.scored[row]], part.nll[0])
        assert result.ppl == pytest.approx(math.exp(whole), rel=1e-9)


def test_nll_does_not_depend_on_the_prompt_where_nothing_is_evicted() -> None:
    """Without evictions, the NLL of a token does not depend on how the text was fed."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 12)
    whole = perplexity(model, ids, method="plain").nll
    for press in (None, KnormPress(1, prune_after=4), KnormPress(0.5, prune_after=12)):
        for method in METHODS:
            for prompt in (1, 7, 11):
                result = perplexity(model, ids, press, prompt, method)
                assert alike(result.nll, whole[:, prompt - 1 :])


def test_nan_is_not_left_out() -> None:
    """NaN of a broken model counts: perplexity is NaN and has no verdict."""
    model = copy.deepcopy(chain_model())
    text = [token if token != 7 else 8 for token in walk(20)]
    base = perplexity(model, torch.tensor([text]))
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = math.nan
    text[14] = 7
    for method in METHODS:
        result = perplexity(model, torch.tensor([text]), None, 1, method)
        assert result.nll[0, 14:].isnan().all()
        assert result.scored_tokens == base.scored_tokens == 19
        assert math.isnan(result.ppl)
        assert row_of(PRESS, result, base).verdict == "not a number"


def test_nll_of_a_model_in_half_precision_is_taken_in_float32_or_wider() -> None:
    """The loss adds no rounding to that of the logits, compared with plain Python on the same logits."""
    model, text = chain_model(torch.bfloat16), walk(24)
    with torch.no_grad():
        logits: list[list[float]] = model(torch.tensor([text]), use_cache=False).logits[0].tolist()
    expected = [
        math.log(math.fsum(math.exp(logit - line[token]) for logit in line))
        for line, token in zip(logits, text[1:], strict=False)
    ]
    result = perplexity(model, torch.tensor([text]), None, 1, "plain")
    assert alike(result.nll, torch.tensor([expected], dtype=torch.float64), 1e-6)


# Counts and words


def test_accuracy_is_the_top_1_share_of_scored_tokens() -> None:
    """Accuracy is the share of scored tokens that are the top-1 prediction, without padding."""
    texts = [walk(24, seed=5), walk(9, seed=6)]
    ids, mask = padded(texts)
    hits = [
        token == max(range(STATES), key=chain()[before].__getitem__)
        for text in texts
        for before, token in pairwise(text)
    ]
    assert 0 < sum(hits) < len(hits) == 23 + 8
    for method in METHODS:
        assert perplexity(chain_model(), ids, None, 1, method, attention_mask=mask).accuracy == sum(hits) / len(hits)


def decoded(model: Any, ids: Tensor, prompt: int, press: Press | None) -> Tensor:
    """Logits ``[B, scored, V]`` that predict the tokens behind the prompt, by transformers' own calls."""
    cache = DynamicCache(config=model.config) if press is None else press.cache(model.config, unpadded=True)
    with torch.no_grad():
        found = [model(ids[:, :prompt], **{CACHE: cache}).logits[:, -1]]
        for column in range(prompt, ids.shape[1] - 1):
            found.append(model(ids[:, column : column + 1], **{CACHE: cache}).logits[:, -1])
    return torch.stack(found, dim=1)


def test_distances_are_those_of_the_distributions_of_two_decodings() -> None:
    """KL divergence, in nats from the uncompressed distribution, and top-1 agreement equal torch's for the logits of
    two decodings with transformers' own calls, by every method that compresses, for every prompt."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 20)
    for prompt in (1, 6):
        plain, pressed = (decoded(model, ids, prompt, press) for press in (None, PRESS))
        kl = kl_divergence(Categorical(logits=plain), Categorical(logits=pressed))
        agreeing = plain.argmax(dim=-1) == pressed.argmax(dim=-1)
        targets = ids[:, prompt:] == pressed.argmax(dim=-1)
        assert float(kl.mean()) > 1e-3
        assert 0 < int(agreeing.sum()) < agreeing.numel()
        assert not torch.equal(agreeing, targets)
        for method in COMPRESSED:
            result = perplexity(model, ids, PRESS, prompt, method, against=Uncompressed(model, ids, prompt))
            assert result.kl is not None
            assert result.agrees is not None
            assert alike(result.kl, kl)
            assert result.kl_divergence == pytest.approx(float(kl.mean()), abs=1e-9)
            assert torch.equal(result.agrees, agreeing)
            assert result.agreement == pytest.approx(float(agreeing.double().mean()))


def test_a_padded_row_has_the_distances_that_it_has_alone() -> None:
    """In a padded batch, distances are those of the rows alone, and padding has none."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([16, 9])
    for prompt in (1, 9):
        for method in COMPRESSED:
            result = perplexity(
                model, ids, PRESS, prompt, method, attention_mask=mask,
                against=Uncompressed(model, ids, prompt, attention_mask=mask),
            )  # fmt: skip
            scored = 0
            for row, length in enumerate((16, 9)):
                own, first = ids[row : row + 1, 16 - length :], max(1, prompt - 16 + length)
                alone = perplexity(model, own, PRESS, first, method, against=Uncompressed(model, own, first))
                assert result.kl is not None
                assert alone.kl is not None
                assert alike(result.kl[row, -alone.kl.shape[1] :], alone.kl[0])
                assert result.kl[row, : -alone.kl.shape[1]].isnan().all()
                scored += alone.scored_tokens
            assert result.scored_tokens == scored


def test_a_ratio_of_one_is_at_no_distance() -> None:
    """A press that evicts nothing has a divergence of exactly 0 and an agreement of exactly 1, in every dtype."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model, ids = architectures.build("llama").to(dtype), architectures.tokens(2, 70)
        found = perplexity(model, ids, replace(PRESS, keep_ratio=1.0), 1, against=Uncompressed(model, ids))
        assert found.kl is not None
        assert torch.equal(found.kl, torch.zeros(2, 69, dtype=torch.float64))
        assert found.agreement == 1


def test_no_divergence_is_negative_or_loses_a_nan() -> None:
    """Per token, in half precision, and with a NaN in one logit of the compressed run."""
    model, ids = architectures.build("llama").to(torch.bfloat16), architectures.tokens(2, 40)
    against = Uncompressed(model, ids)
    found = perplexity(model, ids, PRESS, 1, against=against)
    assert found.kl is not None
    assert float(found.kl.min()) >= 0
    real = OnePass.logits

    def spoiled(self: OnePass, model: Any, ids: Tensor) -> Tensor:
        logits = real(self, model, ids)
        logits[0, 20, 3] = math.nan
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnePass, "logits", spoiled)
        found = perplexity(model, ids, PRESS, 1, against=against)
    assert found.kl is not None
    assert found.kl_divergence is not None
    assert found.kl.isnan().nonzero().tolist() == [[0, 20]]
    assert math.isnan(found.kl_divergence)


def test_tokens_are_affected_after_the_first_eviction() -> None:
    """With P = 8, tokens are affected from a row's eleventh token on, counted without padding (rule 11)."""
    ids, mask = padded([walk(16), walk(12, seed=1), walk(8, seed=2)])
    for method in COMPRESSED:
        result = perplexity(chain_model(), ids, KnormPress(0.1, prune_after=8), 1, method, attention_mask=mask)
        assert result.affected.tolist() == [[False] * 9 + [True] * 6, [False] * 13 + [True] * 2, [False] * 15]
        assert result.affected_tokens == 8


def test_evictions_count_entries_of_all_layers_heads_and_rows() -> None:
    """Evictions are counted over layers, KV heads and rows: 16 tokens to 8 and 12 to 6 in two heads of the layer that
    is not skipped, without padding."""
    ids, mask = padded([walk(16), walk(12, seed=1)])
    press = KnormPress(0.5, prune_after=4, skip_layers=(0,))
    for method in COMPRESSED:
        result = perplexity(chain_model(), ids, press, 1, method, attention_mask=mask)
        assert result.evictions == 2 * (8 + 6)


def test_results_without_affected_tokens_are_vacuous() -> None:
    """A result without affected tokens is vacuous and has no change: below ``prune_after``, with evictions only after
    the last scored token, and by a method that does not compress (rule 14)."""
    ids = torch.tensor([walk(16)])
    base = perplexity(chain_model(), ids)
    measurements: tuple[tuple[Press, Method, int], ...] = (
        (KnormPress(0.5, prune_after=16), "onepass", 0),
        (KnormPress(0.5, prune_after=16), "stepwise", 0),
        (KnormPress(0.5, prune_after=15), "onepass", 2 * 2),
        (KnormPress(0.5, prune_after=15), "stepwise", 2 * 2),
        (PRESS, "plain", 0),
    )
    for press, method, evictions in measurements:
        result = perplexity(chain_model(), ids, press, 1, method)
        row = row_of(press, result, base)
        assert (result.evictions, result.affected_tokens) == (evictions, 0)
        assert result.vacuous
        assert (row.vacuous, row.verdict, row.change) == (True, "vacuous", "vacuous")
        assert report.COLUMNS["change"](row) == DASH
        assert "no result" in report.summary("knorm", [row], [row])
    # One affected token is enough for a result.
    press = KnormPress(0.5, prune_after=13)
    assert row_of(press, perplexity(chain_model(), ids, press), base).verdict == "within +20 %"


def test_a_ratio_of_one_is_called_uncompressed() -> None:
    """The row of r = 1 is called uncompressed, neither vacuous nor a change of 0 %."""
    ids = torch.tensor([walk(16)])
    base = perplexity(chain_model(), ids)
    for method in METHODS:
        for press in (KnormPress(1, prune_after=4), KnormPress(1.0)):
            result = perplexity(chain_model(), ids, press, 1, method)
            row = row_of(press, result, base)
            assert not result.vacuous
            assert (row.vacuous, row.verdict, row.change) == (False, "uncompressed", "uncompressed")


def test_a_change_is_relative_to_the_uncompressed_run_of_the_same_model_and_text() -> None:
    """A change is relative to the uncompressed run of the same model, and is .05 for 5 % more."""
    rows, _ = swept(KnormPress(0.5, prune_after=16), ("reference", "reference-neox"))
    assert [row.verdict == "uncompressed" for row in rows] == [True, False] * 2
    assert rows[0].ppl != rows[2].ppl
    for base, row in (rows[:2], rows[2:]):
        assert base.ppl_change == 0
        assert row.ppl_change == pytest.approx((row.ppl - base.ppl) / base.ppl, rel=1e-12)


def test_verdicts_are_the_bands_below_20_percent_up_to_30_and_above() -> None:
    """Verdicts follow the bands, by default 20 % and 30 %, and NaN has none."""
    ids = torch.tensor([walk(16)])
    result = perplexity(chain_model(), ids, PRESS)
    row = row_of(PRESS, result, result)
    for change, verdict in (
        (-0.1, "within +20 %"),
        (0.0, "within +20 %"),
        (0.199, "within +20 %"),
        (0.2, "within +30 %"),
        (0.3, "within +30 %"),
        (0.301, "above"),
        (math.inf, "not a number"),
        (math.nan, "not a number"),
    ):
        assert replace(row, ppl_change=change, ppl_interval=(change, change)).verdict == verdict
    others = replace(row, bands=(0.05, 0.1, 0.5))
    changes = (0.04, 0.05, 0.1, 0.11, 0.5, 0.51)
    found = [replace(others, ppl_change=change, ppl_interval=(change, change)).verdict for change in changes]
    assert found == ["within +5 %", "within +10 %", "within +10 %", "within +50 %", "within +50 %", "above"]


def test_a_verdict_needs_its_interval_in_one_band() -> None:
    """Where the interval of a change crosses a limit of the bands, or is missing, the band cannot be told."""
    ids = torch.tensor([walk(16)])
    result = perplexity(chain_model(), ids, PRESS)
    row = replace(row_of(PRESS, result, result), ppl_change=0.25)
    for interval, verdict in (
        ((0.21, 0.29), "within +30 %"),
        ((0.19, 0.29), "cannot be told"),
        ((0.21, 0.31), "cannot be told"),
        ((-0.5, 3.0), "cannot be told"),
        (None, "cannot be told"),
    ):
        assert replace(row, ppl_interval=interval).verdict == verdict


# Sizes


def test_size_is_what_all_layers_hold_and_not_the_nominal_ratio() -> None:
    """Sizes include skipped layers: a sweep at r = .5 reports the skipped layer in full, and two thirds of the
    bytes."""
    (whole, pressed), ids = swept(KnormPress(0.5, prune_after=16, skip_layers=(1,)))
    assert whole.held == (40, 40, 40)
    assert pressed.held == (20, 40, 20)
    entry = 2 * 2 * 32 * 8  # KV heads, keys and values, dimension, bytes
    assert (whole.kv_bytes, pressed.kv_bytes) == (len(ids) * 120 * entry, len(ids) * 80 * entry)


# Times and memory, on a simulated device


class Elsewhere(TorchFunctionMode):
    """``ids`` that report to be on ``device``, with new tensors created on the CPU."""

    def __init__(self, ids: Tensor, device: torch.device) -> None:
        super().__init__()
        self.ids = ids
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.device.__get__ and args[0] is self.ids:
            return self.device
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == self.device:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@dataclass
class Accelerator:
    """An asynchronous device: a pass is only queued, and its time passes during synchronisation.

    Attributes:
        cost: seconds per token fed, in the first run, the second, ...; a prompt begins a run.
        now: time of the clock.
        idle_at: time when all queued passes are done.
        runs: number of runs so far.
        peak: peak bytes of keys and values since the last reset.
    """

    cost: Callable[[int], float] = lambda run: 1.0
    now: float = 0.0
    idle_at: float = 0.0
    runs: int = 0
    peak: int = 0

    def queue(self, model: Any, args: tuple[Tensor], kwargs: dict[str, Any], output: Any) -> None:
        """Queue a pass."""
        tokens = args[0].shape[1]
        self.runs += tokens > 1
        self.idle_at = max(self.now, self.idle_at) + tokens * self.cost(self.runs)
        layers = kwargs[CACHE].layers
        self.peak = max(self.peak, sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))

    def wait(self, device: object = None) -> None:
        """Let time pass until all passes are done."""
        self.now = max(self.now, self.idle_at)

    def reset(self, device: object = None) -> None:
        """Reset the peak."""
        self.peak = 0


@contextmanager
def at_work(device: Accelerator, ids: Tensor, kind: str = "xpu", *, counters: bool = True) -> Iterator[None]:
    """Context with the chain's model and ``ids`` on this device, and its clock as the only one."""
    with pytest.MonkeyPatch.context() as patch, Elsewhere(ids, torch.device(kind)):
        patch.setattr(time, "perf_counter", lambda: device.now)
        patch.setattr(torch.accelerator, "synchronize", device.wait)
        # Older versions of torch have no counters.
        patch.setattr(torch.accelerator, "reset_peak_memory_stats", device.reset, raising=False)
        patch.setattr(torch.accelerator, "max_memory_allocated", lambda device_: device.peak, raising=False)
        if not counters:
            patch.delattr(torch.accelerator, "max_memory_allocated")
        hook = chain_model().register_forward_hook(device.queue, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def timed(device: Accelerator, pairs: int, kind: str = "xpu", *, counters: bool = True) -> Timing:
    """Timing of a press on this device: a prompt of 5 tokens and 6 new ones."""
    ids = torch.tensor([walk(5)])
    with at_work(device, ids, kind, counters=counters):
        return measure_timing(chain_model(), ids, PRESS, 6, pairs=pairs)


def test_times_contain_the_work_of_an_asynchronous_device() -> None:
    """With a second per token, a prompt of 5 gives TTFT 5 and TPOT 1, without earlier queued work, and throughput
    counts generated tokens."""
    ids = torch.tensor([walk(5), walk(5, seed=1)])
    for press in (None, PRESS):
        with at_work(Accelerator(idle_at=100), ids):
            result = generate(chain_model(), ids, press, 4)
        assert (result.ttft, result.tpot) == (5, 1)
        assert result.tokens_per_second == 2 * 4 / (5 + 3)


def test_a_cold_start_is_in_neither_arm() -> None:
    """If the first run takes ten times as long, equal arms still have a ratio of exactly 1, and seconds are those of
    warm runs (docs/false-results.md)."""
    result = timed(Accelerator(cost=lambda run: 10 if run == 1 else 1), pairs=2)
    assert result.ttft_ratio == result.tpot_ratio == Ratio(1, (1, 1))
    assert (result.ttft, result.tpot) == (5, 1)


def test_a_device_that_gets_slower_favours_neither_arm() -> None:
    """If every run takes 2 % longer than the previous one, 1 is in the confidence interval and close to the ratio."""
    result = timed(Accelerator(cost=lambda run: 1.02**run), pairs=4)
    for ratio in (result.ttft_ratio, result.tpot_ratio):
        assert ratio.interval[0] <= 1 <= ratio.interval[1]
        assert ratio.median == pytest.approx(1, abs=0.001)


def test_a_slow_pair_does_not_change_the_ratio() -> None:
    """The reported ratio is the median over pairs, which a slow pair does not change."""
    pairs = [(3.0, 1.0), (2.0, 2.0), (5.0, 4.0), (1.0, 2.0), (7.0, 4.0)]
    slowed = [(one * factor, other * factor) for (one, other), factor in zip(pairs, (1, 64, 2, 16, 1), strict=True)]
    assert timing.ratio(slowed) == timing.ratio(pairs)
    assert timing.ratio(pairs).median == 1.25


def test_an_interval_contains_its_median_and_nothing_that_was_not_measured() -> None:
    """The ends of a confidence interval are medians of resamples, so they lie within the measured ratios and around the
    median."""
    draw = random.Random(8)
    for outlier in (1.0, 50.0):
        quotients = [1 + draw.random() / 10 for _ in range(8)] + [outlier]
        result = timing.ratio([(quotient, 1.0) for quotient in quotients])
        low, high = result.interval
        assert result.median == statistics.median(quotients)
        assert min(quotients) <= low <= result.median <= high < 1.1


def test_peak_memory_is_that_of_the_pressed_arm_alone() -> None:
    """Peak memory is that of the pressed arm, 5 of 10 entries, without the uncompressed arm before it."""
    device = Accelerator()
    result = timed(device, pairs=2)
    entry = 2 * 2 * 2 * 4 * 8  # layers, KV heads, keys and values, dimension, bytes
    assert (result.peak_memory_bytes, result.peak_memory_of) == (5 * entry, "device")
    assert device.peak == 10 * entry, "the uncompressed arm is to run last"


def test_memory_without_counters_is_not_available() -> None:
    """Without counters memory is ``not available`` and None, not NaN or that of another device."""
    ids = torch.tensor([walk(16)])
    result = perplexity(chain_model(), ids, PRESS)
    for kind, counters in (("mps", True), ("xpu", False)):
        times = timed(Accelerator(), 2, kind, counters=counters)
        assert times.peak_memory_bytes is None
        assert times.peak_memory_of == "not available on this device"
        row = row_of(PRESS, result, result, times)
        assert json.loads(json.dumps(row.as_dict(), allow_nan=False))["peak_memory_bytes"] is None
        assert report.COLUMNS["memory"](row) == "not available"
